"""Euler steps with fresh noise: more is removed than needed, and the difference added anew.

Letters: `x = alpha * x0 + sigma * eps` at each knot; the method's own variable is `s = sigma / alpha` at knot i, and
`s1` at knot i + 1. The Euler step goes to the level `down`, and fresh noise has the level `up`: `down^2 + up^2 = s1^2`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from latentgen.diffusion.plan import Plan
from latentgen.diffusion.sampling import Denoise, Noise
from latentgen.schedulers.knots import euler_plan
from latentgen.schedulers.scheduler import Scheduler


@dataclass(frozen=True, kw_only=True)
class EulerAncestralDiscreteScheduler(Scheduler):
    """The ancestral sampler of k-diffusion: DDPM's posterior, on the knots of `EulerDiscreteScheduler`."""

    timestep_spacing: str = "linspace"

    def _plan(self, n: int) -> Plan:
        return euler_plan(self.schedule, self.timestep_spacing, n, self.steps_offset)

    def step(
        self, denoise: Denoise, latents: Tensor, i: int, plan: Plan, carry: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """`x1 / alpha1 = x0 + down * eps + up * noise`, `up^2 = s1^2 * (s^2 - s1^2) / s^2`. See `Scheduler.step`."""
        x0, eps = denoise(latents, i)
        alpha1 = plan.alphas[i + 1]
        s, s1 = plan.sigmas[i] / plan.alphas[i], plan.sigmas[i + 1] / alpha1
        up = s1 * math.sqrt(max(1 - (s1 / s) ** 2, 0.0))
        down = s1 * (s1 / s)
        latents = alpha1 * x0 + (alpha1 * down) * eps
        return (latents + (alpha1 * up) * noise(i) if up > 0 else latents), None
