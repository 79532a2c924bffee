"""Where the knots of a plan lie: timesteps among the trained ones, and noise levels by timestep.

Letters: T trained timesteps, n steps; `s = sigma / alpha`, the noise level of solvers that work on `x / alpha` (called
sigma by Karras et al. 2022). A table of s is indexed by timestep and rises with it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from latentgen.diffusion.noise_schedule import NoiseSchedule
from latentgen.diffusion.plan import Plan

ALMOST_NO_SIGNAL = 2.0**-24
"""Stands in for a signal power of zero (zero terminal SNR) where s must be finite: float16's smallest number."""


def is_pure_noise(s: float) -> bool:
    """Whether s stands in for infinity, at a knot without signal: its value means nothing, and nothing may depend on it."""
    return math.isclose(s, math.sqrt((1 - ALMOST_NO_SIGNAL) / ALMOST_NO_SIGNAL), rel_tol=1e-9)


def spaced_timesteps(spacing: str, n: int, trained: int, offset: int) -> list[float]:
    """Return n distinct, falling timesteps in [0, T) (Lin et al. 2024, table 2); "linspace" may give fractions.

    Two rules keep them distinct and trained. With n = T there is one choice: every timestep once. And `offset` moves
    "leading" timesteps no further than to T - 1. Without them, 1000 steps with Stable Diffusion's offset of 1 would ask
    for timestep 1000 of 0 to 999.

    Args:
        spacing: "leading": multiples of T // n, plus `offset`. "linspace": 0 to T - 1 in even parts, ends included.
            "trailing": T - 1, and down from there in parts of T / n, rounded.
        n: in [1, T].
        trained: T.
        offset: at least 0, for "leading".
    """
    falling = range(n - 1, -1, -1)
    if n == trained:
        return [float(t) for t in falling]
    if spacing == "leading":
        ratio = trained // n
        offset = min(offset, trained - 1 - (n - 1) * ratio)
        return [float(k * ratio + offset) for k in falling]
    if spacing == "linspace":
        part = (trained - 1) / (n - 1) if n > 1 else 0.0
        return [min(k * part, trained - 1.0) for k in falling]  # 29 * (999 / 29) is above 999
    # The part as it is after rounding against T: then ties round as they do in NumPy's arange(T, 0, -T / n).
    part = trained - (trained - trained / n)
    return [float(round(trained - i * part) - 1) for i in range(n)]


def table_plan(schedule: NoiseSchedule, timesteps: Sequence[float], final_alpha_squared: float) -> Plan:
    """The plan of a solver that only uses trained timesteps: alpha and sigma from the table, then a final knot.

    Args:
        schedule: the table.
        timesteps: (n,) whole numbers in [0, T).
        final_alpha_squared: signal power at knot n, in (0, 1].
    """
    table = schedule.alphas_cumprod.double().tolist()
    squares = [table[int(t)] for t in timesteps] + [final_alpha_squared]
    alphas, sigmas = ([math.sqrt(a) for a in squares], [math.sqrt(1 - a) for a in squares])
    return Plan(tuple(timesteps), tuple(alphas), tuple(sigmas))


def noise_levels(schedule: NoiseSchedule) -> list[float]:
    """Return s at every trained timestep, (T,), rising and finite."""
    squares = schedule.alphas_cumprod.double().tolist()
    return [math.sqrt((1 - a) / a) for a in (a or ALMOST_NO_SIGNAL for a in squares)]


def karras_levels(levels: Sequence[float]) -> list[float]:
    """Lay falling noise levels anew between the first and the last (Karras et al. 2022, eq. 5 with rho = 7), (n,) -> (n,).

    A first level of pure noise stays, and the curve begins at the second: there is no even way down from infinity, and a
    curve from the number that stands in for it spends most of its knots where the latents hold nothing yet.
    """
    if is_pure_noise(levels[0]) and len(levels) > 1:
        return [levels[0], *karras_levels(levels[1:])]
    n, rho = len(levels), 7.0
    top, bottom = levels[0] ** (1 / rho), levels[-1] ** (1 / rho)
    return [(top + i / max(n - 1, 1) * (bottom - top)) ** rho for i in range(n)]


def timestep_of(levels: Sequence[float], s: float) -> float:
    """Return the timestep, in [0, T - 1], at which the table has s, linear in log s between two trained timesteps."""
    if len(levels) == 1:
        return 0.0
    low = min(max(bisect_right(levels, s) - 1, 0), len(levels) - 2)
    weight = math.log(s / levels[low]) / math.log(levels[low + 1] / levels[low])
    return low + min(max(weight, 0.0), 1.0)


def level_plan(timesteps: Sequence[float], levels: Sequence[float], start_scale: float = 1.0) -> Plan:
    """The plan of a solver that chooses noise levels: `alpha = 1 / sqrt(1 + s^2)` and `sigma = s * alpha`.

    Args:
        timesteps: (n,).
        levels: (n + 1,) s at each knot; the last is 0 if the run ends on clean latents.
        start_scale: see `Plan`.
    """
    alphas = [1 / math.sqrt(1 + s * s) for s in levels]
    sigmas = [s * alpha for s, alpha in zip(levels, alphas, strict=True)]
    return Plan(tuple(timesteps), tuple(alphas), tuple(sigmas), start_scale)


def euler_plan(schedule: NoiseSchedule, spacing: str, n: int, offset: int, *, karras: bool = False) -> Plan:
    """The knots of Euler's and Heun's methods: n noise levels, then clean latents.

    Args:
        schedule: the table of T trained timesteps.
        spacing: see `spaced_timesteps`. s is linear in t between two trained timesteps.
        n: in [1, T].
        offset: see `spaced_timesteps`.
        karras: lay the levels of that anew by `karras_levels`.
    """
    table = noise_levels(schedule)
    timesteps = spaced_timesteps(spacing, n, len(schedule), offset)
    levels = [table[int(t)] + (t - int(t)) * (table[math.ceil(t)] - table[int(t)]) for t in timesteps]
    if karras:
        levels = karras_levels(levels)
        timesteps = [timestep_of(table, s) for s in levels]
    plan = level_plan(timesteps, [*levels, 0.0])
    # The convention that people's seeds rely on: spacings that begin at timestep T - 1 start from `s * noise`,
    # "leading" from noise with a noisy picture's variance, `sqrt(1 + s^2) * noise`. Times alpha, these are sigma and 1.
    return plan if spacing == "leading" else replace(plan, start_scale=plan.sigmas[0])
