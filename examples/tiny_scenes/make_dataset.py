"""Writes the tiny scenes as a folder of pictures with captions.

    python examples/tiny_scenes/make_dataset.py OUT --count 75000

makes OUT/train/00000/000000.png and so on, a thousand pictures a folder, and OUT/train/metadata.jsonl with one line
{"file_name": ..., "text": ...} a picture: the layout that the Hugging Face image-folder loader reads. Picture i
depends on the seed and on i alone, so a longer data set begins with the shorter one, whatever the number of workers.
With `--things 1` every picture shows one thing, whose shape is its "label", in colours that include the withheld pairs.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image
from scenes import caption, render, sample_scene

PER_FOLDER = 1000


def make_example(seed: int, index: int, size: int, things: int | None = None) -> tuple[Image.Image, dict[str, str]]:
    """Picture number `index` of the data set and what the metadata says of it."""
    rng = np.random.default_rng([seed, index])
    scene = sample_scene(rng, things=things, pairs="any" if things == 1 else "train")
    said = {"text": caption(scene, rng)}
    return render(scene, size), said | ({"label": scene.things[0].shape} if things == 1 else {})


def write_folder(start: int, *, root: Path, count: int, size: int, seed: int, things: int | None) -> str:
    """Writes the pictures from `start` to the end of their folder; returns their lines of metadata."""
    folder = f"{start // PER_FOLDER:05d}"
    (root / folder).mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(start, min(start + PER_FOLDER, count)):
        picture, said = make_example(seed, index, size, things)
        name = f"{folder}/{index:06d}.png"
        picture.save(root / name, compress_level=1)
        lines.append(json.dumps({"file_name": name, **said}) + "\n")
    return "".join(lines)


def make_dataset(out: Path, *, count: int, size: int, seed: int, workers: int, things: int | None = None) -> None:
    """Writes `count` pictures of size x size pixels and their metadata under out/train.

    The metadata gets its name at the end: where it is, all pictures are.
    """
    root = out / "train"
    root.mkdir(parents=True, exist_ok=True)
    whole, begun = root / "metadata.jsonl", root / "metadata.jsonl.part"
    whole.unlink(missing_ok=True)
    work = partial(write_folder, root=root, count=count, size=size, seed=seed, things=things)
    starts = range(0, count, PER_FOLDER)
    with Pool(workers) as pool, open(begun, "w", encoding="ascii") as metadata:
        for start, lines in zip(starts, pool.imap(work, starts), strict=True):
            metadata.write(lines)
            print(f"{min(start + PER_FOLDER, count)} of {count} pictures", flush=True)
    begun.replace(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tiny scenes data set.")
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--count", type=int, default=75_000, help="number of pictures")
    parser.add_argument("--size", type=int, default=128, help="width and height in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--things", type=int, choices=(1, 2), default=None, help="in every picture; one or two if left out"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    make_dataset(args.out, count=args.count, size=args.size, seed=args.seed, workers=args.workers, things=args.things)


if __name__ == "__main__":
    main()
