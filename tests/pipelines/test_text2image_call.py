"""What a call of `Text2ImagePipeline` does with its arguments."""

import dataclasses
import sys
import warnings
from collections import deque

import numpy as np
import pytest
import torch
from PIL import Image

from latentgen.diffusion import StopSampling
from latentgen.models.unet import UNet2DConditionModel
from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.schedulers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from latentgen.text import encode_prompts

FEW = {"num_inference_steps": 2, "seed": 5, "output_type": "pt"}


@pytest.fixture
def batches(monkeypatch):
    """The UNet's batch size at each evaluation."""
    seen = []
    real = UNet2DConditionModel.denoise
    monkeypatch.setattr(
        UNet2DConditionModel, "denoise", lambda self, x, *rest: seen.append(len(x)) or real(self, x, *rest)
    )
    return seen


def draw(count=1):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_output_types_show_the_same_pictures(pipe):
    call = {"num_inference_steps": 2, "seed": 5, "num_images_per_prompt": 2}
    pt = pipe("a cat", output_type="pt", **call).images
    assert pt.shape == (2, 3, 32, 32)
    assert pt.dtype == torch.float32
    assert 0 <= pt.min() < pt.max() <= 1
    array = pipe("a cat", output_type="np", **call).images
    assert array.dtype == np.float32
    assert np.array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    pictures = pipe("a cat", **call).images
    assert [(type(p), p.mode, p.size) for p in pictures] == [(Image.Image, "RGB", (32, 32))] * 2
    assert np.array_equal(np.stack(pictures), (array * 255).round().astype(np.uint8))
    latents = pipe("a cat", output_type="latent", **call).images
    decoded = pipe.vae.decode(pipe.vae.unscale(latents))
    assert torch.allclose((decoded / 2 + 0.5).clamp(0, 1), pt, atol=1e-6)


@pytest.mark.parametrize(("scale", "per_image"), [(1, 1), (1.0, 1), (7.5, 2), (0, 2)])
def test_guidance_doubles_the_batch_and_scale_1_does_not(pipe, batches, scale, per_image):
    pipe(["a", "b", "c"], guidance_scale=scale, scheduler="ddim", num_inference_steps=3, seed=0, output_type="latent")
    assert batches == [3 * per_image] * 3


def test_images_are_ordered_by_prompt_then_by_image(pipe):
    both = pipe(["a cat", "a dog"], num_images_per_prompt=2, **FEW)
    assert both.seeds == [5, 6, 7, 8]
    for k, (prompt, seed) in enumerate(zip(["a cat", "a cat", "a dog", "a dog"], both.seeds, strict=True)):
        alone = pipe(prompt, **{**FEW, "seed": seed}).images[0]
        assert torch.allclose(both.images[k], alone, rtol=0, atol=1e-5)


def test_prompts_may_be_any_sequence_or_array(pipe):
    listed = pipe(["a", "b"], **FEW).images
    for prompts in (("a", "b"), np.array(["a", "b"]), deque(["a", "b"])):
        assert torch.equal(pipe(prompts, **FEW).images, listed)
    assert torch.equal(pipe(np.str_("a"), **FEW).images, pipe("a", **FEW).images)


def test_numbers_of_numpy_are_numbers(pipe):
    plain = {"num_inference_steps": 2, "height": 16, "guidance_scale": 3.0, "eta": 1.0, "clip_skip": 1, "seed": 5,
             "guidance_rescale": 0.5, "num_images_per_prompt": 2}  # fmt: skip
    theirs = {name: np.int64(v) if isinstance(v, int) else np.float32(v) for name, v in plain.items()}
    call = {"scheduler": "ddim", "output_type": "latent"}
    assert torch.equal(pipe("a cat", **theirs, **call).images, pipe("a cat", **plain, **call).images)


def test_negative_prompts_go_to_their_own_prompts(pipe):
    def pictures(**options):
        return pipe(["a", "b"], **{**FEW, "seed": [1, 1]}, **options).images

    listed = pictures(negative_prompt=["red", "blue"])
    assert torch.allclose(listed[0], pictures(negative_prompt="red")[0], rtol=0, atol=1e-5)
    assert torch.allclose(listed[1], pictures(negative_prompt=("blue",))[1], rtol=0, atol=1e-5)
    assert not torch.allclose(listed[0], pictures(negative_prompt="blue")[0], atol=1e-4)
    assert torch.equal(pictures(), pictures(negative_prompt=""))


