"""What few steps make of Gaussian data, whose samples' exact mean and deviation are known, for every scheduler.

Data `x0 ~ N(M, S^2)`; a perfect network says `E[x0 | x]` (see `test_convergence`). All is affine then, so one run gives the
whole distribution of the pictures: the first element of `x` has z = 0 and no fresh noise, each other one unit of one source.
The plans are the schedulers' own, with the trained tables, and zero terminal SNR: "trailing" and "linspace" begin at a knot
without signal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from latentgen.diffusion import Plan, Prediction, sample
from latentgen.schedulers import SCHEDULERS, LCMScheduler, Scheduler

M, S = 0.7, 0.5
ZERO_SNR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": True}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in SCHEDULERS),
    ("DDIMScheduler", {"set_alpha_to_one": False}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    *(
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": karras, **variant})
        for karras in (False, True)
        for variant in ({}, {"solver_type": "heun"}, {"solver_order": 3}, {"algorithm_type": "sde-dpmsolver++"})
    ),
]
LARGEST = {5: 0.5, 10: 0.33, 25: 0.18}
"""By the number of steps: a little above DDPM's own error, and DDPM converges slowest of all."""


def perfect(plan: Plan, *, consistency: bool) -> Callable[[Tensor, int], Prediction]:
    def denoise(x: Tensor, i: int) -> Prediction:
        alpha, sigma = plan.alphas[i], plan.sigmas[i]
        variance = (alpha * S) ** 2 + sigma**2
        z = (x - alpha * M) / math.sqrt(variance)
        if consistency:  # LCM's network says where the path ends
            return Prediction(M + S * z, z)
        x0 = M + alpha * S**2 / variance * (x - alpha * M)
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise


def error(scheduler: Scheduler, n: int) -> float:
    """Distance between the pictures' distribution and the data's (2-Wasserstein), in deviations of the data."""
    plan = scheduler.plan(n)
    sources = torch.eye(n + 2, dtype=torch.float64)  # none, z, the noise of step 0, of step 1, ...
    sources[0, 0] = 0
    start = plan.alphas[0] * M + math.sqrt((plan.alphas[0] * S) ** 2 + plan.sigmas[0] ** 2) * sources[1]
    denoise = perfect(plan, consistency=isinstance(scheduler, LCMScheduler))
    x = sample(scheduler, denoise, start, plan, noise=lambda i: sources[2 + i])
    mean, deviation = x[0].item(), (x[1:] - x[0]).norm().item()
    alpha, sigma = plan.alphas[-1], plan.sigmas[-1]
    return math.hypot(mean - alpha * M, deviation - math.hypot(alpha * S, sigma)) / S


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
@pytest.mark.parametrize(
    ("name", "settings"), SETTINGS, ids=[f"{n}-{'-'.join(map(str, s.values()))}" for n, s in SETTINGS]
)
def test_few_steps_from_pure_noise_come_near_the_data(name: str, settings: dict[str, Any], spacing: str) -> None:
    config = {
        **ZERO_SNR,
        "prediction_type": "v_prediction",
        "clip_sample": False,
        "timestep_spacing": spacing,
        **settings,
    }
    scheduler = SCHEDULERS[name].from_config(config)
    for n, largest in LARGEST.items():
        assert error(scheduler, n) < largest, n
