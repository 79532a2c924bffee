"""The bundled inpainting model: it draws what is asked for under the mask, and diffusers draws the same."""

import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from latentgen import InpaintPipeline, bundled_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "tiny_scenes"))

from evaluate_tasks import INPAINTING, box_of, measure_inpainting, replaced
from scenes import render


@pytest.fixture(scope="module")
def cases():
    rng = np.random.default_rng(5)
    return [replaced(rng) for _ in range(16)]


def test_it_draws_another_thing_in_the_place_of_one(cases):
    shares, drawn = measure_inpainting(cases, "inpainting", **{**INPAINTING, "num_inference_steps": 10})
    assert shares["new thing"] >= 0.6  # about 0.9 of many
    assert shares["pixels outside the mask kept"] == 1
    assert len(drawn) == len(cases)


def test_diffusers_draws_the_same(cases):
    """Under a mask along the latents' cells: for others it looks at one pixel of each cell."""
    folder = bundled_model("inpainting")
    ours = InpaintPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    theirs = diffusers.StableDiffusionInpaintPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, safety_checker=None
    )
    theirs.set_progress_bar_config(disable=True)
    scene, _, text = cases[0]
    picture = render(scene)
    mask = box_of(scene, 128).reduce(8).point(lambda value: 255 if value else 0).resize((128, 128), 0)
    call = {"num_inference_steps": 5, "guidance_scale": 2.0, "output_type": "np"}
    noise = torch.Generator().manual_seed(3)
    expected = theirs(
        text, image=picture, mask_image=mask, height=128, width=128, strength=1.0, generator=noise, **call
    )
    drawn = ours(text, picture, mask, seed=3, keep_unmasked=False, show_progress=False, **call)
    assert float(np.abs(drawn.images - expected.images).max()) <= 1e-3
    assert expected.images.std() > 0.05
