"""Draws pictures twice as wide and high as the bundled model was trained on, in tiles, and looks for seams.

    python examples/tiny_scenes/evaluate_large.py --json docs/large.json --grid docs/large.png
    python docs/figures.py

The UNet and the decoder work in overlapping tiles. A seam would show as a step from one pixel to the next that is larger where a
tile begins or ends than elsewhere: both are measured, as the mean absolute difference of neighbouring pixels over all pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from evaluate_tasks import save_grid
from PIL import Image
from scenes import describe, sample_scene

from latentgen import Text2ImagePipeline, Tiling, bundled_model
from latentgen.bundled import BUNDLED_GUIDANCE
from latentgen.runtime.tiling import starts_of_tiles

STREAM = 0x6C617267
"""Sets these scenes apart from those of training and of other evaluations."""

BATCH = 8


def borders(side: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin or end inside of `side` pixels."""
    starts = starts_of_tiles(side, tile, overlap)
    return sorted({place for start in starts for place in (start, start + tile) if 0 < place < side})


def steps_at(pictures: Sequence[Image.Image], places: Sequence[int]) -> tuple[float, float]:
    """The mean step between neighbouring pixels across rows and columns at `places`, and everywhere else."""
    pixels = np.stack([np.asarray(picture, np.float64) for picture in pictures])
    at, elsewhere = [], []
    for axis in (1, 2):
        step = np.abs(np.diff(pixels, axis=axis)).mean(axis=(0, 3 - axis, 3))
        here = np.isin(np.arange(1, len(step) + 1), places)
        at.append(step[here])
        elsewhere.append(step[~here])
    return float(np.concatenate(at).mean()), float(np.concatenate(elsewhere).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24, help="pictures (default: %(default)s)")
    parser.add_argument("--side", type=int, default=256, help="of the pictures, in pixels (default: %(default)s)")
    parser.add_argument("--tile", type=int, default=128, help="side of the tiles (default: %(default)s)")
    parser.add_argument("--overlap", type=int, default=64, help="least overlap of tiles (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=None, help="write the figures there")
    parser.add_argument("--grid", type=Path, default=None, help="write the first pictures there")
    arguments = parser.parse_args()

    rng = np.random.default_rng(STREAM)
    prompts = [describe(sample_scene(rng, things=1)) for _ in range(arguments.count)]
    pipe = Text2ImagePipeline.from_pretrained(bundled_model())
    tiling = Tiling(unet=arguments.tile, vae=arguments.tile, overlap=arguments.overlap)
    drawn: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        drawn += pipe(
            part,
            height=arguments.side,
            width=arguments.side,
            num_inference_steps=arguments.steps,
            guidance_scale=BUNDLED_GUIDANCE,
            seed=list(range(start, start + len(part))),
            tiling=tiling,
        ).images
    places = borders(arguments.side, arguments.tile, arguments.overlap)
    at, elsewhere = steps_at(drawn, places)
    print(f"step at {places}: {at:.3f}, elsewhere {elsewhere:.3f}, ratio {at / elsewhere:.2f}")
    if arguments.json:
        settings = {name: getattr(arguments, name) for name in ("count", "side", "tile", "overlap", "steps")}
        result = settings | {"borders": places, "step at borders": at, "step elsewhere": elsewhere}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.grid:
        save_grid([drawn[:6], drawn[6:12]], arguments.grid)


if __name__ == "__main__":
    main()
