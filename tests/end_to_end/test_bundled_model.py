"""The bundled model draws what the caption says, and is a folder as any other."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from latentgen import InpaintPipeline, SuperResPipeline, Text2ImagePipeline, bundled_model
from latentgen.bundled import BUNDLED_GUIDANCE

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "tiny_scenes"))

from evaluate import captions, evaluate  # noqa: E402

torch.manual_seed(0)


def files() -> list[Path]:
    return [p for p in bundled_model().rglob("*") if p.is_file()]


def test_it_is_small_float16_and_safetensors():
    assert sum(p.stat().st_size for p in files()) <= 20_000_000
    weights = [p for p in files() if p.suffix == ".safetensors"]
    assert len(weights) == 3
    for path in weights:
        with safe_open(path, "pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    assert {p.suffix for p in files() if p.name != "SHA256SUMS"} <= {".safetensors", ".json", ".txt"}


@pytest.mark.parametrize(
    ("task", "cls"),
    [("text", Text2ImagePipeline), ("inpainting", InpaintPipeline), ("super_resolution", SuperResPipeline)],
)
def test_what_ships_is_what_was_recorded(task, cls):
    assert (
        cls.from_pretrained(bundled_model(task), device="cpu", dtype="float32", verify=True).unet.dtype == torch.float32
    )


def test_pictures_show_their_captions():
    """On other captions and fewer steps the model draws about as well as docs/bundled-model.json says."""
    pipe = Text2ImagePipeline.from_pretrained(bundled_model(), device="cpu")
    (recorded,) = json.loads((ROOT / "docs" / "bundled-model.json").read_text())
    shares, _ = evaluate(pipe, count=24, seed=1, steps=25, guidance=BUNDLED_GUIDANCE)
    for name, share in shares.items():
        for attribute, value in recorded["shares"][name].items():
            assert share[attribute] >= value - 0.25, (name, attribute)


def test_captions_are_those_of_withheld_pairs():
    from scenes import WITHHELD

    assert all((s.things[0].colour, s.things[0].shape) in WITHHELD for s, _ in captions(1, "withheld", 64, 0))


def test_diffusers_draws_the_same():
    diffusers = pytest.importorskip("diffusers")
    prompt = "a large red heart on a striped cream background"
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = Text2ImagePipeline.from_pretrained(bundled_model(), device="cpu", dtype="float32")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(bundled_model(), torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 20, "guidance_scale": BUNDLED_GUIDANCE, "output_type": "np"}
    ours_pixels = ours([prompt, "a small blue ring"], latents=latents, show_progress=False, **settings).images
    their_pixels = theirs([prompt, "a small blue ring"], latents=latents.clone(), **settings).images
    assert np.abs(ours_pixels - their_pixels).max() <= 1e-3
