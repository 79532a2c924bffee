"""How a call is solved: its scheduler, its guidance, its tiles, and where it begins, checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from latentgen.diffusion.plan import Plan
from latentgen.pipelines.inputs import check_number
from latentgen.runtime.tiling import Tiling
from latentgen.runtime.warn import warn_user
from latentgen.schedulers import DDIMScheduler, Scheduler, scheduler_by_name
from latentgen.schedulers.config import TRAINED, for_latents


def choose_solver(own: Scheduler, scheduler: Any, eta: Any, defaults: Mapping[str, Any]) -> Scheduler:
    """The call's scheduler, with its eta.

    Args:
        own: the pipeline's.
        scheduler: for this call: another, the name of one with the settings of `own`, or None.
        eta: in [0, 1], DDIM's amount of fresh noise.
        defaults: what a scheduler by name takes for what `own` does not say.
    """
    solver = own if scheduler is None else scheduler
    if isinstance(solver, str):
        solver = scheduler_by_name(solver, for_latents(own.config, defaults))
    if not isinstance(solver, Scheduler):
        raise ValueError(f"scheduler={scheduler!r} must be a scheduler of latentgen or the name of one.")
    if solver is scheduler:
        warn_of_clipping(solver)
        warn_of_other_training(solver, own)
    eta = check_number("eta", eta, 0, 1)
    if isinstance(solver, DDIMScheduler):
        return dataclasses.replace(solver, eta=eta) if eta else solver
    if eta:
        raise ValueError(f"eta={eta} is DDIM's; {type(solver).__name__} has none: leave it at 0 or use DDIM.")
    return solver


def warn_of_clipping(scheduler: Scheduler) -> None:
    """Say so where a scheduler would clip latents as if they were pixels: its class does unless told otherwise."""
    if getattr(scheduler, "clip_sample", False):
        warn_user(
            f"the {type(scheduler).__name__} has clip_sample=True, which is for pixels and spoils latents: build it with "
            "clip_sample=False, or with from_config(pipe.scheduler.config)."
        )


def warn_of_other_training(scheduler: Scheduler, own: Scheduler) -> None:
    """Say so where a call's scheduler is for a network that was trained otherwise than the pipeline's."""
    theirs = {name: getattr(scheduler, name) for name in TRAINED if getattr(scheduler, name) != getattr(own, name)}
    if theirs:
        listed = ", ".join(f"{name}={value!r} (the model has {getattr(own, name)!r})" for name, value in theirs.items())
        warn_user(
            f"scheduler= is for a model that was trained otherwise: {listed}. Build it with "
            f"{type(scheduler).__name__}.from_config(pipe.scheduler.config)."
        )


def check_guidance(scale: Any, rescale: Any) -> tuple[float, float]:
    """The two numbers of guidance."""
    scale = check_number("guidance_scale", scale, 0)
    rescale = check_number("guidance_rescale", rescale, 0, 1)
    if scale == 0:
        warn_user(
            "guidance_scale=0 follows the negative prompt alone (or no class), and the prompt has no effect; 1 runs without "
            "guidance, which is what other libraries do for 0."
        )
    if scale == 1 and rescale:
        warn_user("guidance_scale=1 runs without guidance: guidance_rescale has no effect.")
    return scale, rescale


def check_tiling(tiling: Any, factor: int) -> Tiling:
    """The call's tiling, for an autoencoder of this factor; nothing is divided where none is given."""
    if tiling is None:
        return Tiling()
    if not isinstance(tiling, Tiling):
        raise ValueError(
            f"tiling={tiling!r} must be a latentgen.Tiling, for example Tiling(vae=512, overlap=64), or None."
        )
    tiling.check(factor)
    return tiling


def first_knot(strength: Any, plan: Plan) -> int:
    """The knot of a plan of n steps from which the last `floor(n * strength)` remain.

    Raises:
        ValueError: if `strength` is not in (0, 1], or leaves no step.
    """
    value, n = check_number("strength", strength, 0), len(plan)
    if value > 1:
        raise ValueError(
            f"strength={strength!r} must be above 0 and at most 1, the share of the {n} steps that is run."
        )
    steps = min(
        n, math.floor(n * (value + 1e-6))
    )  # 50 * 0.58 is 28.999999999999996, and NumPy's numbers may have 7 digits
    if steps < 1:
        raise ValueError(
            f"strength={strength!r} of {n} steps leaves none; it must be above 0 and at most 1, and for {n} steps at least "
            f"{math.ceil(1e4 / n) / 1e4:g}. Raise it, or num_inference_steps."
        )
    return n - steps


def knot_of_start(first: int, solver: Scheduler, strength: Any) -> int:
    """The knot as noisy as which image to image starts at knot `first`: that one, or the one before under LDM's rules.

    Raises:
        ValueError: if there is none before.
    """
    if not (isinstance(solver, DDIMScheduler) and solver.ldm):
        return first
    if first == 0:
        raise ValueError(
            f"strength={strength!r} runs every step, and under the original scripts' rules the picture is noised one knot "
            "further than the first of them: lower it."
        )
    return first - 1
