"""Pictures without a condition: faces, rooms, churches, whatever the model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from latentgen.diffusion.noise import NoiseStream
from latentgen.models.unet2d import UNet2DModel
from latentgen.pipelines.inputs import check_count, check_size, resolve_seeds
from latentgen.pipelines.output import ImageOutput, OutputType
from latentgen.pipelines.pipeline import Pipeline
from latentgen.pipelines.run import Callback, begin
from latentgen.runtime.tiling import Tiling
from latentgen.schedulers import Scheduler


class UnconditionalPipeline(Pipeline):
    """Pictures of one kind, by LDM's unconditional models (CelebA-HQ, FFHQ, LSUN) and models of their form.

    pipe = UnconditionalPipeline.from_pretrained("path/to/ldm-celebahq-256")
    pipe(num_images=4).images
    """

    component_kinds: ClassVar[dict[str, str]] = {
        "vqvae": "latentgen.FirstStage",
        "unet": "latentgen.UNet2DModel",
        "scheduler": "latentgen.schedulers.Scheduler",
    }
    scheduler_defaults: ClassVar[dict[str, Any]] = {"clip_sample": False}  # other libraries correct no offset here
    folder_classes: ClassVar[tuple[str, ...]] = ("LDMPipeline",)

    def __init__(self, *, vqvae: Any, unet: UNet2DModel, scheduler: Scheduler) -> None:
        """Put components together.

        Args:
            vqvae: a `VQModel` or an `AutoencoderKL`.
            unet: the network, without a class embedding.
            scheduler: with the model's settings.

        Raises:
            ValueError: if they do not fit one another.
        """
        self.vqvae = vqvae
        self.unet = unet
        self.scheduler = scheduler
        self._check_fit()

    def _check_fit(self) -> None:
        config, channels = self.unet.config, self.vqvae.config.embed_dim
        if (config.in_channels, config.out_channels) != (channels, channels):
            fits = {channels + 3: "SuperResPipeline or Semantic2ImagePipeline", 2 * channels + 1: "InpaintPipeline"}
            other = fits.get(config.in_channels)
            raise ValueError(
                f"the UNet takes {config.in_channels} channels and gives {config.out_channels}, and the autoencoder's latents "
                f"have {channels}; they must agree. "
                + (f"{other} takes it." if other else "The model is of another task.")
            )
        if config.num_class_embeds is not None:
            raise ValueError(
                f"the UNet wants class labels (num_class_embeds={config.num_class_embeds}): it is of another task."
            )

    @torch.no_grad()
    def __call__(
        self,
        *,
        num_images: int = 1,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
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
            num_images: how many, at least 1.
            height, width: in pixels, multiples of the autoencoder's factor; None is the size that the model was trained on.
            num_inference_steps: in [1, trained timesteps].
            seed: an int s gives the images seeds s, s + 1, ...; a list gives each its own; None draws them at random.
            generator: instead of `seed`, a torch.Generator that the seeds are drawn from (or one for each image).
            eta: in [0, 1], DDIM's amount of fresh noise (Song et al. 2021, eq. 16).
            scheduler: for this call only: a scheduler, or a name as "euler", "dpm++_karras" with the model's settings.
            latents: (N, C, h, w) standard normal noise to start from, instead of the seed's.
            tiling: for large pictures, a `Tiling` that says in which tiles the UNet and the autoencoder work; None is none.
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
            self.vqvae,
            num_inference_steps=num_inference_steps,
            scheduler=scheduler,
            eta=eta,
            tiling=tiling,
            output_type=output_type,
            callback=callback_on_step_end,
            show_progress=show_progress,
        )
        count = check_count("num_images", num_images)
        size = check_size(height, width, self.unet.config.sample_size, self.vqvae.config.factor)
        seeds = resolve_seeds(seed, generator, count)
        noise = NoiseStream(seeds, (self.unet.config.in_channels, *size), self.device)
        start = call.start(noise, latents)
        return call.output(call.sample(start * call.plan.start_scale, noise), seeds)
