"""Random numbers. Each image has a seed and a stream of its own, so its neighbours in a batch do not matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

MAX_SEED = 2**64 - 1


def _source(seed: int) -> Callable[[Sequence[int]], Tensor]:
    """Where one image's noise comes from: each call draws a size, float32 on the CPU."""
    if seed < 2**32:
        generator = torch.Generator("cpu").manual_seed(seed)
        return lambda size: torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")
    # PyTorch's CPU generator reads the low 32 bits of a seed, which would make 5 of 2**32 + 5. NumPy's, a Mersenne Twister
    # too, is seeded with any number of 32-bit words, and what it draws never changes (NEP 19).
    twister = np.random.RandomState([seed % 2**32, seed // 2**32])
    return lambda size: torch.from_numpy(twister.standard_normal(size).astype(np.float32))


class NoiseStream:
    """The noise of a batch: image k's depends on `seeds[k]` alone, and is drawn on the CPU, float32.

    PyTorch's default dtype and device have no say, and its global generator is neither read nor moved. Draws come in order:
    first what a pipeline starts from, then the noise of its steps.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device | str = "cpu") -> None:
        """Seed the streams.

        Args:
            seeds: for each image one, in [0, `MAX_SEED`].
            shape: (C, h, w) of one image.
            device: where the noise is wanted.
        """
        self._sources = [_source(seed) for seed in seeds]
        self._shape = shape
        self._device = torch.device(device)

    def __call__(self, i: int) -> Tensor:
        """Fresh noise for step i, (B, C, h, w). Streams are read in order, so `i` only says which step asks."""
        return self.draw()

    def draw(self, shape: Sequence[int] | None = None) -> Tensor:
        """The next of every stream, (B, C, h, w), or of another `shape` than the stream's."""
        size = (1, *(shape or self._shape))
        noise = torch.cat([draw(size) for draw in self._sources])
        if self._device.type == "cuda":  # pinned and asynchronous: the step does not wait for the copy
            return noise.pin_memory().to(self._device, non_blocking=True)
        return noise.to(self._device)
