"""What a call of `Img2ImgPipeline` does with its arguments."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.models.unet import UNet2DConditionModel
from latentgen.pipelines.img2img import Img2ImgPipeline
from latentgen.pipelines.text2image import Text2ImagePipeline

ROUNDING = (
    1e-4  # kernels sum in another order for another batch size: 1.5e-5 on some CPUs; other pictures differ by 0.01
)
CALL = {"num_inference_steps": 4, "strength": 0.5, "output_type": "pt", "scheduler": "ddim"}


@pytest.fixture
def img2img(pipe):
    return Img2ImgPipeline.from_pipe(pipe)


def picture(seed=0, size=(32, 32)):
    smooth = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(smooth).resize(size, Image.Resampling.BICUBIC)


def test_components_are_shared_and_go_back(pipe, img2img):
    assert all(getattr(img2img, name) is part for name, part in pipe.components.items())
    assert img2img.show_progress is pipe.show_progress
    pipe.max_pixels = 10
    with pytest.raises(ValueError, match="max_pixels=10"):
        Img2ImgPipeline.from_pipe(pipe)("a", picture())
    other = Text2ImagePipeline.from_pipe(img2img, scheduler=pipe.scheduler)
    assert other.components == pipe.components
    with pytest.raises(TypeError, match="does not know image_encoder"):
        Img2ImgPipeline.from_pipe(pipe, image_encoder=None)


def test_every_form_of_a_picture_is_the_same_picture(img2img):
    image = picture()
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    floats = array.astype(np.float32) / 255
    expected = img2img("a cat", image, seed=3, **CALL).images
    for form in (array, array[None], floats, tensor, tensor[None], tensor.float() / 255, [image], [array], (tensor,)):
        assert torch.allclose(img2img("a cat", form, seed=3, **CALL).images, expected, atol=1e-6)


def test_pairs_of_prompt_and_picture_then_images(img2img):
    """Two of each and two images: 0 0 1 1, of both. (diffusers takes pictures 0 1 0 1 for prompts 0 0 1 1.)"""
    prompts, pictures = ["a cat", "a dog"], [picture(0), picture(1)]
    result = img2img(prompts, pictures, num_images_per_prompt=2, seed=5, **CALL)
    assert result.seeds == [5, 6, 7, 8]
    for k, (prompt, image) in enumerate(zip([0, 0, 1, 1], [0, 0, 1, 1], strict=True)):
        alone = img2img(prompts[prompt], pictures[image], seed=5 + k, **CALL).images[0]
        assert torch.allclose(result.images[k], alone, rtol=0, atol=ROUNDING)
        other = img2img(prompts[prompt], pictures[1 - image], seed=5 + k, **CALL).images[0]
        assert (result.images[k] - other).abs().max() > 0.01


@pytest.mark.parametrize(("prompts", "pictures"), [(3, 1), (1, 3)])
def test_one_of_either_goes_with_all_of_the_other(img2img, prompts, pictures):
    texts, images = ["a cat", "a dog", "word"][:prompts], [picture(k) for k in range(pictures)]
    result = img2img(texts, images, num_images_per_prompt=2, seed=5, **CALL)
    assert len(result.images) == 6
    for k in range(6):
        alone = img2img(texts[k // 2 % prompts], images[k // 2 % pictures], seed=5 + k, **CALL).images[0]
        assert torch.allclose(result.images[k], alone, rtol=0, atol=ROUNDING)


def test_numbers_that_do_not_pair_are_refused(img2img):
    with pytest.raises(ValueError, match="there are 2 prompts and 3 pictures; give as many of each"):
        img2img(["a", "b"], [picture()] * 3, **CALL)


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a", "ddpm"])
def test_an_image_does_not_depend_on_its_neighbours(img2img, scheduler):
    call = {**CALL, "scheduler": scheduler}
    alone = img2img("a cat", picture(1), seed=42, **call).images[0]
    batch = img2img(["a dog", "a cat"], [picture(0), picture(1)], seed=[1, 42], **call).images
    assert torch.allclose(batch[1], alone, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("size", [(32, 32), (33, 31), (7, 45), (1, 1)])
def test_any_size_comes_back_in_that_size(img2img, size):
    image = picture(size=size)
    drawn = img2img("a cat", image, **{**CALL, "output_type": "pil"}, seed=0).images[0]
    assert drawn.size == size
    if size == (33, 31):  # what is outside is repeated from the edge, and cut off
        wider = Image.fromarray(np.pad(np.asarray(image), ((0, 1), (0, 3), (0, 0)), mode="edge"))
        whole = img2img("a cat", wider, **{**CALL, "output_type": "pil"}, seed=0).images[0]
        assert np.array_equal(np.asarray(whole)[:31, :33], np.asarray(drawn))


@pytest.mark.parametrize(
    ("strength", "steps", "run"),
    [(1, 4, 4), (0.5, 4, 2), (0.25, 4, 1), (0.74, 4, 2), (0.29, 100, 29), (np.float32(0.7), 10, 7)],
)
def test_strength_is_a_share_of_the_steps_rounded_down(img2img, monkeypatch, strength, steps, run):
    seen = []
    real = UNet2DConditionModel.denoise
    monkeypatch.setattr(UNet2DConditionModel, "denoise", lambda self, *a: seen.append(1) or real(self, *a))
    img2img("a", picture(), strength=strength, num_inference_steps=steps, scheduler="ddim", output_type="latent")
    assert len(seen) == run


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        (0.0, r"strength=0.0 of 20 steps leaves none; .* for 20 steps at least 0.05"),
        (0.04, r"strength=0.04 of 20 steps leaves none; .* at least 0.05"),
        (1.1, r"strength=1.1 must be above 0 and at most 1, the share of the 20 steps that is run"),
        (-0.1, "strength=-0.1 must be"),
        (float("nan"), "strength=nan must be"),
        ("0.5", "strength='0.5' is a str"),
    ],
)
def test_bad_strength(img2img, strength, message):
    with pytest.raises(ValueError, match=message):
        img2img("a", picture(), strength=strength, num_inference_steps=20)


def test_the_least_strength_that_is_named_runs(img2img):
    for steps in (3, 7, 20, 49):
        with pytest.raises(ValueError) as caught:
            img2img("a", picture(), strength=1e-9, num_inference_steps=steps)
        least = float(str(caught.value).split("at least ")[1].split(". ")[0])
        for number in (least, np.float32(least)):
            img2img("a", picture(), strength=number, num_inference_steps=steps, output_type="latent")


def test_a_low_strength_keeps_more_of_the_picture(img2img):
    image = torch.from_numpy(np.asarray(picture()).copy()).permute(2, 0, 1) / 255
    through = img2img.vae.decode(img2img.vae.encode(image[None] * 2 - 1).mode())[0] / 2 + 0.5
    far = [
        float(
            (
                img2img("a", image, strength=s, num_inference_steps=20, seed=0, output_type="pt").images[0] - through
            ).norm()
        )
        for s in (0.05, 0.3, 1.0)
    ]
    assert far[0] < far[1] < far[2]


@pytest.fixture
def overflowing(img2img, monkeypatch):
    """An encoder whose values are infinite in bfloat16, and in float32 if the function that is given says so."""
    real, always = AutoencoderKL.encode, []

    def encode(self, pictures):
        posterior = real(self, pictures)
        if always or self.dtype != torch.float32:
            posterior.mean = posterior.mean * float("inf")
        return posterior

    monkeypatch.setattr(AutoencoderKL, "encode", encode)
    return Img2ImgPipeline.from_pipe(img2img, vae=copy.deepcopy(img2img.vae).bfloat16()), always


AGAIN = r"the encoder \(vae\) overflowed in torch.bfloat16 and is run again in float32"


def test_an_encoder_that_overflows_is_run_again_in_float32(overflowing):
    half, _ = overflowing
    with pytest.warns(UserWarning, match=AGAIN):
        drawn = half("a", picture(), seed=0, **CALL).images
    assert drawn.isfinite().all()
    assert half.vae.dtype == torch.bfloat16


@pytest.mark.filterwarnings(f"ignore:{AGAIN}")
def test_an_encoder_that_overflows_in_float32_too_is_an_error(overflowing):
    half, always = overflowing
    always.append(True)
    with pytest.raises(FloatingPointError, match=r"the encoder \(vae\) gave values that are not finite, in float32"):
        half("a", picture(), seed=0, **CALL)
