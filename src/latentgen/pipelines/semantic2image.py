"""Pictures from maps of labels: semantic synthesis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentgen.diffusion.noise import NoiseStream
from latentgen.models.conditioners import SpatialRescaler
from latentgen.models.first_stage import FirstStage
from latentgen.models.unet2d import UNet2DModel
from latentgen.pipelines.inputs import check_count, resolve_seeds
from latentgen.pipelines.output import ImageOutput, OutputType
from latentgen.pipelines.pictures import decoded
from latentgen.pipelines.pipeline import Pipeline
from latentgen.pipelines.run import Callback, begin
from latentgen.runtime.tiling import Tiling
from latentgen.schedulers import Scheduler

LabelMap = Image.Image | np.ndarray | Tensor


class Semantic2ImagePipeline(Pipeline):
    """Pictures in which every place is of a given kind, by models of the form of LDM's landscapes (LDM, section 4.3.2).

    pipe = Semantic2ImagePipeline.from_pretrained("path/to/model")
    pipe(Image.open("labels.png")).images[0]
    """

    component_kinds: ClassVar[dict[str, str]] = {
        "vae": "latentgen.FirstStage",
        "label_rescaler": "latentgen.SpatialRescaler",
        "unet": "latentgen.UNet2DModel",
        "scheduler": "latentgen.schedulers.Scheduler",
    }
    scheduler_defaults: ClassVar[dict[str, Any]] = {"clip_sample": False}
    folder_classes: ClassVar[tuple[str, ...]] = ("Semantic2ImagePipeline",)

    def __init__(
        self, *, vae: FirstStage[Any], label_rescaler: SpatialRescaler, unet: UNet2DModel, scheduler: Scheduler
    ) -> None:
        """Put components together.

        Args:
            vae: a `VQModel` or an `AutoencoderKL`.
            label_rescaler: makes a map of labels as small as latents.
            unet: takes latents and that map.
            scheduler: with the model's settings.

        Raises:
            ValueError: if they do not fit one another.
        """
        self.vae = vae
        self.label_rescaler = label_rescaler
        self.unet = unet
        self.scheduler = scheduler
        self._check_fit()

    def _check_fit(self) -> None:
        config, channels, map_channels = (
            self.unet.config,
            self.vae.config.embed_dim,
            self.label_rescaler.config.out_channels,
        )
        if (config.in_channels, config.out_channels) != (channels + map_channels, channels) or config.num_class_embeds:
            fits = {channels: "UnconditionalPipeline", 2 * channels + 1: "InpaintPipeline"}.get(config.in_channels)
            raise ValueError(
                f"the UNet takes {config.in_channels} channels and gives {config.out_channels}; with this autoencoder and label "
                f"rescaler it must be {channels + map_channels} and {channels}"
                + (f": {fits} takes it." if fits else ".")
            )

    @torch.no_grad()
    def __call__(
        self,
        labels: LabelMap | Sequence[LabelMap],
        *,
        num_inference_steps: int = 50,
        num_images_per_map: int = 1,
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
            labels: a map, or a list of maps of one size: PIL of mode L, P or I (a palette's numbers count, not its colours), or
                integers (H, W) or (N, H, W). The pictures are as large as the maps are for latents: for LDM's models, of the
                same size. Sides are multiples of what the rescaler halves away.
            num_inference_steps: in [1, trained timesteps].
            num_images_per_map: at least 1; the results are ordered by map, then by image.
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
        call = begin(
            self,
            self.vae,
            num_inference_steps=num_inference_steps,
            scheduler=scheduler,
            eta=eta,
            tiling=tiling,
            output_type=output_type,
            callback=callback_on_step_end,
            show_progress=show_progress,
        )
        per_entry = check_count("num_images_per_map", num_images_per_map)
        maps = self._maps(labels).to(self.device)
        condition = self.label_rescaler(maps).float()
        condition = condition.repeat_interleave(per_entry, 0)
        seeds = resolve_seeds(seed, generator, len(condition))
        noise = NoiseStream(seeds, (self.vae.config.embed_dim, *condition.shape[2:]), self.device)
        start = call.start(noise, latents)
        return call.output(call.sample(start * call.plan.start_scale, noise, extra=condition), seeds)

    def _maps(self, labels: Any) -> Tensor:
        """Checked maps, (N, H, W) int64."""
        entries = list(labels) if isinstance(labels, list | tuple) else [labels]
        maps = [
            m
            for k, entry in enumerate(entries)
            for m in _integers(entry, "labels" if len(entries) == 1 else f"labels[{k}]", self.max_pixels)
        ]
        sizes = list(dict.fromkeys(tuple(m.shape) for m in maps))
        if len(sizes) != 1:
            found = ", ".join(f"{width} x {height}" for height, width in sizes) or "no size"
            raise ValueError(f"labels holds maps of {found}; they must have one size.")
        count, unit = self.label_rescaler.config.in_channels, 2**self.label_rescaler.config.n_stages
        (height, width), most = sizes[0], self.max_pixels
        if height % unit or width % unit or not height or not width:
            raise ValueError(f"labels has maps of {width} x {height}; both sides must be multiples of {unit}.")
        if height * width > most:
            raise ValueError(
                f"labels has maps of {width} x {height}, more than max_pixels={most}: raise pipe.max_pixels."
            )
        for k, m in enumerate(maps):
            if int(m.min()) < 0 or int(m.max()) >= count:
                wrong = int(m.max()) if int(m.max()) >= count else int(m.min())
                raise ValueError(f"labels: map {k} holds the label {wrong}; the model knows 0 to {count - 1}.")
        return torch.stack(maps)


def _integers(value: Any, where: str, max_pixels: int) -> list[Tensor]:
    """Maps (H, W) int64 of one entry."""
    if isinstance(value, Image.Image):
        if value.mode not in ("L", "P", "I", "I;16", "1"):
            raise ValueError(
                f"{where} is a picture of mode {value.mode}: a map of labels has one number a place (mode L or P)."
            )
        value = np.asarray(decoded(where, value, max_pixels, lambda picture: picture)).astype(np.int64)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "iub":
            raise ValueError(f"{where} holds numbers of {value.dtype}; labels are whole numbers.")
        value = torch.from_numpy(value.astype(np.int64))
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex() or value.ndim not in (2, 3):
        shape = f" of {value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise ValueError(
            f"{where} is a {type(value).__name__}{shape}; give a picture, or integers (H, W) or (N, H, W)."
        )
    return list(value.long().cpu() if value.ndim == 3 else value.long().cpu()[None])
