"""`InpaintPipeline`'s plain decoder output against diffusers' `StableDiffusionInpaintPipeline`, float32.

A generator of diffusers and a seed of ours draw the same. Masks lie along the latents' cells: for others diffusers looks at one
pixel of each cell (tests/pipelines/test_inpaint.py has those).
"""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from test_image_to_image import LIMIT, SCHEDULERS, SEEDS, picture
from tiny_sd import SD1, SD2_V, make_model_folder

from latentgen.pipelines.inpaint import InpaintPipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, with NumPy 2

FAMILIES = {
    "4 channels": {"unet": SD1},
    "4 channels, v": {"unet": SD2_V, "scheduler": {"prediction_type": "v_prediction"}},
    "9 channels": {"unet": {**SD1, "in_channels": 9}},
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """Our pipeline and theirs."""
    folder = make_model_folder(tmp_path_factory.mktemp("family") / "model", **FAMILIES[request.param])
    ours = InpaintPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    theirs = diffusers.StableDiffusionInpaintPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None
    )
    theirs.set_progress_bar_config(disable=True)
    ours.show_progress = False
    return ours, theirs


def mask(width=40, height=32):
    pixels = np.zeros((height, width), np.uint8)
    pixels[8:24, 12:32] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_picture_is_that_of_diffusers(family, name, strength):
    ours, theirs = family
    theirs.scheduler = SCHEDULERS[name].from_config(theirs.scheduler.config)
    call = {"num_inference_steps": 20, "strength": strength, "output_type": "np", "negative_prompt": ["ugly", ""]}
    pictures, prompts = [picture(0), picture(1)], ["a cat word", "a dog"]
    expected = theirs(
        prompts, image=pictures, mask_image=mask(), height=32, width=40,
        generator=[torch.Generator().manual_seed(s) for s in SEEDS], **call,
    ).images  # fmt: skip
    got = ours(prompts, pictures, mask(), seed=SEEDS, scheduler=name, keep_unmasked=False, **call).images
    assert got.shape == expected.shape
    assert expected.std() > 0.02
    largest = float(np.abs(got - expected).max())
    assert largest <= LIMIT


def test_the_mask_matters(family):
    ours, _ = family
    call = {"num_inference_steps": 4, "output_type": "np", "seed": 3, "scheduler": "ddim", "keep_unmasked": False}
    all_white = Image.new("L", (40, 32), 255)
    drawn = [ours("a cat", picture(), m, **call).images for m in (mask(), all_white)]
    assert np.abs(drawn[0] - drawn[1]).max() > 0.01
