"""What is held to a limit of its own, and to no rival."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import GIB, run_life
from benchmarks.progress import say
from benchmarks.settings import Settings

DECODE_LIMIT = 4 * 10**9 / GIB
"""Of a picture of 2048 x 2048, in GiB."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One quantity and the most that it may be, both in `unit`."""

    name: str
    device: str
    dtype: str
    unit: str
    value: float
    most: float


FILE_TIME, FILE_MEMORY = 1.3, 1.1
"""Of loading a single file: times the plain reading of it, and times its size."""


def file_limits(folder: Path, settings: Settings, device: str, variant: str | None, pairs: int) -> list[Limit]:
    """Time and memory of loading the model from one float32 file, in a fresh process, taking turns with reading it."""
    say("writing the model as one file")
    with tempfile.TemporaryDirectory(prefix="latentgen-bench-") as temporary:
        job = {
            "folder": str(folder), "file": f"{temporary}/model.safetensors", "family": "sd-v1", "variant": variant,
            "pairs": pairs,
        }  # fmt: skip
        run_life("latentgen", "write", job)
        say(f"loading one file, {pairs} pairs")
        told = run_life("latentgen", "file", job)
    size = f"of {told['size'] / 10**9:.1f} GB"
    return [
        Limit(
            name=f"load one file {size}: time, as a multiple of reading it",
            device="cpu",
            dtype="float32",
            unit="x",
            value=told["time"],
            most=FILE_TIME,
        ),
        Limit(
            name=f"load one file {size}: peak memory, as a multiple of its size",
            device="cpu",
            dtype="float32",
            unit="x",
            value=told["memory"],
            most=FILE_MEMORY,
        ),
    ]


def decode_limit(folder: Path, settings: Settings, device: str, variant: str | None) -> Limit:
    """Memory above the weights for decoding a large picture in float32, in tiles, in a fresh process."""
    say(f"decoding {settings.large} x {settings.large}, {device} float32")
    job = {
        "folder": str(folder), "device": device, "dtype": "float32", "variant": variant, "side": settings.large,
        "tile": settings.tile,
    }  # fmt: skip
    told = run_life("latentgen", "decode", job)
    return Limit(
        name=f"VAE decode, {settings.large} x {settings.large}, tiles of {settings.tile}: memory above the weights",
        device=device,
        dtype="float32",
        unit="GiB",
        value=told["above"] / GIB,
        most=DECODE_LIMIT,
    )
