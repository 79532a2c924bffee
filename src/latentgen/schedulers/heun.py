"""Heun's method on the noise level (Karras et al. 2022, algorithm 1).

Letters: `x = alpha * x0 + sigma * eps` at each knot; the method's own variable is `s = sigma / alpha` at knot i, and
`s1` at knot i + 1. The slope `d(x / alpha) / ds` is eps.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from latentgen.diffusion.plan import Plan
from latentgen.diffusion.prediction import Prediction
from latentgen.diffusion.sampling import Denoise, Noise
from latentgen.schedulers.knots import euler_plan, is_pure_noise
from latentgen.schedulers.scheduler import Scheduler


@dataclass(frozen=True, kw_only=True)
class HeunDiscreteScheduler(Scheduler):
    """Second order: two evaluations per step, one in the last and in a step from pure noise.

    Attributes:
        use_karras_sigmas: as in `EulerDiscreteScheduler`.
        clip_sample: clip the predicted x0, for pixels.
        clip_sample_range: to plus and minus this.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    timestep_spacing: str = "linspace"
    use_karras_sigmas: bool = False
    clip_sample: bool = False
    clip_sample_range: float = 1.0

    def _plan(self, n: int) -> Plan:
        return euler_plan(self.schedule, self.timestep_spacing, n, self.steps_offset, karras=self.use_karras_sigmas)

    def step(
        self, denoise: Denoise, latents: Tensor, i: int, plan: Plan, carry: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """An Euler step, then again with the mean of both ends' slopes. See `Scheduler.step`."""
        x0, eps = self._clipped(denoise(latents, i), latents, i, plan)
        alpha1, sigma1 = plan.alphas[i + 1], plan.sigmas[i + 1]
        there = alpha1 * x0 + sigma1 * eps
        s = plan.sigmas[i] / plan.alphas[i]
        if i + 1 == len(plan) or is_pure_noise(s):  # from there the mean of the slopes would stand for an infinite step
            return there, None
        eps1 = self._clipped(denoise(there, i + 1), there, i + 1, plan).eps
        # `x0 + s * eps + (s1 - s) * (eps + eps1) / 2` less `x0 + s1 * eps`, times alpha1.
        half = (sigma1 - alpha1 * s) / 2
        return there + half * (eps1 - eps), None

    def _clipped(self, prediction: Prediction, x: Tensor, i: int, plan: Plan) -> Prediction:
        if not self.clip_sample:
            return prediction
        x0 = prediction.x0.clamp(-self.clip_sample_range, self.clip_sample_range)
        return Prediction(x0, (x - plan.alphas[i] * x0) / plan.sigmas[i])  # the slope that leads to the clipped x0
