import math

import pytest
import torch
import torch.nn.functional as F

from latentgen.nn.attention import Attention, SpatialAttention, Transformer2D
from latentgen.nn.embeddings import timestep_embedding
from latentgen.nn.resnet import Downsample, ResnetBlock, Upsample


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_attention_is_the_formula_of_its_paper():
    layer = Attention(8, 6, heads=2)
    x, context = draw(3, 5, 8), draw(3, 7, 6)
    q, k, v = (t.view(3, -1, 2, 4).transpose(1, 2) for t in (layer.to_q(x), layer.to_k(context), layer.to_v(context)))
    mixed = (q @ k.transpose(-1, -2) / math.sqrt(4)).softmax(-1) @ v
    expected = layer.to_out[0](mixed.transpose(1, 2).reshape(3, 5, 8))
    assert torch.allclose(layer(x, layer.keys_values(context)), expected, atol=1e-6)


def test_heads_change_the_result():
    torch.manual_seed(0)
    layer, x = Attention(8, 8, heads=2), draw(1, 5, 8)
    two = layer(x, layer.keys_values(x))
    layer.heads = 4
    assert not torch.allclose(two, layer(x, layer.keys_values(x)), atol=1e-4)


@pytest.mark.parametrize("upcast", [False, True])
def test_upcast_attention_is_computed_in_float32(upcast, monkeypatch):
    seen = []
    real = F.scaled_dot_product_attention

    def spy(q, k, v):
        seen.append({q.dtype, k.dtype, v.dtype})
        return real(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    layer = Attention(8, 8, heads=2, upcast=upcast).to(torch.bfloat16)
    x = draw(1, 5, 8, dtype=torch.bfloat16)
    assert layer(x, layer.keys_values(x)).dtype == torch.bfloat16
    assert seen == [{torch.float32 if upcast else torch.bfloat16}]


def test_upcast_attention_survives_scores_that_float16_cannot_hold():
    layer = Attention(8, 8, heads=1, upcast=True)
    with torch.no_grad():
        for projection in (layer.to_q, layer.to_k):
            projection.weight.copy_(torch.eye(8) * 300)
    layer, x = layer.half(), torch.ones(1, 5, 8, dtype=torch.float16)
    q, (k, v) = layer.to_q(x).double(), layer.keys_values(x)
    assert (q @ k[0].double().transpose(-1, -2)).max() > torch.finfo(torch.float16).max
    assert layer(x, (k, v)).isfinite().all()


def test_spatial_attention_keeps_its_shortcut():
    layer = SpatialAttention(8, groups=4, eps=1e-6)
    with torch.no_grad():
        layer.to_out[0].weight.zero_()
        layer.to_out[0].bias.zero_()
    x = draw(2, 8, 3, 5)
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("linear", [False, True])
def test_a_transformers_projections_may_be_convolutions_or_linear(linear):
    """A 1 x 1 convolution and a linear layer of the same numbers are the same layer."""
    settings = {"layers": 1, "groups": 4, "only_cross_attention": False, "upcast": False}
    torch.manual_seed(0)
    first = Transformer2D(8, 6, 2, linear=linear, **settings)
    second = Transformer2D(8, 6, 2, linear=not linear, **settings)
    state = {
        name: t.reshape(second.state_dict()[name].shape) if name.startswith("proj_") else t
        for name, t in first.state_dict().items()
    }
    second.load_state_dict(state)
    for layer in (first, second):
        layer.transformer_blocks[0].attn2.index = 0
    context = [first.transformer_blocks[0].attn2.keys_values(draw(2, 7, 6))]
    x = draw(2, 8, 3, 5)
    assert torch.equal(first(x, context), second(x, context))


def test_timesteps_are_told_apart_and_cosines_come_first():
    embedding = timestep_embedding(torch.tensor([0.0, 1.0, 500.5]), 8)
    assert embedding.shape == (3, 8)
    assert embedding[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert embedding[1, 0].item() == pytest.approx(math.cos(1))
    assert embedding[2, 4].item() == pytest.approx(math.sin(500.5), abs=1e-4)
    assert embedding[1, 3].item() == pytest.approx(math.cos(10000**-0.75))
    assert torch.equal(timestep_embedding(torch.tensor([3.0]), 8, flip_sin_to_cos=False).roll(4, 1),
                       timestep_embedding(torch.tensor([3.0]), 8))  # fmt: skip


def test_a_residual_block_takes_its_own_shift():
    torch.manual_seed(0)
    block = ResnetBlock(8, 8, groups=4, eps=1e-5, time_channels=16)
    block.index = 1
    x, shift = draw(2, 8, 4, 4), block.shift(draw(2, 16))
    assert shift.shape == (2, 8, 1, 1)
    nothing = torch.zeros_like(shift)
    assert torch.equal(block(x, [shift, nothing]), block(x))
    assert not torch.allclose(block(x, [nothing, shift]), block(x))


@pytest.mark.parametrize(("size", "padding", "halved"), [(8, 0, 4), (8, 1, 4), (7, 1, 4), (7, 0, 3)])
def test_downsampling_halves(size, padding, halved):
    assert Downsample(4, padding=padding)(draw(1, 4, size, size)).shape == (1, 4, halved, halved)


def test_the_autoencoders_padding_is_at_the_right_and_the_bottom():
    layer = Downsample(1, padding=0)
    with torch.no_grad():
        layer.conv.weight.zero_()
        layer.conv.weight[0, 0, 0, 0] = 1  # looks at the upper left of each window
        layer.conv.bias.zero_()
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert layer(x).flatten().tolist() == [0, 2, 8, 10]


def test_upsampling_doubles_or_reaches_a_size():
    layer = Upsample(4)
    assert layer(draw(1, 4, 3, 5)).shape == (1, 4, 6, 10)
    assert layer(draw(1, 4, 3, 5), size=(5, 9)).shape == (1, 4, 5, 9)
