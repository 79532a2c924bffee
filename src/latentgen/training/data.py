"""Pictures from files to tensors, and the order in which training sees them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from latentgen.pipelines.pictures import to_rgb
from latentgen.training.image_folder import Example

SPARE = 2  # a JPEG is decoded at a lower resolution where at least this many pixels are left for one


def load_picture(path: Path, size: int) -> np.ndarray:
    """Read a picture as (size, size, 3) uint8: rotated as its EXIF says, shorter side scaled, centre cut.

    What is transparent becomes white; 16-bit grey is reduced to 8. A JPEG many times as large as `size` is decoded at a
    half, a quarter or an eighth of its resolution, which is much quicker, and scaled from there.

    Raises:
        ValueError: naming the file, for anything that is not a whole picture.
    """
    try:
        with Image.open(path) as opened:
            opened.draft(None, (SPARE * size, SPARE * size))  # does nothing for other formats
            picture = to_rgb(ImageOps.exif_transpose(opened))
    except Exception as error:  # decoders raise whatever comes up in a damaged file
        raise ValueError(f"{path} is not a readable picture: {error}") from None
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture)


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


def to_tensor(pictures: Sequence[np.ndarray] | np.ndarray) -> Tensor:
    """(H, W, 3) uint8 pictures to one (B, 3, H, W) float32 tensor in [-1, 1]."""
    return torch.from_numpy(np.stack([*pictures])).permute(0, 3, 1, 2).float() / 127.5 - 1
