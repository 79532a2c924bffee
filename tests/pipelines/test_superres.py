"""What a call of `SuperResPipeline` does with its arguments."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sd import make_upscaler_folder

from latentgen.pipelines.img2img import Img2ImgPipeline
from latentgen.pipelines.superres import SuperResPipeline
from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.weights.errors import WeightsError

CALL = {"num_inference_steps": 2, "output_type": "pt", "noise_level": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_upscaler_folder(tmp_path_factory.mktemp("upscaler") / "model")


@pytest.fixture(scope="module")
def upscale(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that its other scheduler clips pixels is as it should be
        pipe = SuperResPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    pipe.show_progress = False
    return pipe


def picture(seed=0, size=(8, 6)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(8, 6), (5, 7), (4, 4)])
def test_any_size_becomes_four_times_as_large(upscale, size):
    assert upscale("a", picture(size=size), **{**CALL, "output_type": "pil"}).images[0].size == (
        4 * size[0],
        4 * size[1],
    )


def test_the_picture_and_the_noise_level_matter(upscale):
    first = upscale("a", picture(0), seed=3, **CALL).images
    assert torch.equal(first, upscale("a", picture(0), seed=3, **CALL).images)
    assert (first - upscale("a", picture(1), seed=3, **CALL).images).abs().max() > 0.01
    assert (first - upscale("a", picture(0), seed=3, **{**CALL, "noise_level": 9}).images).abs().max() > 0.001


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
def test_pairs_and_neighbours(upscale, scheduler):
    prompts, pictures = ["a cat", "a dog"], [picture(0), picture(1)]
    call = {**CALL, "scheduler": scheduler}
    both = upscale(prompts, pictures, num_images_per_prompt=2, seed=5, **call)
    assert both.seeds == [5, 6, 7, 8]
    for k, which in enumerate([0, 0, 1, 1]):
        alone = upscale(prompts[which], pictures[which], seed=5 + k, **call).images[0]
        assert torch.allclose(both.images[k], alone, rtol=0, atol=1e-5)


def test_latents_of_ones_own(upscale):
    start = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    first, second = (upscale("a", picture(), seed=s, latents=start, **CALL).images for s in (1, 2))
    assert not torch.equal(first, second)  # the noise on the picture is the seed's
    with pytest.raises(ValueError, match=r"latents has shape \(1, 4, 8, 6\); it must be \(1, 4, 6, 8\)"):
        upscale("a", picture(), latents=start.transpose(2, 3), **CALL)


@pytest.mark.parametrize("level", [-1, 10, 2.0, True])
def test_bad_noise_levels(upscale, level):
    with pytest.raises(ValueError, match=f"noise_level={level} must be a whole number from 0 to 9"):
        upscale("a", picture(), noise_level=level)


def test_other_networks_and_folders_are_named(upscale, folder, pipe):
    with pytest.raises(
        ValueError, match="takes 4 channels, which is no upscaler's: Text2ImagePipeline or Img2ImgPipeline takes it"
    ):
        SuperResPipeline.from_pipe(upscale, unet=pipe.unet)
    with pytest.raises(ValueError, match="an upscaler, which SuperResPipeline loads"):
        Text2ImagePipeline.from_pipe(upscale)
    with pytest.warns(UserWarning, match=r"scaling_factor=0.5; the published upscaler's is 0.08333"):
        SuperResPipeline.from_pipe(upscale, vae=type(upscale.vae)(replace(upscale.vae.config, scaling_factor=0.5)))
    with pytest.raises(
        ValueError, match="of text_encoder, tokenizer, low_res_scheduler only text_encoder, tokenizer are there"
    ):
        SuperResPipeline.from_pipe(pipe)
    for other in (Text2ImagePipeline, Img2ImgPipeline):
        with pytest.raises(WeightsError, match="Use SuperResPipeline"):
            other.from_pretrained(folder)
