"""A folder of pictures with captions, as the Hugging Face Hub's image folders have them."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Example:
    """A picture's file and its caption ("" where the folder has none)."""

    path: Path
    text: str


def read_folder(folder: Path) -> list[Example]:
    """List the pictures of a folder.

    With a `metadata.jsonl` its lines (`file_name`, `text`) decide; without one every picture below the folder counts,
    with an empty caption.

    Raises:
        ValueError: naming the line or file: a caption whose picture is not there, a path that leaves the folder, bad JSON.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder of pictures.")
    metadata = folder / "metadata.jsonl"
    if not metadata.exists():
        examples = [Example(p, "") for p in sorted(folder.rglob("*")) if p.suffix.lower() in PICTURES and p.is_file()]
    else:
        with metadata.open("rb") as file:
            lines = [(f"{metadata}, line {number}", line) for number, line in enumerate(file, 1) if line.strip()]
        examples = [_read_line(folder, where, line) for where, line in lines]
    if not examples:
        raise ValueError(f"{folder} holds no pictures.")
    return examples


def _read_line(folder: Path, where: str, line: bytes) -> Example:
    try:
        entry = json.loads(line.decode("utf-8-sig"))
        name, text = entry["file_name"], entry.get("text", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f'{where}: expected {{"file_name": ..., "text": ...}}.') from None
    if not isinstance(name, str) or not isinstance(text, str):
        raise ValueError(f"{where}: file_name and text must be strings.")
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise ValueError(f"{where}: {name!r} leaves the folder; file names are relative to it.")
    if not os.path.isfile(folder / name):
        raise ValueError(f"{where}: {name!r} is not there; remove the line or bring the picture.")
    return Example(folder / name, text)


def load_picture(path: Path, size: int) -> np.ndarray:
    """Read a picture as (size, size, 3) uint8: rotated as its EXIF says, shorter side scaled, centre cut.

    What is transparent becomes white; 16-bit grey is reduced to 8.

    Raises:
        ValueError: naming the file, for anything that is not a whole picture.
    """
    try:
        with Image.open(path) as opened:
            picture = _to_rgb(ImageOps.exif_transpose(opened))
    except Exception as error:  # decoders raise whatever comes up in a damaged file
        raise ValueError(f"{path} is not a readable picture: {error}") from None
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits: a plain conversion would cut all above 255
        return Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def check_pictures(examples: Sequence[Example], size: int, *, skip: bool, show: bool = True) -> list[Example]:
    """Read every picture once before training starts, behind a progress bar if `show` says so.

    Returns:
        The examples, without the broken ones where `skip` allows that (with a warning that names them).

    Raises:
        ValueError: naming up to ten broken pictures; also under `skip`, if there is no other.
    """

    def problem(example: Example) -> str | None:
        try:
            load_picture(example.path, size)
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        checked = pool.map(problem, examples)
        problems = list(tqdm(checked, total=len(examples), desc="checking pictures", disable=not show))
    broken = [p for p in problems if p is not None]
    if not broken:
        return list(examples)
    listed = "\n".join(broken[:10])
    if not skip:
        raise ValueError(
            f"{len(broken)} of {len(examples)} pictures are broken; remove them, or set skip_broken = true:\n{listed}"
        )
    if len(broken) == len(examples):
        raise ValueError(f"all {len(broken)} pictures are broken:\n{listed}")
    warnings.warn(f"left out {len(broken)} broken pictures:\n{listed}", stacklevel=2)
    return [e for e, p in zip(examples, problems, strict=True) if p is None]


def order(count: int, batch_size: int, step: int, *, seed: int, process: int = 0, processes: int = 1) -> np.ndarray:
    """Which examples a step uses, (batch_size,) indices: a pure function, so that a resumed run goes on exactly.

    Every epoch is a permutation of its own; processes take neighbouring parts of it.
    """
    first = (step * processes + process) * batch_size
    positions = np.arange(first, first + batch_size)
    indices = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(positions // count):
        permutation = np.random.default_rng((seed, int(epoch))).permutation(count)
        here = positions // count == epoch
        indices[here] = permutation[positions[here] % count]
    return indices


def to_tensor(pictures: Sequence[np.ndarray]) -> Tensor:
    """(H, W, 3) uint8 pictures to one (B, 3, H, W) float32 tensor in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
