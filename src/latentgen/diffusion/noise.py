"""Random numbers. Each image has a seed and a stream of its own, so its neighbours in a batch do not matter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_SEED = 2**64 - 1


class NoiseStream:
    """The noise of a batch: image k's comes from a CPU generator seeded with `seeds[k]`, float32.

    Attributes:
        initial: (B, C, h, w) the first draw of every stream: the latents that a whole plan starts from, unscaled.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device | str = "cpu") -> None:
        """Seed the streams. `shape` is one image's (C, h, w)."""
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._shape = shape
        self._device = torch.device(device)
        self.initial = self._draw()

    def __call__(self, i: int) -> Tensor:
        """Fresh noise for step i, (B, C, h, w). Streams are read in order, so `i` only says which step asks."""
        return self._draw()

    def _draw(self) -> Tensor:
        noise = torch.cat([torch.randn((1, *self._shape), generator=g) for g in self._generators])
        if self._device.type == "cuda":  # pinned and asynchronous: the step does not wait for the copy
            return noise.pin_memory().to(self._device, non_blocking=True)
        return noise.to(self._device)
