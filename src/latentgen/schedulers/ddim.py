"""DDIM: denoising diffusion implicit models (Song, Meng and Ermon 2021).

Letters: `x = a * x0 + s * eps` at knot i, `a1` and `s1` at knot i + 1. The paper's alpha is our `a^2`, and its sigma,
the scale of the step's fresh noise, our `w`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from torch import Tensor

from latentgen.diffusion.plan import Plan
from latentgen.diffusion.sampling import Denoise, Noise
from latentgen.schedulers.knots import spaced_timesteps, table_plan
from latentgen.schedulers.scheduler import Scheduler


@dataclass(frozen=True, kw_only=True)
class DDIMScheduler(Scheduler):
    """Deterministic for eta = 0; for eta = 1 as random as DDPM.

    Attributes:
        ldm: follow the original scripts: see `as_in_ldm`; not part of the config.
        set_alpha_to_one: end on clean latents; otherwise on those of timestep 0, as Stable Diffusion does.
        clip_sample: clip the predicted x0, for pixels. Latents have no such range: set it to False for them.
        clip_sample_range: to plus and minus this.
        eta: in [0, 1], set for a run with `dataclasses.replace(scheduler, eta=...)`; not part of the config.
    """

    set_alpha_to_one: bool = True
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    eta: float = field(default=0.0, metadata={"runtime": True})
    ldm: bool = field(default=False, metadata={"runtime": True})

    def as_in_ldm(self) -> DDIMScheduler:
        """This scheduler with the rules of the scripts of latent diffusion and Stable Diffusion, to make their pictures again.

        Timesteps are 1, 1 + T // n, ..., the last knot is that of timestep 0, and image to image starts one knot noisier than the
        first of its steps takes it to be (their `stochastic_encode` and `decode`).
        """
        return replace(self, ldm=True, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)

    def _plan(self, n: int) -> Plan:
        if self.ldm:
            _check_ldm_steps(n, self.num_train_timesteps)
        spaced = spaced_timesteps(self.timestep_spacing, n, self.num_train_timesteps, self.steps_offset)
        final = 1.0 if self.set_alpha_to_one else self.schedule.alphas_cumprod[0].item()
        return table_plan(self.schedule, [float(round(t)) for t in spaced], final)

    def step(
        self, denoise: Denoise, latents: Tensor, i: int, plan: Plan, carry: None, noise: Noise
    ) -> tuple[Tensor, None]:
        """`x1 = a1 * x0 + sqrt(s1^2 - w^2) * eps + w * noise` (eq. 12, with w of eq. 16). See `Scheduler.step`."""
        x0, eps = denoise(latents, i)
        if self.clip_sample:  # x0 only: eps stays as the network said, the folder layout's meaning of the field
            x0 = x0.clamp(-self.clip_sample_range, self.clip_sample_range)
        a, a1, s, s1 = plan.alphas[i], plan.alphas[i + 1], plan.sigmas[i], plan.sigmas[i + 1]
        w = self.eta * s1 / s * math.sqrt(max(1 - (a / a1) ** 2, 0.0))
        latents = a1 * x0 + math.sqrt(max(s1**2 - w**2, 0.0)) * eps
        return (latents + w * noise(i) if w > 0 else latents), None


def _check_ldm_steps(n: int, trained: int) -> None:
    """Raise ValueError for numbers of steps of which the scripts take another, or ask for a timestep that there is none."""

    def fits(steps: int) -> bool:
        taken = range(1, trained + 1, trained // steps)
        return len(taken) == steps and taken[-1] < trained

    if not fits(n):
        nearest = min(filter(fits, range(1, trained + 1)), key=lambda steps: abs(steps - n))
        raise ValueError(
            f"num_inference_steps={n}: the original scripts step by {trained} // {n} = {trained // n} timesteps, which makes "
            f"another number of them or leaves the trained ones; use {nearest}, or a scheduler without their rules."
        )
