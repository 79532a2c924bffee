"""PNDM, also called PLMS: a linear multistep method along DDIM's path (Liu et al. 2022).

Letters: `e` is a network output (of eps, or of v), and the past ones are kept newest first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from latentgen.diffusion.plan import Plan
from latentgen.diffusion.prediction import Prediction, to_prediction
from latentgen.diffusion.sampling import Denoise, Noise
from latentgen.schedulers.knots import spaced_timesteps, table_plan
from latentgen.schedulers.scheduler import Scheduler

History = tuple[Tensor, ...]

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights of the last 1 to 4 outputs, newest first (eq. 9 and 12)."""


@dataclass(frozen=True, kw_only=True)
class PNDMScheduler(Scheduler):
    """Four outputs in one step, one evaluation per step (two in the first).

    Attributes:
        set_alpha_to_one: end on clean latents; otherwise on those of timestep 0, as Stable Diffusion does.
        skip_prk_steps: start with one Heun step, as latent models do, instead of three Runge-Kutta steps. Those are not
            implemented, so this defaults to True; a file of this class that leaves it out means False, and raises.
    """

    set_alpha_to_one: bool = False
    skip_prk_steps: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """See `Scheduler.from_config`."""
        is_pndms = config.get("_class_name") == cls.__name__
        if config.get("skip_prk_steps", not is_pndms) is False:
            raise ValueError(
                "skip_prk_steps=False, which is what a PNDMScheduler file without that field means, asks for the "
                'Runge-Kutta start, and that is not implemented. Set "skip_prk_steps": true.'
            )
        return super().from_config(config)

    def _plan(self, n: int) -> Plan:
        spaced = spaced_timesteps(self.timestep_spacing, n, self.num_train_timesteps, self.steps_offset)
        final = 1.0 if self.set_alpha_to_one else self.schedule.alphas_cumprod[0].item()
        return table_plan(self.schedule, [float(round(t)) for t in spaced], final)

    def step(
        self, denoise: Denoise, latents: Tensor, i: int, plan: Plan, carry: History | None, noise: Noise
    ) -> tuple[Tensor, History]:
        """Extrapolate the outputs and move along DDIM's path (eq. 11 and 12). See `Scheduler.step`."""
        e = self._output(denoise(latents, i), i, plan)
        if carry is None and len(plan) > 1:
            # Nothing to extrapolate from yet: go there, look, and redo the step with the mean (Heun).
            there = self._move(latents, e, i, plan)
            mean = (e + self._output(denoise(there, i + 1), i + 1, plan)) / 2
            return self._move(latents, mean, i, plan), (e,)
        past = (e, *(carry or ()))[:4]
        weighted = [w * p for w, p in zip(ADAMS_BASHFORTH[len(past) - 1], past, strict=True)]
        return self._move(latents, sum(weighted[1:], weighted[0]), i, plan), past[:3]

    def _output(self, prediction: Prediction, i: int, plan: Plan) -> Tensor:
        # What is extrapolated is what the network gives: v for a v model, and that has order 1 only, where eps would have
        # order 2. It is kept, because the pictures that people know are made that way. A network that predicts x0 is new
        # to this solver, and taken to predict eps.
        if self.prediction_type == "v_prediction":
            return plan.alphas[i] * prediction.eps - plan.sigmas[i] * prediction.x0
        return prediction.eps

    def _move(self, x: Tensor, e: Tensor, i: int, plan: Plan) -> Tensor:
        kind = "v_prediction" if self.prediction_type == "v_prediction" else "epsilon"
        x0, eps = to_prediction(kind, e, x, plan.alphas[i], plan.sigmas[i])
        return plan.alphas[i + 1] * x0 + plan.sigmas[i + 1] * eps
