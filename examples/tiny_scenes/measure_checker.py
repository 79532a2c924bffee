"""Measures how often the checker is right about pictures whose truth is known.

    python examples/tiny_scenes/measure_checker.py --json docs/checker.json
    python docs/figures.py

True renders should pass, also after a way through the autoencoder; wrong captions and spoilt pictures should not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from checker import check
from PIL import Image
from scenes import Scene, render, sample_scene
from spoil import SPOILERS, spoilt, wrong_caption
from tqdm import tqdm

from latentgen import AutoencoderKL

FIRST_STAGE = Path(__file__).parent / "first_stage"


def through_autoencoder(vae: AutoencoderKL, picture: Image.Image) -> Image.Image:
    """The picture encoded, as the mean of its posterior, and decoded."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].to(vae.dtype) / 127.5 - 1
    with torch.inference_mode():
        decoded = vae.decode(vae.encode(pixels).mode())[0].float()
    return Image.fromarray(((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def accepted(cases: Iterable[tuple[Image.Image, Scene]]) -> float:
    """The share of pictures that the checker finds wholly right."""
    return float(np.mean([check(picture, scene)["all"] for picture, scene in cases]))


def measure(name: str, count: int, seed: int = 4) -> float:
    """The share of `count` pictures of one kind of which the checker says what is true.

    Args:
        name: "renders", "autoencoder", "wrong captions" or one of `SPOILERS`.
        count: Number of pictures.
        seed: Of the scenes. The checker's tolerances were chosen on other ones.
    """
    rng = np.random.default_rng((seed, 0))
    if name in SPOILERS:
        return 1 - accepted(spoilt(name, count, rng))
    scenes = [sample_scene(rng, pairs="any") for _ in range(count)]
    if name == "wrong captions":
        return 1 - accepted((render(scene), wrong_caption(scene, rng)) for scene in scenes)
    if name == "autoencoder":
        vae = AutoencoderKL.from_pretrained(FIRST_STAGE, device="cpu", dtype="float32")
        return accepted((through_autoencoder(vae, render(scene)), scene) for scene in scenes)
    return accepted((render(scene), scene) for scene in scenes)


COUNTS = {"renders": 2000, "autoencoder": 400, "wrong captions": 2000} | dict.fromkeys(SPOILERS, 250)
"""How many pictures of each kind are measured for the docs."""

SAYINGS = {
    "renders": "true renders are accepted",
    "autoencoder": "true renders that went through the autoencoder are accepted",
    "wrong captions": "true renders with one attribute of the caption wrong are refused",
} | {name: f"{name.replace('_', ' ')} is refused: {spoiler.__doc__}" for name, spoiler in SPOILERS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="write the figures there")
    arguments = parser.parse_args()
    rows = []
    for name, count in tqdm(COUNTS.items()):
        rows.append({"what": SAYINGS[name], "pictures": count, "share": measure(name, count)})
        print(rows[-1], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
