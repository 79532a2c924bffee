"""DDPM: ancestral sampling, the reversed Markov chain (Ho, Jain and Abbeel 2020).

Letters: `x = a * x0 + s * eps` at knot i, `a1` and `s1` at knot i + 1. The paper's alpha-bar is `a^2`, and its beta,
of a step over several trained timesteps, `1 - (a / a1)^2`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from latentgen.diffusion.plan import Plan
from latentgen.diffusion.sampling import Denoise, Noise
from latentgen.schedulers.knots import spaced_timesteps, table_plan
from latentgen.schedulers.scheduler import Scheduler


@dataclass(frozen=True, kw_only=True)
class DDPMScheduler(Scheduler):
    """As random as the forward process; made for many steps.

    Attributes:
        variance_type: "fixed_small": the variance that is right if all data are one point; "fixed_large": beta, right
            if they are standard normal (section 3.2). The names with "_log" mean the same variances.
        clip_sample: clip the predicted x0, for pixels. Latents have no such range: set it to False for them.
        clip_sample_range: to plus and minus this.
    """

    variance_type: str = "fixed_small"
    clip_sample: bool = True
    clip_sample_range: float = 1.0

    def _plan(self, n: int) -> Plan:
        spaced = spaced_timesteps(self.timestep_spacing, n, self.num_train_timesteps, self.steps_offset)
        return table_plan(self.schedule, [float(round(t)) for t in spaced], 1.0)

    def step(
        self, denoise: Denoise, latents: Tensor, i: int, plan: Plan, carry: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """Draw from the posterior `q(x1 | x, x0)` (eq. 6 and 7); the last step takes its mean (algorithm 2)."""
        x0 = denoise(latents, i).x0
        if self.clip_sample:
            x0 = x0.clamp(-self.clip_sample_range, self.clip_sample_range)
        a, a1, s, s1 = plan.alphas[i], plan.alphas[i + 1], plan.sigmas[i], plan.sigmas[i + 1]
        beta = 1 - (a / a1) ** 2
        mean = (a1 * beta / s**2) * x0 + (a / a1 * s1**2 / s**2) * latents
        variance = beta if self.variance_type.startswith("fixed_large") else beta * s1**2 / s**2
        if i + 1 == len(plan) or variance <= 0:
            return mean, None
        return mean + math.sqrt(variance) * noise(i), None
