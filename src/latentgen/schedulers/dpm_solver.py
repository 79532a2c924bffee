"""DPM-Solver++: a multistep solver of the data-prediction equation (Lu et al. 2022b), and its stochastic form.

Letters: `x = alpha * x0 + sigma * eps` at each knot. `lambda = log(alpha / sigma)`, half the log signal-to-noise ratio,
rises from knot to knot: by `h` from i to i + 1, by `h0` and `h1` in the two steps before. `m[0]`, `m[1]`, `m[2]` are
the x0 predicted at knots i, i - 1 and i - 2; `D1`, `D2` divided differences of them, times h and h^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from latentgen.diffusion.plan import Plan
from latentgen.diffusion.sampling import Denoise, Noise
from latentgen.schedulers.knots import karras_levels, level_plan, noise_levels, spaced_timesteps, timestep_of
from latentgen.schedulers.scheduler import Scheduler

History = tuple[Tensor, ...]

FEW_STEPS = 15
"""Runs shorter than this end with lower orders if `lower_order_final` is set."""


@dataclass(frozen=True, kw_only=True)
class DPMSolverMultistepScheduler(Scheduler):
    """Order 2 or 3 for one evaluation per step; good pictures in 20 steps.

    Attributes:
        solver_order: 1 (DDIM), 2 or 3.
        algorithm_type: "dpmsolver++", or "sde-dpmsolver++" with fresh noise in every step.
        solver_type: of order 2: "midpoint", or "heun" (weights by an exact integral).
        lower_order_final: with fewer than 15 steps, take the last step with order 1 and the one before with at most 2.
        euler_at_final: take the last step with order 1.
        use_karras_sigmas: noise levels as in Karras et al. 2022, eq. 5, over the whole trained range; with zero terminal
            SNR that is pure noise, then the levels from the second of `timestep_spacing` on.
        final_sigmas_type: "zero": end on clean latents; "sigma_min": at the lowest trained noise level.
    """

    timestep_spacing: str = "linspace"
    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    use_karras_sigmas: bool = False
    final_sigmas_type: str = "zero"

    def _plan(self, n: int) -> Plan:
        table, trained = noise_levels(self.schedule), self.num_train_timesteps
        # "leading" and "linspace" lay n + 1 timesteps, and the final level takes the place of the lowest. (With n = T
        # there are no T + 1 to lay.)
        laid = n if self.timestep_spacing == "trailing" or n == trained else n + 1
        spaced = spaced_timesteps(self.timestep_spacing, laid, trained, self.steps_offset)[:n]
        timesteps = [float(round(t)) for t in spaced]
        levels = [table[int(t)] for t in timesteps]
        if self.use_karras_sigmas:
            levels = karras_levels([table[-1], *levels[1:-1], table[0]][:n])
            timesteps = [float(round(timestep_of(table, s))) for s in levels]
        return level_plan(timesteps, [*levels, 0.0 if self.final_sigmas_type == "zero" else table[0]])

    def step(
        self, denoise: Denoise, latents: Tensor, i: int, plan: Plan, carry: History | None, noise: Noise
    ) -> tuple[Tensor, History]:
        """Take x0 as a polynomial in lambda through the last predictions, and integrate. See `Scheduler.step`.

        `x1 = sigma1 / sigma * x + alpha1 * (phi1 * m[0] + phi2 * D1 + phi3 * D2)`, where `phi1 = 1 - exp(-k)`,
        `phi2 = 1 - phi1 / k`, `phi3 = 1 / 2 - phi2 / k` and `k = h` (Lu et al. 2022b, section 4; order 3 as in the
        authors' code). The stochastic form has `k = 2 h`, `exp(-h) * x` in place of x, and fresh noise of scale
        `sigma1 * sqrt(1 - exp(-2 h))`.
        """
        past = (denoise(latents, i).x0, *(carry or ()))[: self.solver_order]
        alpha1, sigma1 = plan.alphas[i + 1], plan.sigmas[i + 1]
        h = _lambda(plan, i + 1) - _lambda(plan, i)
        stochastic = self.algorithm_type == "sde-dpmsolver++"
        k = 2 * h if stochastic else h
        ratio = sigma1 / plan.sigmas[i] * (math.exp(-h) if stochastic else 1.0)
        x = ratio * latents + alpha1 * self._integral(past[: self._highest_order(i, plan)], h, k, i, plan)
        up = sigma1 * math.sqrt(max(-math.expm1(-2 * h), 0.0)) if stochastic else 0.0
        return (x + up * noise(i) if up > 0 else x), past[: self.solver_order - 1]

    def _integral(self, m: History, h: float, k: float, i: int, plan: Plan) -> Tensor:
        phi1 = -math.expm1(-k)
        if len(m) == 1:
            return phi1 * m[0]
        phi2 = 1 - phi1 / k
        h0 = _lambda(plan, i) - _lambda(plan, i - 1)
        D1 = h / h0 * (m[0] - m[1])
        if len(m) == 2:
            return phi1 * m[0] + (phi1 / 2 if self.solver_type == "midpoint" else phi2) * D1
        h1 = _lambda(plan, i - 1) - _lambda(plan, i - 2)
        D2 = h / (h0 + h1) * (D1 - h / h1 * (m[1] - m[2]))
        # The integral of D2's part is 2 * phi3. The published code has phi3, so that its order 3 converges like order
        # 2; it is kept, because the pictures that people know are made that way.
        phi3 = 1 / 2 - phi2 / k
        return phi1 * m[0] + phi2 * (D1 + h0 / h * D2) + phi3 * D2

    def _highest_order(self, i: int, plan: Plan) -> int:
        left = len(plan) - i
        lower = self.lower_order_final and len(plan) < FEW_STEPS
        if left == 1 and (lower or self.euler_at_final or plan.sigmas[i + 1] == 0):  # at sigma = 0, h is infinite
            return 1
        if plan.sigmas[i + 1] >= plan.sigmas[i]:  # a step to where it is: Karras's levels end at "sigma_min" already
            return 1
        return 2 if left == 2 and lower else 3


def _lambda(plan: Plan, i: int) -> float:
    return math.log(plan.alphas[i] / plan.sigmas[i]) if plan.sigmas[i] > 0 else math.inf
