"""A call's walk from noise to latents: the sampling loop with a progress bar, the caller's callback and the last checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from tqdm import tqdm

from latentgen.diffusion.noise import NoiseStream
from latentgen.diffusion.sampling import StepEvent, sample
from latentgen.pipelines.denoiser import Denoiser
from latentgen.pipelines.inputs import check_finite, check_tensor
from latentgen.pipelines.pipeline import Pipeline
from latentgen.schedulers import Scheduler

Callback = Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor] | None]
"""`callback_on_step_end(pipe, step, timestep, {"latents": ...})`: may return a dictionary whose "latents" replace them, and
may raise `StopSampling` to end the call with what there is."""


def check_callback(callback: Any) -> None:
    """Raise ValueError for what cannot be called."""
    if callback is not None and not callable(callback):
        raise ValueError(f"callback_on_step_end={callback!r} must be a function of four arguments.")


def run(
    pipe: Pipeline,
    solver: Scheduler,
    denoiser: Denoiser,
    latents: Tensor,
    noise: NoiseStream,
    *,
    constrain: Callable[[Tensor, int], Tensor] | None = None,
    callback: Callback | None = None,
    show_progress: bool | None = None,
) -> Tensor:
    """Walk the denoiser's plan and return the final latents (B, C, h, w), float32.

    Args:
        pipe: whose call it is; the callback is told.
        solver: takes the steps.
        denoiser: the guided network, with the plan.
        latents: (B, C, h, w) float32, as noisy as knot 0 of the plan says.
        noise: fresh noise for stochastic solvers.
        constrain: see `sample`.
        callback: see `Callback`.
        show_progress: None is the pipeline's own setting.

    Raises:
        FloatingPointError: for latents, or outputs of the UNet, that are not finite.
    """
    plan = denoiser.plan
    show = pipe.show_progress if show_progress is None else show_progress
    with tqdm(total=len(plan), disable=not show) as bar:

        def on_step(event: StepEvent) -> Tensor:
            bar.update()
            return event.latents if callback is None else _call_back(pipe, callback, event)

        latents = sample(solver, denoiser, latents, plan, noise=noise, constrain=constrain, on_step=on_step)
    denoiser.check_outputs()
    check_finite(latents, "the latents after the last step", "check the callback that replaced them, or the scheduler")
    return latents


def _call_back(pipe: Pipeline, callback: Callback, event: StepEvent) -> Tensor:
    """Show the caller a step; what comes back may replace the latents."""
    step, timestep, latents = event
    shown: float = int(timestep) if float(timestep).is_integer() else timestep
    returned: Any = callback(pipe, step, shown, {"latents": latents})
    if returned is None:
        return latents
    if not isinstance(returned, Mapping):
        raise ValueError(
            f"callback_on_step_end returned a {type(returned).__name__}; it must return None or a dictionary, in which "
            '"latents" replaces the latents.'
        )
    if unknown := [key for key in returned if key != "latents"]:
        raise ValueError(
            f"callback_on_step_end returned {', '.join(map(repr, unknown))}; only 'latents' can be replaced."
        )
    if "latents" not in returned:
        return latents
    replaced = check_tensor("the callback's latents", returned["latents"], latents.shape, latents.device)
    return replaced.float()
