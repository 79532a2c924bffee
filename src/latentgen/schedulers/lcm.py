"""Sampling of latent consistency models (Luo et al. 2023): jump to x0, add fresh noise, jump again.

Letters: `x = a * x0 + s * eps` at knot i, `a1` and `s1` at knot i + 1; `c_skip` and `c_out` make the jump the identity
at timestep 0 (Song et al. 2023, eq. 5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from latentgen.diffusion.plan import Plan
from latentgen.diffusion.sampling import Denoise, Noise
from latentgen.schedulers.knots import table_plan
from latentgen.schedulers.scheduler import Scheduler

SIGMA_DATA = 0.5
"""Standard deviation of the data that the boundary condition assumes."""


@dataclass(frozen=True, kw_only=True)
class LCMScheduler(Scheduler):
    """One to eight steps, for networks distilled for it. `timestep_spacing` and `steps_offset` have no effect here.

    Attributes:
        original_inference_steps: steps of the solver that the network was distilled with; a plan takes some of them.
        timestep_scaling: how quickly `c_skip` falls with the timestep.
        set_alpha_to_one: no effect; a plan always ends on clean latents.
        clip_sample: clip the predicted x0, for pixels.
        clip_sample_range: to plus and minus this.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    set_alpha_to_one: bool = True
    clip_sample: bool = False
    clip_sample_range: float = 1.0

    def __post_init__(self) -> None:
        """Check every field, and that the original steps are among the trained timesteps."""
        super().__post_init__()
        if self.original_inference_steps > self.num_train_timesteps:
            raise ValueError(
                f"LCMScheduler: original_inference_steps={self.original_inference_steps} does not fit; it must be at "
                f"most num_train_timesteps={self.num_train_timesteps}."
            )

    def _plan(self, n: int) -> Plan:
        original = self.original_inference_steps
        if n > original:
            raise ValueError(
                f"num_inference_steps={n} does not fit; it must be at most original_inference_steps={original}, the "
                "steps that the model was distilled with. Ask for fewer (4 to 8 are usual), or use another scheduler."
            )
        ratio = self.num_train_timesteps // original
        chosen = [original - math.floor(k * (original / n)) for k in range(n)]
        return table_plan(self.schedule, [float(c * ratio - 1) for c in chosen], 1.0)

    def step(
        self, denoise: Denoise, latents: Tensor, i: int, plan: Plan, carry: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """`x1 = a1 * (c_skip * x + c_out * x0) + s1 * noise` (Luo et al. 2023, algorithm 3). See `Scheduler.step`."""
        x0 = denoise(latents, i).x0
        if self.clip_sample:
            x0 = x0.clamp(-self.clip_sample_range, self.clip_sample_range)
        t = plan.timesteps[i] * self.timestep_scaling
        c_skip, c_out = SIGMA_DATA**2 / (t**2 + SIGMA_DATA**2), t / math.hypot(t, SIGMA_DATA)
        latents = plan.alphas[i + 1] * (c_skip * latents + c_out * x0)
        s1 = plan.sigmas[i + 1]
        return (latents + s1 * noise(i) if s1 > 0 else latents), None
