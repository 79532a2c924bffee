"""Schedulers that a caller brings: one for pixels, or for a network that was trained otherwise, is warned of."""

import dataclasses
import json

import pytest
import torch

from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.schedulers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

CALL = {"num_inference_steps": 2, "seed": 5, "output_type": "latent"}
CLIPS = "has clip_sample=True, which is for pixels"


@pytest.fixture
def silent(folder_copy):
    """A folder whose scheduler file says nothing of clipping and of the offset, as older ones do."""
    path = folder_copy / "scheduler" / "scheduler_config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("clip_sample", "steps_offset")}
    path.write_text(json.dumps(config))
    return folder_copy


def load(folder, **components):
    return Text2ImagePipeline.from_pretrained(folder, device="cpu", dtype="float32", **components)


def test_a_scheduler_that_clips_is_told_of_wherever_it_comes_in(pipe, silent):
    clipping = DDIMScheduler(
        **{name: getattr(pipe.scheduler, name) for name in ("beta_start", "beta_end", "beta_schedule")}
    )
    with pytest.warns(UserWarning, match=CLIPS) as caught:
        pipe("a cat", scheduler=clipping, **CALL)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=CLIPS):
        pipe.scheduler = clipping
    with pytest.warns(UserWarning, match=CLIPS):
        load(silent, scheduler=DDIMScheduler.from_pretrained(silent, subfolder="scheduler"))


def test_what_the_warning_says_helps(pipe, recwarn):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe("a cat", scheduler=dataclasses.replace(pipe.scheduler, clip_sample=False), **CALL)
    assert not recwarn.list


def test_names_never_clip(silent, recwarn):
    expected = load(silent)("a cat", scheduler="ddim", **CALL).images
    for brought in (DPMSolverMultistepScheduler, EulerDiscreteScheduler):
        pipe = load(silent, scheduler=brought.from_pretrained(silent, subfolder="scheduler"))
        assert torch.equal(pipe("a cat", scheduler="ddim", **CALL).images, expected)
    assert not [w for w in recwarn if "clip" in str(w.message)]


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_calls_scheduler_of_another_noise_schedule_is_told_of(pipe, name):
    cls = {"DDIMScheduler": DDIMScheduler, "EulerDiscreteScheduler": EulerDiscreteScheduler}[name]
    other = cls.from_config({"beta_start": 0.1, "prediction_type": "sample", "beta_end": 0.2, "clip_sample": False})
    with pytest.warns(UserWarning, match="is for a model that was trained otherwise") as caught:
        pipe("a cat", scheduler=other, **CALL)
    message = str(caught[0].message)
    assert "beta_start=0.1 (the model has 0.00085)" in message
    assert "prediction_type='sample' (the model has 'epsilon')" in message
    assert "num_train_timesteps" not in message
    assert f"{name}.from_config(pipe.scheduler.config)" in message


def test_guidance_of_0_is_told_of(pipe, recwarn):
    with pytest.warns(UserWarning, match="guidance_scale=0 follows the negative prompt alone"):
        first = pipe("a cat", guidance_scale=0, **CALL).images
    with pytest.warns(UserWarning, match="1 runs without guidance"):
        assert torch.allclose(pipe("a dog", guidance_scale=0.0, **CALL).images, first, atol=1e-5)
    recwarn.clear()
    pipe("a cat", guidance_scale=0.01, **CALL)
    pipe("a cat", negative_prompt="", guidance_scale=1, **CALL)  # says what is so in any case
    assert not recwarn.list
