"""`Img2ImgPipeline` against diffusers' `StableDiffusionImg2ImgPipeline`: the same folder, picture and seeds, float32.

A generator of diffusers and a seed of ours draw the same: first the posterior's noise, then the start's.
"""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sd import SD1, SD2_V, make_model_folder

from latentgen.pipelines.img2img import Img2ImgPipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, with NumPy 2

LIMIT = 1e-4
SEEDS = [11, 12]
SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
}
FAMILIES = {
    "epsilon": {"unet": SD1},
    "v": {"unet": SD2_V, "scheduler": {"prediction_type": "v_prediction"}},
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """Our pipeline and theirs."""
    folder = make_model_folder(tmp_path_factory.mktemp("family") / "model", **FAMILIES[request.param])
    ours = Img2ImgPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    theirs = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None
    )
    theirs.set_progress_bar_config(disable=True)
    ours.show_progress = False
    return ours, theirs


def picture(seed=0, width=40, height=32):
    smooth = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC)


def both(ours, theirs, name, image, **options):
    theirs.scheduler = SCHEDULERS[name].from_config(theirs.scheduler.config)
    prompts = ["a cat word", "a dog"][: len(options.pop("seeds", SEEDS))]
    generators = [torch.Generator().manual_seed(s) for s in SEEDS[: len(prompts)]]
    expected = theirs(prompts, image=image, generator=generators, output_type="np", **options).images
    got = ours(prompts, image, seed=SEEDS[: len(prompts)], output_type="np", scheduler=name, **options).images
    assert got.shape == expected.shape
    assert expected.std() > 0.02
    return got, expected


@pytest.mark.parametrize(("strength", "steps"), [(0.8, 20), (0.3, 20), (1.0, 10), (0.5, 3)])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_picture_is_that_of_diffusers(family, name, strength, steps):
    got, expected = both(
        *family,
        name,
        [picture(0), picture(1)],
        strength=strength,
        num_inference_steps=steps,
        negative_prompt=["ugly", ""],
    )
    largest = float(np.abs(got - expected).max())
    assert largest <= LIMIT


def test_a_strength_that_is_no_sum_of_halves_runs_the_steps_that_it_says(family):
    """0.58 of 50 steps are 29; in floating point 28.99..., and diffusers runs 28."""
    ours, theirs = family
    ran = []
    ours("a", picture(), strength=0.58, num_inference_steps=50, callback_on_step_end=lambda _, i, *__: ran.append(i))
    assert len(ran) == 29
    theirs.scheduler.set_timesteps(50)
    assert theirs.get_timesteps(50, 0.58, "cpu")[1] == 28
