"""A pipeline's call from its checked arguments to its pictures: what all pipelines do alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from latentgen.diffusion.noise import NoiseStream
from latentgen.diffusion.plan import Plan
from latentgen.diffusion.sampling import StepEvent, sample
from latentgen.models.first_stage import FirstStage
from latentgen.pipelines.adapters import TextPipeline
from latentgen.pipelines.condition import Condition
from latentgen.pipelines.denoiser import Denoiser
from latentgen.pipelines.inputs import check_choice, check_finite, check_tensor, plain_number
from latentgen.pipelines.output import OUTPUT_TYPES, ImageOutput, make_output
from latentgen.pipelines.pipeline import Pipeline
from latentgen.pipelines.solver import check_guidance, check_tiling, choose_solver
from latentgen.runtime.tiling import Tiling
from latentgen.schedulers import Scheduler

Callback = Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor] | None]
"""`callback_on_step_end(pipe, step, timestep, {"latents": ...})`: may return a dictionary whose "latents" replace them, and
may raise `StopSampling` to end the call with what there is."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a call was asked for, checked, and how it goes on.

    Attributes:
        pipe: whose call it is; the callback is told.
        make_parts: gives `parts`.
        first_stage: its autoencoder.
        solver: takes the steps.
        plan: the knots of the whole run.
        guidance_scale, guidance_rescale: see `guide`.
        tiling: how the networks' work is divided.
        output_type: the pictures' form.
        callback: see `Callback`.
        show_progress: whether there is a progress bar.
    """

    pipe: Pipeline
    make_parts: Callable[[], Any]
    first_stage: FirstStage[Any]
    solver: Scheduler
    plan: Plan
    guidance_scale: float
    guidance_rescale: float
    tiling: Tiling
    output_type: str
    callback: Callback | None
    show_progress: bool

    @cached_property
    def parts(self) -> Any:
        """What has the UNet, and all that embeds texts: the pipeline, or its components with adapters on them."""
        return self.make_parts()

    @property
    def guided(self) -> bool:
        """Whether the network is asked twice at each step, with and without the condition."""
        return self.guidance_scale != 1

    def start(self, noise: NoiseStream, given: Tensor | None) -> Tensor:
        """The noise that a run begins with, (B, C, h, w): the streams' next, or what was given in its place."""
        drawn = noise.draw()
        if given is None:
            return drawn
        return check_tensor("latents", given, drawn.shape, self.pipe.device, torch.float32).float()

    def sample(
        self,
        latents: Tensor,
        noise: NoiseStream,
        condition: Condition | None = None,
        *,
        plan: Plan | None = None,
        extra: Tensor | None = None,
        class_label: int | None = None,
        constrain: Callable[[Tensor, int], Tensor] | None = None,
        repeats: Sequence[int] | None = None,
    ) -> Tensor:
        """Denoise latents and return the final ones, (B, C, h, w) float32.

        Args:
            latents: (B, C, h, w) float32, as noisy as knot 0 of the plan says.
            noise: fresh noise for stochastic solvers.
            condition: what the UNet attends to; None for a network without.
            plan: a part of the run; None is the whole of it.
            extra, class_label: see `Denoiser`.
            constrain, repeats: see `latentgen.diffusion.sample`.

        Raises:
            FloatingPointError: for latents, or outputs of the UNet, that are not finite.
        """
        plan = plan or self.plan
        factor = self.first_stage.config.factor
        denoiser = Denoiser(
            self.parts.unet,
            self.solver.prediction_type,
            plan,
            *(condition or (None, None)),
            guidance_scale=self.guidance_scale,
            guidance_rescale=self.guidance_rescale,
            extra=extra,
            class_label=class_label,
            tile=self.tiling.unet and self.tiling.unet // factor,
            overlap=self.tiling.overlap // factor,
        )
        with tqdm(total=len(plan), disable=not self.show_progress) as bar:

            def on_step(event: StepEvent) -> Tensor:
                bar.update()
                return event.latents if self.callback is None else _call_back(self.pipe, self.callback, event)

            latents = sample(
                self.solver,
                denoiser,
                latents,
                plan,
                noise=noise,
                constrain=constrain,
                repeats=repeats,
                on_step=on_step,
            )
        denoiser.check_outputs()
        check_finite(
            latents, "the latents after the last step", "check the callback that replaced them, or the scheduler"
        )
        return latents

    def output(
        self, latents: Tensor, seeds: list[int], *, finish: Callable[[Tensor], Tensor] = lambda pixels: pixels
    ) -> ImageOutput:
        """The final latents as what the call returns; `finish` is applied to the pixels (N, 3, H, W) in [0, 1]."""
        return make_output(self.first_stage, latents, self.output_type, seeds, tiling=self.tiling, finish=finish)


def begin(
    pipe: Pipeline,
    first_stage: FirstStage[Any],
    *,
    num_inference_steps: Any,
    scheduler: Any,
    eta: Any,
    guidance_scale: Any = 1.0,
    guidance_rescale: Any = 0.0,
    tiling: Any = None,
    output_type: Any = "pil",
    callback: Any = None,
    show_progress: bool | None = None,
    lora_scale: Any = None,
) -> Call:
    """Check what all pipelines are asked alike.

    Raises:
        ValueError: for components that do not fit, and for an argument that breaks its rule.
    """
    pipe.check_components()
    check_choice("output_type", output_type, OUTPUT_TYPES)
    if callback is not None and not callable(callback):
        raise ValueError(f"callback_on_step_end={callback!r} must be a function of four arguments.")
    scale, rescale = check_guidance(guidance_scale, guidance_rescale)
    solver = choose_solver(pipe.components["scheduler"], scheduler, eta, pipe.scheduler_defaults)
    return Call(
        pipe=pipe,
        make_parts=pipe.adapted(lora_scale) if isinstance(pipe, TextPipeline) else lambda: pipe,
        first_stage=first_stage,
        solver=solver,
        plan=solver.plan(plain_number(num_inference_steps)),
        guidance_scale=scale,
        guidance_rescale=rescale,
        tiling=check_tiling(tiling, first_stage.config.factor),
        output_type=output_type,
        callback=callback,
        show_progress=pipe.show_progress if show_progress is None else show_progress,
    )


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
