"""What options may be: texts of the command line to values, or what is wrong with them."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from pathlib import Path

from latentgen.weights.sizes import read_bytes

MAX_SEED = 2**64 - 1
MAX_LORA_SCALE = 1000


def count(text: str) -> int:
    with contextlib.suppress(ValueError):
        if (value := int(text)) >= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")


def seed(text: str) -> int:
    with contextlib.suppress(ValueError):
        if 0 <= (value := int(text)) <= MAX_SEED:
            return value
    raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to {MAX_SEED}")


def scale(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")


def share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text} is not a number above 0 and at most 1")


def pixels(text: str) -> int:
    with contextlib.suppress(ValueError):
        if (value := int(text)) >= 0:
            return value
    raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")


def memory(text: str) -> int:
    try:
        return read_bytes("the size", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def lora(text: str) -> tuple[Path, float]:
    """A file, and behind a colon how much of it; without one, 1."""
    path, colon, number = text.rpartition(":")
    if colon and path:
        with contextlib.suppress(ValueError):
            amount = float(number)
            if not abs(amount) <= MAX_LORA_SCALE:
                raise argparse.ArgumentTypeError(f"{number} is not a scale from -{MAX_LORA_SCALE} to {MAX_LORA_SCALE}")
            return Path(path), amount
    return Path(text), 1.0


def printable(line: str) -> str:
    """A line for a terminal: what a stranger's file says of itself must not become further lines, colours or commands."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def png(text: str) -> Path:
    if Path(text).suffix.lower() != ".png" and not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text} must end in .png: pictures are written as PNG")
    return Path(text)