def test_guidance_leads_from_the_negative_prompt_to_the_prompt(pipe):
    """At scale 0 it has not left the negative prompt."""
    there = pipe("a cat", negative_prompt="ugly", guidance_scale=0, **FEW).images
    assert torch.allclose(there, pipe("ugly", guidance_scale=1, **FEW).images, rtol=0, atol=1e-5)
    assert not torch.allclose(there, pipe("a cat", guidance_scale=1, **FEW).images, atol=1e-4)


def test_the_empty_prompt_draws_without_a_condition(pipe):
    """Prompt and negative prompt are the same then, so the scale of guidance has no effect."""
    assert torch.allclose(pipe("", **FEW).images, pipe("", guidance_scale=1, **FEW).images, rtol=0, atol=1e-5)


def test_embeddings_stand_for_prompts(pipe):
    positive, negative = (encode_prompts(pipe.tokenizer, pipe.text_encoder, [t]) for t in ("a cat", "ugly"))
    by_text = pipe("a cat", negative_prompt="ugly", **FEW).images
    assert torch.equal(pipe(prompt_embeds=positive, negative_prompt_embeds=negative, **FEW).images, by_text)
    assert torch.equal(pipe(prompt_embeds=positive, negative_prompt="ugly", **FEW).images, by_text)
    assert torch.equal(pipe("a cat", negative_prompt_embeds=negative.double(), **FEW).images, by_text)


@pytest.mark.parametrize(("height", "width"), [(16, 40), (36, 20), (None, 64)])
def test_any_multiple_of_the_factor_can_be_drawn(pipe, height, width):
    image = pipe("a cat", height=height, width=width, num_inference_steps=1).images[0]
    assert image.size == (width, height or 32)


@pytest.mark.parametrize(("size", "shown"), [((6, 10), (40, 24)), (8, (32, 32))])
def test_the_default_size_is_that_of_training(pipe, size, shown):
    unet = UNet2DConditionModel(dataclasses.replace(pipe.unet.config, sample_size=size))
    unet.load_state_dict(pipe.unet.state_dict())
    other = Text2ImagePipeline(**{**pipe.components, "unet": unet})
    assert other("a cat", num_inference_steps=1, show_progress=False).images[0].size == shown


def test_a_model_that_says_no_size_must_be_told_one(pipe):
    unet = UNet2DConditionModel(dataclasses.replace(pipe.unet.config, sample_size=None))
    other = Text2ImagePipeline(**{**pipe.components, "unet": unet})
    with pytest.raises(ValueError, match="height must be given: the model's config does not say what size"):
        other("a cat", width=32)
    assert other("a", height=16, width=32, num_inference_steps=1, show_progress=False).images[0].size == (32, 16)


def test_the_schedulers_of_a_call_are_of_that_call(pipe):
    mine = pipe.scheduler
    assert isinstance(mine, PNDMScheduler)
    named = pipe("a cat", scheduler="euler", **FEW).images
    given = pipe("a cat", scheduler=EulerDiscreteScheduler.from_config(mine.config), **FEW).images
    by_class = pipe("a cat", scheduler="EulerDiscreteScheduler", **FEW).images
    assert torch.equal(named, given)
    assert torch.equal(named, by_class)
    assert pipe.scheduler is mine
    assert not torch.allclose(named, pipe("a cat", **FEW).images, atol=1e-3)
    pipe.scheduler = EulerDiscreteScheduler.from_config(mine.config)
    assert torch.equal(pipe("a cat", **FEW).images, named)


def test_eta_is_ddims(pipe):
    call = {"scheduler": "ddim", **FEW}
    still, moved = pipe("a cat", **call).images, pipe("a cat", eta=1.0, **call).images
    assert not torch.allclose(still, moved, atol=1e-3)
    preset = DDIMScheduler.from_config(pipe.scheduler.config)
    assert torch.equal(pipe("a", **{**call, "scheduler": dataclasses.replace(preset, eta=1.0)}).images,
                       pipe("a", eta=1.0, **call).images)  # fmt: skip


def test_latents_are_the_noise_to_start_from(pipe):
    start = draw(2)
    kept = start.clone()
    given = pipe("a cat", latents=start, num_images_per_prompt=2, **FEW).images
    assert torch.equal(start, kept)
    assert torch.equal(given, pipe("a cat", latents=start.double(), num_images_per_prompt=2, **FEW).images)
    own = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    assert torch.equal(pipe("a cat", latents=own, **FEW).images, pipe("a cat", **FEW).images)


