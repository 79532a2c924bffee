"""A plan: the knots that a solver walks, from the noisiest to the cleanest.

Letters: at knot i the latents are `x = alphas[i] * x0 + sigmas[i] * eps`. Plain Python floats: a step never waits for a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


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
