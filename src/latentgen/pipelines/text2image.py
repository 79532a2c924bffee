"""Text to image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from latentgen.diffusion.noise import NoiseStream
from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.models.unet import UNet2DConditionModel
from latentgen.pipelines.denoiser import Denoiser
from latentgen.pipelines.inputs import (
    check_choice,
    check_count,
    check_side,
    check_tensor,
    plain_number,
    resolve_seeds,
)
from latentgen.pipelines.output import OUTPUT_TYPES, ImageOutput, OutputType, make_output
from latentgen.pipelines.pipeline import Pipeline
from latentgen.pipelines.run import Callback, check_callback, run
from latentgen.pipelines.solver import check_guidance, check_tiling, choose_solver
from latentgen.pipelines.text_condition import check_text_width, check_unet_channels, condition_on_text
from latentgen.runtime.tiling import Tiling
from latentgen.schedulers import Scheduler

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


class Text2ImagePipeline(Pipeline):
    """Pictures from prompts, by Stable Diffusion 1 and 2 and models of their form.

        pipe = Text2ImagePipeline.from_pretrained(path)
        pipe("an astronaut riding a horse", guidance_scale=7.5).images[0]

    A pipeline holds no state of a call: any number of threads may call one at the same time.
    """

    component_kinds: ClassVar[dict[str, str]] = {
        "vae": "latentgen.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModel",
        "tokenizer": "transformers.CLIPTokenizer",
        "unet": "latentgen.UNet2DConditionModel",
        "scheduler": "latentgen.schedulers.Scheduler",
    }
    folder_classes: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")

    def __init__(
        self,
        *,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: Scheduler,
    ) -> None:
        """Put components together.

        Raises:
            ValueError: if they do not fit one another.
        """
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.unet = unet
        self.scheduler = scheduler
        self._check_fit()

    def _check_fit(self) -> None:
        check_unet_channels(self.unet, self.vae)
        check_text_width(self.text_encoder, self.unet)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        eta: float = 0.0,
        scheduler: Scheduler | str | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        clip_skip: int | None = None,
        tiling: Tiling | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
        show_progress: bool | None = None,
    ) -> ImageOutput:
        """Make pictures.

        Args:
            prompt: what to draw; a list makes a batch, ordered by prompt, then by image. "" draws without a condition.
            negative_prompt: what to stay away from; one for all prompts or one for each.
            height, width: in pixels, multiples of the VAE's factor; None is the size that the model was trained on.
            num_inference_steps: in [1, trained timesteps].
            guidance_scale: at least 0; 1 follows the prompt without guidance (Ho and Salimans 2022).
            guidance_rescale: in [0, 1], against overexposure (Lin et al. 2024, section 3.4).
            num_images_per_prompt: at least 1.
            seed: an int s gives the images seeds s, s + 1, ...; a list gives each its own; None draws them at random.
                An image depends on its own seed alone, not on its neighbours.
            generator: instead of `seed`, a torch.Generator that the seeds are drawn from (or one for each image).
            eta: in [0, 1], DDIM's amount of fresh noise (Song et al. 2021, eq. 16).
            scheduler: for this call only: a scheduler, or a name as "euler", "dpm++_karras" with the model's settings.
            latents: (N, C, h, w) standard normal noise to start from, instead of the seed's.
            prompt_embeds: (B, S, D) instead of `prompt`.
            negative_prompt_embeds: (B, S, D) instead of `negative_prompt`.
            clip_skip: leave out the text encoder's last layers, so many.
            tiling: for large pictures, a `Tiling` that says in which tiles the UNet and the VAE work; None is none.
            output_type: "pil", "np", "pt" or "latent"; see `ImageOutput`.
            callback_on_step_end: called as `(pipe, step, timestep, {"latents": ...})` after each step; may return a
                dictionary whose "latents" replace them, and may raise `StopSampling` to end the call with what there is.
            show_progress: whether to show a progress bar; None is `pipe.show_progress`.

        Raises:
            ValueError: for an argument that breaks its rule.
            FloatingPointError: if the text encoder, the UNet or the decoder gives values that are not finite.
        """
        self._check_components()
        check_choice("output_type", output_type, OUTPUT_TYPES)
        check_callback(callback_on_step_end)
        guidance_scale, guidance_rescale = check_guidance(guidance_scale, guidance_rescale)
        per_prompt = check_count("num_images_per_prompt", num_images_per_prompt)
        tiles = check_tiling(tiling, self.vae.config.factor)
        solver = choose_solver(self.scheduler, scheduler, eta)
        plan = solver.plan(plain_number(num_inference_steps))
        shape = self._latent_shape(height, width)
        condition = condition_on_text(
            self, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, clip_skip, guided=guidance_scale != 1
        ).repeated(per_prompt)
        count = len(condition.positive)
        seeds = resolve_seeds(seed, generator, count)
        noise = NoiseStream(seeds, shape, self.device)
        start = noise.draw()
        if latents is not None:
            start = check_tensor("latents", latents, (count, *shape), self.device, torch.float32).float()
        denoiser = Denoiser(
            self.unet,
            solver.prediction_type,
            plan,
            *condition,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            **tiles,
        )
        final = run(
            self,
            solver,
            denoiser,
            start * plan.start_scale,
            noise,
            callback=callback_on_step_end,
            show_progress=show_progress,
        )
        return make_output(self.vae, final, output_type, seeds, tiling=tiling)

    def _latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """(C, h, w) of one image's latents."""
        factor = self.vae.config.factor
        size = self.unet.config.sample_size
        sides = size if isinstance(size, tuple) else (size, size)
        default_height, default_width = (None if s is None else s * factor for s in sides)
        return (
            self.unet.config.in_channels,
            check_side("height", height, default_height, factor) // factor,
            check_side("width", width, default_width, factor) // factor,
        )
