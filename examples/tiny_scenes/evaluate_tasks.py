"""Measures the bundled models on pictures that they are given: image to image and inpainting, judged by the checker.

    python examples/tiny_scenes/evaluate_tasks.py --json docs/tasks.json --grid docs/tasks.png
    python docs/figures.py

draws 256 cases of each. Image to image: a picture of one thing, and the same words with another colour, at strengths from 0.5 to
0.8. Inpainting: a picture of one thing, a mask over its box, and words that ask for another thing there, by the inpainting
model, which is shown the mask, and by the text-to-image model, which is not. Settings were chosen on other cases.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from checker import check
from PIL import Image
from scenes import Scene, caption, render, sample_scene
from shapes import COLOURS, SHAPES
from tqdm import tqdm

from latentgen import Img2ImgPipeline, InpaintPipeline, bundled_model
from latentgen.bundled import BUNDLED_GUIDANCE

STREAM = 0x7461736B
"""Sets these scenes apart from those of training and of other evaluations."""

BATCH = 32
STRENGTHS = (0.5, 0.6, 0.7, 0.8)
MARGIN = 0.03
"""How far the mask reaches beyond the thing, as a fraction of the width."""

INPAINTING = {"guidance_scale": BUNDLED_GUIDANCE, "num_inference_steps": 25}
BLENDING = {"strength": 0.5, "repeats": 4, "guidance_scale": 5.0, "num_inference_steps": 25}
"""For the text-to-image model: the best of some ten that were tried on 48 other cases."""

Case = tuple[Scene, Scene, str]
"""A scene, what is to become of it, and the words for that."""

Measured = tuple[dict[str, float], list[Image.Image]]
"""Shares, and the pictures that they are of."""


def recoloured(rng: np.random.Generator) -> Case:
    """A thing that is to have another colour."""
    scene = sample_scene(rng, things=1)
    thing = scene.things[0]
    colour = _another(rng, tuple(COLOURS), thing.colour)
    wanted = replace(scene, things=(replace(thing, colour=colour),))
    return scene, wanted, caption(wanted, rng)


def replaced(rng: np.random.Generator) -> Case:
    """A thing that is to become another, of the same size."""
    scene = sample_scene(rng, things=1)
    thing = scene.things[0]
    other = replace(
        thing, colour=_another(rng, tuple(COLOURS), thing.colour), shape=_another(rng, tuple(SHAPES), thing.shape)
    )
    wanted = replace(scene, things=(other,))
    return scene, wanted, caption(wanted, rng)


def _another(rng: np.random.Generator, choices: tuple[str, ...], but: str) -> str:
    left = [choice for choice in choices if choice != but]
    return left[rng.integers(len(left))]


def box_of(scene: Scene, size: int) -> Image.Image:
    """A mask over the box of the scene's first thing."""
    thing = scene.things[0]
    reach = thing.radius + MARGIN
    left, top, right, bottom = (
        int(np.clip(round(size * side), 0, size))
        for side in (thing.x - reach, thing.y - reach, thing.x + reach, thing.y + reach)
    )
    mask = np.zeros((size, size), np.uint8)
    mask[top:bottom, left:right] = 255
    return Image.fromarray(mask)


