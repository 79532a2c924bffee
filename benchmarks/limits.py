"""What is held to a limit of its own, and to no rival."""

from __future__ import annotations

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
