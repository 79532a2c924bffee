"""Calls whose work is divided: the same pipelines, the same arguments, and no network sees more than a tile."""

import numpy as np
import pytest
import torch
from PIL import Image

from latentgen import Img2ImgPipeline, InpaintPipeline, Tiling
from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.models.unet import UNet2DConditionModel

CALL = {"num_inference_steps": 2, "seed": 5, "output_type": "pt", "scheduler": "ddim"}


@pytest.fixture
def shown(monkeypatch):
    """The largest sides that the UNet and the decoder were shown, and the decoder's batches."""
    seen = {"unet": [], "vae": [], "batch": [], "encoder": []}
    denoise, decode, encode = UNet2DConditionModel.denoise, AutoencoderKL.decode, AutoencoderKL.encode

    def denoised(self, x, *rest):
        seen["unet"].append(max(x.shape[-2:]))
        return denoise(self, x, *rest)

    def decoded(self, z):
        seen["vae"].append(max(z.shape[-2:]))
        seen["batch"].append(len(z))
        return decode(self, z)

    def encoded(self, pictures):
        seen["encoder"].append((len(pictures), max(pictures.shape[-2:])))
        return encode(self, pictures)

    monkeypatch.setattr(AutoencoderKL, "encode", encoded)
    monkeypatch.setattr(UNet2DConditionModel, "denoise", denoised)
    monkeypatch.setattr(AutoencoderKL, "decode", decoded)
    return seen


def test_no_network_sees_more_than_a_tile(pipe, shown):
    big = {"height": 64, "width": 96}
    result = pipe("a cat", tiling=Tiling(unet=32, vae=48, overlap=16), **big, **CALL).images
    assert result.shape == (1, 3, 64, 96)
    assert (max(shown["unet"]), max(shown["vae"])) == (8, 12)
    for kinds in shown.values():
        kinds.clear()
    pipe("a cat", tiling=Tiling(vae=48, overlap=16), **big, **CALL)
    assert (max(shown["unet"]), max(shown["vae"])) == (24, 12)


def test_a_picture_that_fits_a_tile_is_not_changed(pipe):
    assert torch.equal(pipe("a", tiling=Tiling(unet=32, vae=32, overlap=8), **CALL).images, pipe("a", **CALL).images)


def test_pictures_are_decoded_a_few_at_a_time(pipe, shown):
    call = {**CALL, "num_images_per_prompt": 5}
    whole = pipe("a cat", **call).images
    assert torch.allclose(pipe("a cat", tiling=Tiling(batch=2), **call).images, whole, atol=1e-5)
    assert shown["batch"] == [5, 2, 2, 1]


def test_pipelines_that_are_given_pictures_take_tiles_too(pipe, shown):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    mask = Image.new("L", image.size, 255)
    tiling = Tiling(unet=32, vae=32, overlap=16)
    anew = Img2ImgPipeline.from_pipe(pipe)("a", image, tiling=tiling, strength=1, **CALL).images
    painted = InpaintPipeline.from_pipe(pipe)("a", image, mask, tiling=tiling, **CALL).images
    assert anew.shape == painted.shape == (1, 3, 50, 70)
    assert (max(shown["unet"]), max(shown["vae"])) == (8, 8)
    assert max(side for _, side in shown["encoder"]) == 32


def test_pictures_are_encoded_a_few_at_a_time_and_in_tiles(pipe, shown):
    """What the encoder is shown; what comes of the tiles is tested where they are put together."""
    smooth = torch.nn.functional.interpolate(torch.rand(3, 3, 2, 2), (64, 64), mode="bilinear")
    call = {**CALL, "strength": 1, "num_inference_steps": 1}
    img2img = Img2ImgPipeline.from_pipe(pipe)
    whole = img2img("a", smooth, **call).images
    tiled = img2img("a", smooth, tiling=Tiling(vae=48, overlap=24, batch=2), **call).images
    assert shown["encoder"][0] == (3, 64)
    assert set(shown["encoder"][1:]) == {(2, 48), (1, 48)}
    assert whole.shape == tiled.shape


@pytest.mark.parametrize(("tiling", "message"), [
    (64, r"tiling=64 must be a latentgen.Tiling"),
    (Tiling(vae=30, overlap=4), "vae=30 must be a multiple of 4"),
])  # fmt: skip
def test_bad_tiling(pipe, tiling, message):
    with pytest.raises(ValueError, match=message):
        pipe("a", tiling=tiling, **CALL)
