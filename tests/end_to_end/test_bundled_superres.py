"""The bundled super-resolution model: its pictures are better than a filter's, and diffusers draws the same."""

import sys
import warnings
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from latentgen import SuperResPipeline, bundled_model
from latentgen.training.tasks.super_resolution import shrink

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "tiny_scenes"))

from evaluate_superres import enlarge, held_out, measure
from scenes import render


@pytest.fixture(scope="module")
def pipe():
    pipe = SuperResPipeline.from_pretrained(bundled_model("super_resolution"), device="cpu", dtype="float32")
    pipe.show_progress = False
    return pipe


def test_it_is_far_better_than_a_filter(pipe):
    scenes = held_out(12, seed=1)
    truths = [render(scene) for scene in scenes]
    small = [Image.fromarray(shrink(np.asarray(truth), 4)) for truth in truths]
    plain = [picture.resize(truths[0].size, Image.Resampling.BICUBIC) for picture in small]
    ours, theirs = measure(enlarge(pipe, small, 4), scenes), measure(plain, scenes)
    assert ours["psnr"] > theirs["psnr"] + 6  # 8 on 500 scenes
    assert ours["colours and shapes read"] == 1


def test_diffusers_draws_the_same(pipe):
    """It applies no scaling factor in this pipeline: encoder and decoder have it inside."""
    assert pipe.vae.config.scaling_factor == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = diffusers.LDMSuperResolutionPipeline.from_pretrained(bundled_model("super_resolution")).to(
            torch.float32
        )
    theirs.set_progress_bar_config(disable=True)
    small = Image.fromarray(shrink(np.asarray(render(held_out(1, seed=2)[0])), 4))
    start = torch.randn(1, 6, 32, 32, generator=torch.Generator().manual_seed(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion_superresolution.randn_tensor",
            lambda *_, **__: start,
        )
        expected = theirs(small, num_inference_steps=4, eta=0.0, output_type="np").images
    drawn = pipe(image=small, latents=start, num_inference_steps=4, output_type="np").images
    assert float(np.abs(drawn - expected).max()) <= 1e-3
