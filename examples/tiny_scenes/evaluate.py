"""Measures how often the bundled model draws what the caption says, judged by the checker.

    python examples/tiny_scenes/evaluate.py --json docs/bundled-model.json --grid docs/bundled-model.png

draws 256 one-thing captions whose (colour, shape) pair never occurred in training, and 256 two-thing captions of any
pairs, at 50 DDIM steps. `--guidance 1 2 3 4 5 --seed 1` compares guidance scales on other captions than those that are reported.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
from checker import check
from PIL import Image
from scenes import Scene, caption, sample_scene
from tqdm import tqdm

from latentgen import Text2ImagePipeline, bundled_model
from latentgen.bundled import BUNDLED_GUIDANCE

SETS = {"one thing, withheld pairs": (1, "withheld"), "two things, any pairs": (2, "any")}
BATCH = 32

STREAM = 0x6576616C
"""Sets these captions apart from the training scenes: picture k of data set s is drawn from the stream (s, k)."""


def captions(things: int, pairs: str, count: int, seed: int) -> list[tuple[Scene, str]]:
    """Random scenes and what they are called."""
    rng = np.random.default_rng((STREAM, seed, things))
    scenes = [sample_scene(rng, things=things, pairs=pairs) for _ in range(count)]
    return [(scene, caption(scene, rng)) for scene in scenes]


def draw(pipe: Text2ImagePipeline, prompts: list[str], steps: int, guidance: float) -> list[Image.Image]:
    """A picture for each prompt; prompt k has seed k."""
    pictures: list[Image.Image] = []
    for start in tqdm(range(0, len(prompts), BATCH), desc=f"guidance {guidance:g}"):
        batch = prompts[start : start + BATCH]
        seeds = list(range(start, start + len(batch)))
        pictures += pipe(
            batch, num_inference_steps=steps, guidance_scale=guidance, seed=seeds, scheduler="ddim", show_progress=False
        ).images
    return pictures


def evaluate(
    pipe: Text2ImagePipeline, count: int, seed: int, steps: int, guidance: float
) -> tuple[dict[str, dict[str, float]], list[tuple[str, Image.Image, bool]]]:
    """The share of pictures that are right, for each set and attribute, and the pictures."""
    shares: dict[str, dict[str, float]] = {}
    drawn: list[tuple[str, Image.Image, bool]] = []
    for name, (things, pairs) in SETS.items():
        cases = captions(things, pairs, count, seed)
        pictures = draw(pipe, [text for _, text in cases], steps, guidance)
        verdicts = [check(picture, scene) for picture, (scene, _) in zip(pictures, cases, strict=True)]
        right = sum((Counter({k: int(v) for k, v in verdict.items()}) for verdict in verdicts), Counter())
        shares[name] = {key: right[key] / len(verdicts) for key in verdicts[0]}
        drawn += [(text, p, v["all"]) for (_, text), p, v in zip(cases, pictures, verdicts, strict=True)]
    return shares, drawn


def save_grid(drawn: list[tuple[str, Image.Image, bool]], path: Path, columns: int = 12, rows: int = 6) -> None:
    """The first pictures of each set, those that are not right framed in red; unpicked."""
    side, gap = drawn[0][1].width, 3
    half = len(drawn) // 2
    shown = drawn[: columns * rows // 2] + drawn[half : half + columns * rows // 2]
    sheet = Image.new("RGB", (columns * (side + 2 * gap), rows * (side + 2 * gap)), "white")
    for i, (_, picture, right) in enumerate(shown):
        x, y = i % columns * (side + 2 * gap), i // columns * (side + 2 * gap)
        if not right:
            sheet.paste("red", (x, y, x + side + 2 * gap, y + side + 2 * gap))
        sheet.paste(picture, (x + gap, y + gap))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="model folder (default: the bundled one)")
    parser.add_argument("--count", type=int, default=256, help="captions in each set (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps (default: %(default)s)")
    parser.add_argument(
        "--guidance", type=float, nargs="+", default=[BUNDLED_GUIDANCE], help="guidance scales (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the captions; 0 is the one that is reported")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--json", type=Path, default=None, help="write the figures there")
    parser.add_argument("--grid", type=Path, default=None, help="write a picture of the first pictures there")
    arguments = parser.parse_args()

    pipe = Text2ImagePipeline.from_pretrained(
        arguments.model or bundled_model(), device=arguments.device, dtype=arguments.dtype
    )
    results = []
    for guidance in arguments.guidance:
        shares, drawn = evaluate(pipe, arguments.count, arguments.seed, arguments.steps, guidance)
        results.append({"guidance_scale": guidance, "steps": arguments.steps, "captions": arguments.count,
                        "dtype": str(pipe.dtype).removeprefix("torch."), "shares": shares})  # fmt: skip
        for name, share in shares.items():
            print(f"guidance {guidance:g}, {name}: " + ", ".join(f"{k} {100 * v:.1f} %" for k, v in share.items()))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if arguments.grid:
        save_grid(drawn, arguments.grid)


if __name__ == "__main__":
    main()
