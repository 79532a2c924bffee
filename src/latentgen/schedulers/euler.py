"""Euler's method on the noise level (Karras et al. 2022, algorithm 1 without its second-order lines).

Letters: `x = alpha * x0 + sigma * eps` at each knot; the method's own variable is `s = sigma / alpha`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from latentgen.diffusion.plan import Plan
from latentgen.diffusion.sampling import Denoise, Noise
from latentgen.schedulers.knots import euler_plan, noise_levels
from latentgen.schedulers.scheduler import Scheduler


@dataclass(frozen=True, kw_only=True)
class EulerDiscreteScheduler(Scheduler):
    """DDIM's path with other knots: fractional timesteps, or Karras's noise levels, down to clean latents.

    Attributes:
        use_karras_sigmas: noise levels as in Karras et al. 2022, eq. 5, between the first (or, if that is pure noise, the
            second) and the last that `timestep_spacing` gives.
        final_sigmas_type: "zero": end on clean latents; "sigma_min": at the lowest trained noise level.
    """

    timestep_spacing: str = "linspace"
    use_karras_sigmas: bool = False
    final_sigmas_type: str = "zero"

    def _plan(self, n: int) -> Plan:
        plan = euler_plan(self.schedule, self.timestep_spacing, n, self.steps_offset, karras=self.use_karras_sigmas)
        if self.final_sigmas_type == "sigma_min":
            # alpha stays 1 at this knot: its users take `x0 + s * eps` for the picture, unscaled.
            plan = replace(plan, sigmas=(*plan.sigmas[:-1], noise_levels(self.schedule)[0]))
        return plan

    def step(
        self, denoise: Denoise, latents: Tensor, i: int, plan: Plan, carry: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """`x1 / alpha1 = x / alpha + (s1 - s) * eps`, which is `x0 + s1 * eps`. See `Scheduler.step`."""
        x0, eps = denoise(latents, i)
        return plan.alphas[i + 1] * x0 + plan.sigmas[i + 1] * eps, None