def measure_img2img(cases: Sequence[Case], steps: int, guidance: float) -> Measured:
    """The shares of pictures that show the new colour, and the old background."""
    pipe = Img2ImgPipeline.from_pretrained(bundled_model())
    drawn: list[Image.Image] = []
    for start in tqdm(range(0, len(cases), BATCH), desc="image to image"):
        part = cases[start : start + BATCH]
        drawn += pipe(
            [text for *_, text in part],
            [render(scene) for scene, *_ in part],
            strength=STRENGTHS[start // BATCH % len(STRENGTHS)],
            num_inference_steps=steps,
            guidance_scale=guidance,
            seed=list(range(start, start + len(part))),
            show_progress=False,
        ).images
    verdicts = [check(picture, wanted) for picture, (_, wanted, _) in zip(drawn, cases, strict=True)]
    kept = [v["background"] and v["style"] for v in verdicts]
    shares = {"new colour": np.mean([v["colour"] for v in verdicts]), "background kept": np.mean(kept)}
    return {name: float(share) for name, share in shares.items()}, drawn


def measure_inpainting(cases: Sequence[Case], task: str, **settings: Any) -> Measured:
    """The shares of pictures that show the new thing, and keep every pixel outside the mask.

    Args:
        cases: to be drawn.
        task: of the bundled model that draws them.
        settings: of the call.
    """
    pipe = InpaintPipeline.from_pretrained(bundled_model(task))
    drawn: list[Image.Image] = []
    kept = []
    for start in tqdm(range(0, len(cases), BATCH), desc=f"inpainting, {task} model"):
        part = cases[start : start + BATCH]
        before = [render(scene) for scene, *_ in part]
        masks = [box_of(scene, before[0].width) for scene, *_ in part]
        after = pipe(
            [text for *_, text in part],
            before,
            masks,
            **settings,
            seed=list(range(start, start + len(part))),
            show_progress=False,
        ).images
        for old, mask, new in zip(before, masks, after, strict=True):
            outside = np.asarray(mask) == 0
            kept.append(np.array_equal(np.asarray(old)[outside], np.asarray(new)[outside]))
        drawn += after
    verdicts = [check(picture, wanted) for picture, (_, wanted, _) in zip(drawn, cases, strict=True)]
    found = [v["count"] and v["colour"] and v["shape"] for v in verdicts]
    return {"new thing": float(np.mean(found)), "pixels outside the mask kept": float(np.mean(kept))}, drawn


def save_grid(rows: Sequence[Sequence[Image.Image]], path: Path, gap: int = 3) -> None:
    """Rows of pictures on one sheet."""
    side = rows[0][0].width + gap
    sheet = Image.new("RGB", (side * len(rows[0]) - gap, side * len(rows) - gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * side, y * side))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=256, help="cases of each task (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps of image to image (default: %(default)s)")
    parser.add_argument(
        "--guidance", type=float, default=BUNDLED_GUIDANCE, help="its guidance scale (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the cases; 0 is the one that is reported")
    parser.add_argument("--json", type=Path, default=None, help="write the figures there")
    parser.add_argument("--grid", type=Path, default=None, help="write a picture of the first cases there")
    arguments = parser.parse_args()

    rng = np.random.default_rng((STREAM, arguments.seed))
    recolour, another = ([make(rng) for _ in range(arguments.count)] for make in (recoloured, replaced))
    runs: dict[str, tuple[list[Case], Callable[[], Measured], dict[str, Any]]] = {
        "image to image": (
            recolour,
            lambda: measure_img2img(recolour, arguments.steps, arguments.guidance),
            {"num_inference_steps": arguments.steps, "guidance_scale": arguments.guidance},
        ),
        "inpainting model": (another, lambda: measure_inpainting(another, "inpainting", **INPAINTING), INPAINTING),
        "text-to-image model, blended": (another, lambda: measure_inpainting(another, "text", **BLENDING), BLENDING),
    }
    result: dict[str, Any] = {"cases": arguments.count, "runs": {}}
    rows = []
    for name, (cases, measure, settings) in runs.items():
        shares, drawn = measure()
        result["runs"][name] = {"settings": settings, "shares": shares}
        print(f"{name}: " + ", ".join(f"{what} {100 * share:.1f} %" for what, share in shares.items()), flush=True)
        shown = range(0, arguments.count, max(1, arguments.count // 12))
        if cases is not another or settings is INPAINTING:  # once for both models
            rows.append([render(cases[k][0]) for k in shown][:12])
        rows.append([drawn[k] for k in shown][:12])
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.grid:
        save_grid(rows, arguments.grid)


if __name__ == "__main__":
    main()
