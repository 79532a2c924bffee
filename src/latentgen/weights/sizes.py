"""Numbers of bytes, as people write them."""

from __future__ import annotations

import re
import sys

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def read_bytes(name: str, size: int | float | str, *, otherwise: str = "") -> int:
    """A number of bytes.

    Args:
        name: of the argument, for the error.
        size: bytes, or a number with a unit, as "10GB" or "1.5 GiB".
        otherwise: what else the argument may be, for the error.

    Raises:
        ValueError: if it is neither, or less than 1 byte.
    """
    number: float | None = None
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", size)
        if match and match[2].upper() in UNITS:
            number = float(match[1]) * UNITS[match[2].upper()]
    elif isinstance(size, int | float) and not isinstance(size, bool):
        number = size
    if number is None or not 1 <= number <= sys.maxsize:
        raise ValueError(
            f"{name}={size!r} is not a size: give a number of bytes, for example '10GB' or '500MB'{otherwise}."
        )
    return int(number)
