"""`VQModel` against diffusers' 0.40, with the same weights: float32, largest difference over largest value."""

import diffusers
import pytest
import torch
from tiny_sd import VAE, adopt, relative_error, scatter

from latentgen.models.vq_model import VQModel

LIMIT = 1e-5
ATTENTION = {
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
}
VARIANTS = {
    "f = 4": {},
    "no attention": {"mid_block_add_attention": False},
    "attention at a level": ATTENTION,
    "many entries": {"num_vq_embeddings": 1000, "latent_channels": 8},
    "narrow codebook": {"latent_channels": 6, "vq_embed_dim": 2},
    "more blocks": {"layers_per_block": 2},
}


@pytest.fixture(params=VARIANTS)
def theirs(request):
    torch.manual_seed(0)
    model = scatter(diffusers.VQModel(**{**VAE, "latent_channels": 3, **VARIANTS[request.param]}))
    with torch.no_grad():  # entries that lie where latents do, and far enough apart to be told from one another
        model.quantize.embedding.weight.copy_(torch.randn(model.quantize.embedding.weight.shape))
    return model


def pictures():
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_latents_and_pictures_are_those_of_diffusers(theirs):
    ours = adopt(VQModel, theirs)
    z, expected = ours.encode(pictures()), theirs.encode(pictures()).latents
    assert relative_error(z, expected) <= LIMIT
    assert relative_error(ours.decode(expected), theirs.decode(expected).sample) <= LIMIT
    plain = theirs.decode(expected, force_not_quantize=True).sample
    assert relative_error(ours.decode(expected, quantize=False), plain) <= LIMIT
    assert relative_error(ours.decode(expected), plain) > 0.01
    assert relative_error(ours(pictures()), theirs(pictures()).sample) <= LIMIT


def test_files_go_both_ways(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    ours = VQModel.from_pretrained(tmp_path / "theirs", device="cpu", dtype="float32")
    ours.save_pretrained(tmp_path / "ours")
    again = diffusers.VQModel.from_pretrained(tmp_path / "ours")
    assert again.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())
    for key, value in theirs.config.items():
        if not key.startswith("_") and key not in ("vq_embed_dim", "act_fn", "norm_type", "lookup_from_codebook"):
            assert again.config[key] == (list(value) if isinstance(value, tuple) else value), key
