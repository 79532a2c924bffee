"""Memory for weights: in large pages where the system has them, which takes a fraction of the time to get."""

from __future__ import annotations

import contextlib
import math
import mmap

import torch
from torch import Tensor

LARGE_PAGE = 2 * 2**20
"""Bytes, on x86-64 and most ARM systems; where pages have another size, memory is as good and slower to get."""


def allocate(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU, in memory of its own.

    Small pages are handed out one by one, 4 KiB each, and that takes longer than filling them. So whatever holds a large page
    asks for such ones (Linux: transparent huge pages; others ignore it).
    """
    size = math.prod(shape) * dtype.itemsize
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or size < LARGE_PAGE:
        return torch.empty(shape, dtype=dtype, device="cpu")
    region = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(region, dtype=torch.uint8)
    begin = -whole.data_ptr() % LARGE_PAGE
    with contextlib.suppress(
        OSError
    ):  # a system without them; what is left over stays in small ones, so nothing is wasted
        region.madvise(advice, begin, size // LARGE_PAGE * LARGE_PAGE)
    return torch.frombuffer(region, dtype=dtype, count=math.prod(shape), offset=begin).reshape(shape)
