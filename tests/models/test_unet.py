import pytest
import torch
from tiny_sd import SD1, SD2, SD2_V, UNET, X4_UPSCALER, adopt, their_unet

from latentgen.models.unet import UNet2DConditionModel, UNetConfig


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def tiny(**settings):
    torch.manual_seed(0)
    return UNet2DConditionModel(UNetConfig(**{**UNET, **settings})).requires_grad_(False)


@pytest.mark.parametrize("settings", [SD1, SD2_V, X4_UPSCALER], ids=["SD1", "SD2 v", "x4"])
def test_preparing_once_and_denoising_is_forward_exactly(settings):
    unet = tiny(**settings)
    x, context = draw(2, unet.config.in_channels, 8, 8), draw(2, 7, 32)
    labels = torch.tensor([3, 4]) if unet.config.num_class_embeds else None
    timesteps = torch.tensor([17.0, 801.0])
    prepared = unet.denoise(x, unet.prepare_time(timesteps, labels), unet.prepare_context(context))
    assert torch.equal(prepared, unet(x, timesteps, context, labels))


def test_timesteps_prepared_together_are_those_prepared_alone():
    unet, x, context = tiny(), draw(1, 4, 8, 8), draw(1, 7, 32)
    together = unet.prepare_time(torch.tensor([1.0, 500.0, 999.0]))
    prepared = unet.denoise(x, [shift[1:2] for shift in together], unet.prepare_context(context))
    assert torch.allclose(prepared, unet(x, 500, context), rtol=0, atol=1e-6)


def test_the_context_is_projected_outside_the_step():
    unet, calls = tiny(), []
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.register_forward_hook(lambda *_: calls.append(1))
    prepared = unet.prepare_context(draw(1, 7, 32))
    assert len(calls) == 2 * len(prepared) > 0
    calls.clear()
    unet.denoise(draw(1, 4, 8, 8), unet.prepare_time(torch.tensor([5.0])), prepared)
    assert calls == []


@pytest.mark.parametrize("condition", ["timestep", "context", "class"])
def test_every_condition_changes_the_output(condition):
    unet = tiny(num_class_embeds=5)
    given = {"timestep": 500, "encoder_hidden_states": draw(1, 7, 32), "class_labels": torch.tensor([1])}
    key, other = {
        "timestep": ("timestep", 400),
        "context": ("encoder_hidden_states", draw(1, 7, 32) + 1),
        "class": ("class_labels", torch.tensor([2])),
    }[condition]
    x = draw(1, 4, 8, 8)
    assert not torch.allclose(unet(x, **given), unet(x, **{**given, key: other}), atol=1e-5)


def test_class_labels_go_with_a_class_embedding():
    x, context = draw(1, 4, 8, 8), draw(1, 7, 32)
    with pytest.raises(ValueError, match="class_labels are missing, but num_class_embeds is 5"):
        tiny(num_class_embeds=5)(x, 1, context)
    with pytest.raises(ValueError, match="class_labels were given, but num_class_embeds is None"):
        tiny()(x, 1, context, torch.tensor([1]))


def test_attention_head_dim_is_a_number_of_heads():
    unet = tiny(**SD2)
    heads = [down.attentions[0].transformer_blocks[0].attn2.heads for down in unet.down_blocks[:2]]
    assert heads == [2, 4]
    assert [up.attentions[0].transformer_blocks[0].attn2.heads for up in unet.up_blocks[1:]] == [4, 2]


def test_upcast_attention_reaches_every_attention():
    for upcast in (False, True):
        unet = tiny(upcast_attention=upcast)
        assert {m.upcast for m in unet.modules() if hasattr(m, "upcast")} == {upcast}


def test_bfloat16_is_near_float32():
    ours = adopt(UNet2DConditionModel, their_unet(**SD2_V))
    x, context = draw(1, 4, 8, 8), draw(1, 7, 32)
    full = ours(x, 500, context)
    half = ours.bfloat16()(x.bfloat16(), 500, context.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().max() < 0.05 * full.abs().max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"down_block_types": ("DownBlock2D",) * 2}, r"down_block_types=.* has 2 entries; the network has 3 levels"),
        ({"up_block_types": ("UpBlock2D",) * 4}, r"up_block_types=.* has 4 entries; the network has 3 levels"),
        ({"attention_head_dim": (4, 4)}, r"attention_head_dim=\(4, 4\) has 2 entries; the network has 3 levels"),
        ({"only_cross_attention": (True,) * 4}, r"only_cross_attention=.* has 4 entries; the network has 3 levels"),
        ({"down_block_types": ("AttnDownBlock2D",) * 3}, "down_block_types holds AttnDownBlock2D.*; supported are"),
        ({"up_block_types": ("SkipUpBlock2D",) * 3}, "up_block_types holds SkipUpBlock2D.*; supported are"),
        ({"attention_head_dim": 3}, r"block_out_channels holds 16, which 3 heads \(attention_head_dim\)"),
        ({"freq_shift": 8}, r"freq_shift=8 does not fit; it must be at least 0 and below 8"),
        ({"freq_shift": -1}, r"freq_shift=-1 does not fit; it must be at least 0 and below 8"),
        (
            {"block_out_channels": (15, 30, 30), "norm_num_groups": 5, "attention_head_dim": 5},
            r"block_out_channels begins with 15; .* must be even",
        ),
        ({"norm_num_groups": 32}, r"block_out_channels holds 16, which .* 32 groups \(norm_num_groups\) must divide"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**{**UNET, "attention_head_dim": 4, **settings})
