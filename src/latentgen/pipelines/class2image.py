"""Pictures of a class: a name or a number in, pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from latentgen.diffusion.noise import NoiseStream
from latentgen.models.conditioners import ClassEmbedder
from latentgen.models.first_stage import FirstStage
from latentgen.models.unet import UNet2DConditionModel
from latentgen.pipelines.condition import Condition
from latentgen.pipelines.inputs import as_list, check_count, check_size, is_whole, resolve_seeds
from latentgen.pipelines.output import ImageOutput, OutputType
from latentgen.pipelines.pipeline import Pipeline
from latentgen.pipelines.run import Callback, begin
from latentgen.pipelines.text_condition import check_unet_channels
from latentgen.runtime.tiling import Tiling
from latentgen.schedulers import Scheduler

GUIDANCE = 3.0
"""Of models that have a null class, unless a call says otherwise: LDM's notebook has it."""


class Class2ImagePipeline(Pipeline):
    """Pictures of a class, by models of the form of LDM's ImageNet model (LDM, section 4.3.1 and appendix D.4).

    pipe = Class2ImagePipeline.from_pretrained("path/to/model")
    pipe("heart", guidance_scale=3).images[0]
    """

    component_kinds: ClassVar[dict[str, str]] = {
        "vae": "latentgen.FirstStage",
        "class_embedder": "latentgen.ClassEmbedder",
        "unet": "latentgen.UNet2DConditionModel",
        "scheduler": "latentgen.schedulers.Scheduler",
    }
    scheduler_defaults: ClassVar[dict[str, Any]] = {"clip_sample": False}
    folder_classes: ClassVar[tuple[str, ...]] = ("Class2ImagePipeline",)

    def __init__(
        self, *, vae: FirstStage[Any], class_embedder: ClassEmbedder, unet: UNet2DConditionModel, scheduler: Scheduler
    ) -> None:
        """Put components together.

        Args:
            vae: a `VQModel` or an `AutoencoderKL`.
            class_embedder: makes a class a context of one token; its config may hold the classes' names.
            unet: attends to it.
            scheduler: with the model's settings.

        Raises:
            ValueError: if they do not fit one another.
        """
        self.vae = vae
        self.class_embedder = class_embedder
        self.unet = unet
        self.scheduler = scheduler
        self._check_fit()

    def _check_fit(self) -> None:
        check_unet_channels(self.unet, self.vae)
        width, context = self.class_embedder.config.embed_dim, self.unet.config.cross_attention_dim
        if width != context:
            raise ValueError(
                f"the class embedder gives width {width} and the UNet attends to width {context}; they must agree."
            )

    @torch.no_grad()
    def __call__(
        self,
        classes: str | int | Sequence[str | int],
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        num_images_per_class: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        eta: float = 0.0,
        scheduler: Scheduler | str | None = None,
        latents: Tensor | None = None,
        tiling: Tiling | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
        show_progress: bool | None = None,
    ) -> ImageOutput:
        """Make pictures.

        Args:
            classes: a class, or a list of them: names, where the model knows any, or numbers from 0, as digits too.
            height, width: in pixels, multiples of the VAE's factor; None is the size that the model was trained on.
            num_inference_steps: in [1, trained timesteps].
            guidance_scale: at least 0; 1 follows the class without guidance (Ho and Salimans 2022). Others need a model with a
                null class, which stands for no class at all; None is 3 for these and 1 for those without.
            guidance_rescale: in [0, 1], against overexposure (Lin et al. 2024, section 3.4).
            num_images_per_class: at least 1; the results are ordered by entry of `classes`, then by image.
            seed: an int s gives the images seeds s, s + 1, ...; a list gives each its own; None draws them at random.
            generator: instead of `seed`, a torch.Generator that the seeds are drawn from (or one for each image).
            eta: in [0, 1], DDIM's amount of fresh noise (Song et al. 2021, eq. 16).
            scheduler: for this call only: a scheduler, or a name as "euler", "dpm++_karras" with the model's settings.
            latents: (N, C, h, w) standard normal noise to start from, instead of the seed's.
            tiling: for large pictures, a `Tiling` that says in which tiles the UNet and the VAE work; None is none.
            output_type: "pil", "np", "pt" or "latent"; see `ImageOutput`.
            callback_on_step_end: called as `(pipe, step, timestep, {"latents": ...})` after each step; may return a
                dictionary whose "latents" replace them, and may raise `StopSampling` to end the call with what there is.
            show_progress: whether to show a progress bar; None is `pipe.show_progress`.

        Raises:
            ValueError: for an argument that breaks its rule.
            FloatingPointError: if a network gives values that are not finite.
        """
        config = self.class_embedder.config
        call = begin(
            self,
            self.vae,
            num_inference_steps=num_inference_steps,
            scheduler=scheduler,
            eta=eta,
            guidance_scale=(GUIDANCE if config.has_null_class else 1.0) if guidance_scale is None else guidance_scale,
            guidance_rescale=guidance_rescale,
            tiling=tiling,
            output_type=output_type,
            callback=callback_on_step_end,
            show_progress=show_progress,
        )
        if call.guided and not config.has_null_class:
            raise ValueError(
                f"guidance_scale={guidance_scale!r} needs a null class, which this model was trained without: leave it out, or "
                "set has_null_class in class_embedder/config.json if the last class is one."
            )
        each = check_count("num_images_per_class", num_images_per_class)
        size = check_size(height, width, self.unet.config.sample_size, self.vae.config.factor)
        labels = torch.tensor(self._labels(classes), device=self.device)
        nothing = torch.full_like(labels, config.num_classes - 1)
        condition = Condition(
            self.class_embedder(labels), self.class_embedder(nothing) if call.guided else None
        ).repeated(each)
        seeds = resolve_seeds(seed, generator, len(condition.positive))
        noise = NoiseStream(seeds, (self.vae.config.embed_dim, *size), self.device)
        start = call.start(noise, latents)
        return call.output(call.sample(start * call.plan.start_scale, noise, condition), seeds)

    def _labels(self, classes: Any) -> list[int]:
        """The numbers of classes, names among them looked up."""
        entries = [classes] if isinstance(classes, str) or is_whole(classes) else as_list(classes)
        if not entries:
            raise ValueError(f"classes={classes!r} must be a class, or a non-empty list of them.")
        return [self._label(entry, k if len(entries) > 1 else None) for k, entry in enumerate(entries)]

    def _label(self, entry: Any, k: int | None) -> int:
        config = self.class_embedder.config
        where = "the class" if k is None else f"classes[{k}]:"
        if is_whole(entry):
            if not 0 <= entry < config.classes:
                raise ValueError(f"{where} {entry} is not known: the model has classes 0 to {config.classes - 1}.")
            return int(entry)
        names = config.class_names or ()
        if isinstance(entry, str) and entry not in names and entry.isdecimal():
            return self._label(int(entry), k)
        if not isinstance(entry, str) or entry not in names:
            known = f"names are {_listed(names)}" if names else "the model knows no names, give a number"
            raise ValueError(f"{where} {entry!r} is not known: {known} (or 0 to {config.classes - 1}).")
        return names.index(entry)


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