@pytest.mark.parametrize("scheduler", ["pndm", "euler_a", "dpm++", "heun"])
def test_the_callback_has_the_form_that_users_know(pipe, scheduler):
    seen = []

    def callback(pipe_, step, timestep, values):
        seen.append((pipe_, step, timestep, set(values), values["latents"].shape))

    pipe("a cat", scheduler=scheduler, num_inference_steps=3, callback_on_step_end=callback)
    assert [(p is pipe, step, keys, shape) for p, step, _, keys, shape in seen] == [
        (True, step, {"latents"}, (1, 4, 8, 8)) for step in range(3)
    ]
    assert seen[0][2] > seen[1][2] > seen[2][2]


def test_latents_that_a_callback_returns_go_on(pipe):
    fixed = draw().half()
    result = pipe("a cat", callback_on_step_end=lambda *_: {"latents": fixed}, **{**FEW, "output_type": "latent"})
    assert torch.equal(result.images, fixed.float())
    unchanged = pipe("a cat", callback_on_step_end=lambda *_: {}, **FEW).images
    assert torch.equal(unchanged, pipe("a cat", **FEW).images)


def test_a_callback_can_stop_the_call_and_nothing_stays_behind(pipe):
    seen = []

    def callback(pipe, step, timestep, values):
        seen.append(values["latents"].clone())
        if step == 1:
            raise StopSampling

    before = dict(vars(pipe))
    call = {"num_inference_steps": 10, "seed": 5, "output_type": "latent"}
    stopped = pipe("a cat", callback_on_step_end=callback, **call)
    assert len(seen) == 2
    assert torch.equal(stopped.images, seen[1])
    assert vars(pipe) == before
    whole = pipe("a cat", **call).images
    assert torch.equal(pipe("a cat", **call).images, whole)
    assert not torch.equal(whole, stopped.images)


def test_a_progress_bar_is_shown_and_can_be_switched_off(pipe, capfd):
    pipe("a cat", num_inference_steps=3)
    assert capfd.readouterr().err == ""
    pipe("a cat", num_inference_steps=3, show_progress=True)
    assert "3/3" in capfd.readouterr().err
    pipe.show_progress = True
    pipe("a cat", num_inference_steps=3)
    assert "3/3" in capfd.readouterr().err
    pipe("a cat", num_inference_steps=3, show_progress=False)
    assert capfd.readouterr().err == ""
    assert Text2ImagePipeline(**pipe.components).show_progress


def test_a_long_prompt_is_cut_with_one_warning_that_quotes_what_is_lost(pipe):
    with pytest.warns(UserWarning, match="this end of it is ignored") as caught:
        pipe("a " * 75 + "dragon", num_inference_steps=1)
    assert len(caught) == 1
    assert "'dragon'" in str(caught[0].message)


def test_a_negative_prompt_without_guidance_is_said_to_have_no_effect(pipe):
    with pytest.warns(UserWarning, match="guidance_scale=1 runs without guidance: the negative prompt has no effect"):
        pipe("a cat", guidance_scale=1, negative_prompt="ugly", num_inference_steps=1)


def test_guidance_rescale_without_guidance_is_said_to_have_no_effect(pipe):
    with pytest.warns(UserWarning, match="guidance_scale=1 runs without guidance: guidance_rescale has no effect"):
        pipe("a cat", guidance_scale=1, guidance_rescale=0.5, num_inference_steps=1)


def test_clip_skip_beside_embeddings_is_said_to_have_no_effect(pipe):
    given = encode_prompts(pipe.tokenizer, pipe.text_encoder, ["a cat"])
    for options in ({"negative_prompt_embeds": given}, {"guidance_scale": 1}):
        with pytest.warns(UserWarning, match="clip_skip has no effect"):
            pipe(prompt_embeds=given, clip_skip=1, **options, **FEW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixed = pipe(prompt_embeds=given, clip_skip=1, **FEW).images  # of the negative prompt
    assert not torch.equal(mixed, pipe(prompt_embeds=given, **FEW).images)


def test_warnings_point_at_the_call_and_a_cut_prompt_is_told_each_time(pipe):
    line = sys._getframe().f_lineno + 4
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            pipe("a " * 80, guidance_scale=1, negative_prompt="ugly", num_inference_steps=1)
    assert {(warning.filename, warning.lineno) for warning in caught} == {(__file__, line)}
    assert ["tokens" in str(warning.message) for warning in caught] == [True, False, True]


def test_clip_skip_changes_the_picture_and_zero_is_none(pipe):
    plain = pipe("a cat", **FEW).images
    assert torch.equal(pipe("a cat", clip_skip=0, **FEW).images, plain)
    assert not torch.equal(pipe("a cat", clip_skip=1, **FEW).images, plain)


def test_gradients_are_neither_kept_nor_switched_off_for_the_caller(pipe):
    image = pipe("a cat", **FEW).images
    assert not image.requires_grad
    assert torch.is_grad_enabled()
