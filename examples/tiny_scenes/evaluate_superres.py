"""Measures the bundled super-resolution model on scenes that it never saw: 32 x 32 pixels to 128 x 128.

    python examples/tiny_scenes/evaluate_superres.py --json docs/superres.json --grid docs/superres.png
    python docs/figures.py

compares its pictures, and bicubic enlargement, with the scenes that were made small: by their peak signal-to-noise ratio (mean
over the pictures, of all channels in 0..1), and by whether the checker reads every colour and shape.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from checker import check
from evaluate_tasks import save_grid
from PIL import Image
from scenes import Scene, render, sample_scene
from tqdm import tqdm

from latentgen import SuperResPipeline, bundled_model
from latentgen.training.tasks.super_resolution import shrink

STREAM = 0x78340000
"""Sets these scenes apart from those of training and of other evaluations."""

BATCH = 20


def psnr(picture: Image.Image, truth: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB."""
    difference = np.asarray(picture, np.float64) - np.asarray(truth, np.float64)
    return float(20 * np.log10(255) - 10 * np.log10(np.mean(difference**2)))


def held_out(count: int, seed: int) -> list[Scene]:
    rng = np.random.default_rng((STREAM, seed))
    return [sample_scene(rng, pairs="any") for _ in range(count)]


def enlarge(pipe: SuperResPipeline, small: Sequence[Image.Image], steps: int) -> list[Image.Image]:
    drawn: list[Image.Image] = []
    for start in tqdm(range(0, len(small), BATCH), desc="super-resolution"):
        part = list(small[start : start + BATCH])
        seeds = list(range(start, start + len(part)))
        drawn += pipe(image=part, num_inference_steps=steps, seed=seeds, show_progress=False).images
    return drawn


def measure(drawn: Sequence[Image.Image], scenes: Sequence[Scene]) -> dict[str, float]:
    """Mean PSNR, and the share of pictures in which the checker reads every colour and shape."""
    verdicts = [check(picture, scene) for picture, scene in zip(drawn, scenes, strict=True)]
    read = [v["count"] and v["colour"] and v["shape"] for v in verdicts]
    quality = [psnr(picture, render(scene)) for picture, scene in zip(drawn, scenes, strict=True)]
    return {"psnr": float(np.mean(quality)), "colours and shapes read": float(np.mean(read))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="model folder (default: the bundled one)")
    parser.add_argument("--count", type=int, default=500, help="scenes (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="DDIM steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes; 0 is the one that is reported")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--json", type=Path, default=None, help="write the figures there")
    parser.add_argument("--grid", type=Path, default=None, help="write a picture of the first scenes there")
    arguments = parser.parse_args()

    pipe = SuperResPipeline.from_pretrained(arguments.model or bundled_model("super_resolution"), dtype=arguments.dtype)
    scenes = held_out(arguments.count, arguments.seed)
    truths = [render(scene) for scene in scenes]
    factor = pipe.vae.config.factor
    small = [Image.fromarray(shrink(np.asarray(truth), factor)) for truth in truths]
    plain = [picture.resize(truths[0].size, Image.Resampling.BICUBIC) for picture in small]
    drawn = enlarge(pipe, small, arguments.steps)
    rows = {"bicubic": measure(plain, scenes), "model": measure(drawn, scenes)}
    for name, row in rows.items():
        print(f"{name}: {row['psnr']:.2f} dB, colours and shapes read {100 * row['colours and shapes read']:.1f} %")
    if arguments.json:
        result = {"scenes": arguments.count, "steps": arguments.steps, "dtype": str(pipe.dtype).removeprefix("torch.")}
        arguments.json.write_text(json.dumps(result | {"rows": rows}, indent=2) + "\n")
    if arguments.grid:
        save_grid([plain[:12], drawn[:12], truths[:12]], arguments.grid)


if __name__ == "__main__":
    main()
