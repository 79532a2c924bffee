"""A plan: the knots that a solver walks, from the noisiest to the cleanest.

Letters: at knot i the latents are `x = alphas[i] * x0 + sigmas[i] * eps`. Plain Python floats: a step never waits for a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """n steps between n + 1 knots.

    Attributes:
        timesteps: (n,) what the network is told at knots 0 to n - 1; fractional for some schedulers.
        alphas: (n + 1,) signal at each knot; the last is 1 or close to it.
        sigmas: (n + 1,) noise at each knot.
        start_scale: what standard normal noise is multiplied with to become the latents at knot 0.
    """

    timesteps: tuple[float, ...]
    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    start_scale: float = 1.0

    def __len__(self) -> int:
        return len(self.timesteps)

    def tail(self, start: int) -> Plan:
        """The plan from knot `start` on, in [0, n): image to image begins there, from a picture noised to that knot."""
        if not 0 <= start < len(self):
            raise ValueError(f"start={start} is outside the plan's knots 0 to {len(self) - 1}.")
        return replace(self, timesteps=self.timesteps[start:], alphas=self.alphas[start:], sigmas=self.sigmas[start:])

    def back(self, i: int, latents: Tensor, noise: Tensor) -> Tensor:
        """Latents of knot i + 1, made as noisy as knot i again (Lugmayr et al. 2022, algorithm 1, line 9).

        With `a = alphas[i] / alphas[i + 1]`, `a x + sqrt(sigmas[i]^2 - a^2 sigmas[i + 1]^2) noise`.

        Args:
            i: a step, in [0, n).
            latents: (B, C, h, w) at knot i + 1.
            noise: (B, C, h, w) standard normal.
        """
        a = self.alphas[i] / self.alphas[i + 1]
        return a * latents + math.sqrt(max(self.sigmas[i] ** 2 - (a * self.sigmas[i + 1]) ** 2, 0.0)) * noise
