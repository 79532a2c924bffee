"""The codebook, from first principles."""

import pytest
import torch

from latentgen.models import vq_model
from latentgen.models.vq_model import Codebook, VQConfig, VQModel

LEVELS = {
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


@pytest.mark.parametrize("at_once", [1, 7, 10**9])
def test_every_latent_becomes_the_nearest_entry(monkeypatch, at_once):
    monkeypatch.setattr(vq_model, "AT_ONCE", at_once)
    torch.manual_seed(0)
    codebook = Codebook(7, 3)
    z = torch.randn(2, 3, 4, 5)
    entries = codebook.embedding.weight
    rounded, indices = codebook(z), codebook.indices(z)
    assert indices.shape == (2, 4, 5)
    for b in range(2):
        for y in range(4):
            for x in range(5):
                distances = (entries - z[b, :, y, x]).square().sum(dim=1)
                assert indices[b, y, x] == distances.argmin()
                assert torch.equal(rounded[b, :, y, x], entries[distances.argmin()])
    assert torch.equal(codebook(rounded), rounded)


def test_decoding_rounds_and_encoding_does_not():
    torch.manual_seed(0)
    model = VQModel(VQConfig(**LEVELS)).eval()
    with torch.no_grad():
        model.quantize.embedding.weight.normal_()
        pictures = torch.rand(1, 3, 8, 8)
        z = model.encode(pictures)
        assert not torch.isclose(z, model.quantize(z)).all()
        nearby = z + 1e-6
        assert torch.equal(model.decode(nearby), model.decode(z))
        assert not torch.equal(model.decode(nearby, quantize=False), model.decode(z, quantize=False))
        assert torch.equal(model(pictures), model.decode(z))


@pytest.mark.parametrize(
    ("key", "value"), [("norm_type", "spatial"), ("lookup_from_codebook", True), ("act_fn", "relu")]
)
def test_what_is_not_implemented_is_refused(key, value):
    with pytest.raises(ValueError, match=f"VQConfig: {key}={value!r} is not supported"):
        VQModel.from_config({**LEVELS, key: value})
