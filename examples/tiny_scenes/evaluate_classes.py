"""Measures a class model: how often the checker reads the class that was asked for, by guidance scale.

python examples/tiny_scenes/evaluate_classes.py runs/tiny_scenes/classes_diffusion/model --grid classes.png
python docs/figures.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from checker import read
from evaluate_tasks import save_grid
from PIL import Image
from tqdm import tqdm

from latentgen import Class2ImagePipeline

BATCH = 32


def draw(pipe: Class2ImagePipeline, each: int, steps: int, guidance: float) -> list[tuple[str, Image.Image]]:
    """So many pictures of every class, in turn, with the same seeds for every guidance scale."""
    names = pipe.class_embedder.config.class_names or ()
    asked = [name for _ in range(each) for name in names]
    drawn: list[Image.Image] = []
    for start in tqdm(range(0, len(asked), BATCH), desc=f"guidance {guidance:g}"):
        part = asked[start : start + BATCH]
        drawn += pipe(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            seed=list(range(start, start + len(part))),
            show_progress=False,
        ).images
    return list(zip(asked, drawn, strict=True))


def is_of(picture: Image.Image, name: str) -> bool:
    """Does the checker see one thing, of this shape?"""
    things = read(picture).things
    return len(things) == 1 and things[0].shape == name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--each", type=int, default=32, help="pictures of every class (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 4.0, 5.0])
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--json", type=Path, default=None, help="write the figures there")
    parser.add_argument("--grid", type=Path, default=None, help="write a row of pictures for each scale there")
    arguments = parser.parse_args()

    pipe = Class2ImagePipeline.from_pretrained(arguments.model, dtype=arguments.dtype)
    curve, rows = [], []
    for guidance in arguments.guidance:
        drawn = draw(pipe, arguments.each, arguments.steps, guidance)
        share = sum(is_of(picture, name) for name, picture in drawn) / len(drawn)
        print(f"guidance {guidance:g}: {100 * share:.1f} %", flush=True)
        curve.append({"guidance_scale": guidance, "share": share})
        rows.append([picture for _, picture in drawn[:16]])
    if arguments.json:
        result = {"pictures": len(drawn), "steps": arguments.steps, "dtype": str(pipe.dtype).removeprefix("torch.")}
        arguments.json.write_text(json.dumps(result | {"curve": curve}, indent=2) + "\n")
    if arguments.grid:
        save_grid(rows, arguments.grid)


if __name__ == "__main__":
    main()
