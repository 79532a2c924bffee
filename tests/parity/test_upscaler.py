"""`SuperResPipeline` against diffusers' `StableDiffusionUpscalePipeline`: the same folder, picture and seeds, float32."""

import diffusers
import numpy as np
import pytest
import torch
from test_image_to_image import LIMIT, SCHEDULERS, SEEDS, picture
from tiny_sd import make_upscaler_folder

from latentgen.pipelines.superres import SuperResPipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, with NumPy 2


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    """Ours and theirs."""
    folder = make_upscaler_folder(tmp_path_factory.mktemp("upscaler") / "model")
    ours = SuperResPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    theirs = diffusers.StableDiffusionUpscalePipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    ours.show_progress = False
    return ours, theirs


@pytest.mark.parametrize("level", [0, 5, 9])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_picture_is_that_of_diffusers(pipes, name, level):
    ours, theirs = pipes
    theirs.scheduler = SCHEDULERS[name].from_config(theirs.scheduler.config)
    call = {"num_inference_steps": 10, "noise_level": level, "output_type": "np", "negative_prompt": ["ugly", ""]}
    pictures, prompts = [picture(0, 12, 8), picture(1, 12, 8)], ["a cat word", "a dog"]
    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    expected = theirs(prompts, image=pictures, generator=generators, **call).images
    got = ours(prompts, pictures, seed=SEEDS, scheduler=name, **call).images
    assert got.shape == expected.shape == (2, 32, 48, 3)
    assert expected.std() > 0.02
    assert float(np.abs(got - expected).max()) <= LIMIT


def test_a_saved_folder_is_the_same_model_for_diffusers(pipes, tmp_path):
    ours, theirs = pipes
    ours.save_pretrained(tmp_path / "saved")
    again = diffusers.StableDiffusionUpscalePipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    theirs.scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    assert again.low_res_scheduler.config.clip_sample is True
    call = {"num_inference_steps": 2, "output_type": "np", "noise_level": 3}
    results = [p("a cat", image=picture(0, 8, 8), generator=torch.Generator().manual_seed(0), **call).images
               for p in (again, theirs)]  # fmt: skip
    assert np.array_equal(*results)
