"""Super-resolution: a picture four times as wide and high, by Stable Diffusion's x4 upscaler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from latentgen.diffusion.noise import NoiseStream
from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.models.unet import UNet2DConditionModel
from latentgen.pipelines.inputs import check_count, count_pairs, is_whole, resolve_seeds
from latentgen.pipelines.output import ImageOutput, OutputType
from latentgen.pipelines.pictures import read_pictures
from latentgen.pipelines.pipeline import Pipeline
from latentgen.pipelines.run import Callback, begin
from latentgen.pipelines.text_condition import check_text_width, condition_on_text
from latentgen.runtime.tiling import Tiling
from latentgen.runtime.warn import warn_user
from latentgen.schedulers import Scheduler

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

SCALING_FACTOR = 0.08333
"""Of the published upscaler's VAE."""

MAX_NOISE_LEVEL = 350
"""The highest level that the published upscaler was trained on."""


class SuperResPipeline(Pipeline):
    """Pictures of 4 times the width and height.

        pipe = SuperResPipeline.from_pretrained("path/to/stable-diffusion-x4-upscaler")
        pipe("a photo of a fox", image=small).images[0]

    The UNet is shown the small picture, with a little noise on it, beside latents of the same size, and is told how much
    noise that is.
    """

    component_kinds: ClassVar[dict[str, str]] = {
        "vae": "latentgen.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModel",
        "tokenizer": "transformers.CLIPTokenizer",
        "unet": "latentgen.UNet2DConditionModel",
        "low_res_scheduler": "latentgen.schedulers.Scheduler",
        "scheduler": "latentgen.schedulers.Scheduler",
    }
    scheduler_defaults: ClassVar[dict[str, Any]] = {"clip_sample": False}  # other libraries correct no offset here
    folder_classes: ClassVar[tuple[str, ...]] = ("StableDiffusionUpscalePipeline",)

    def __init__(
        self,
        *,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        low_res_scheduler: Scheduler,
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
        self.low_res_scheduler = low_res_scheduler
        self.scheduler = scheduler
        self._check_fit()
        if vae.config.scaling_factor != SCALING_FACTOR:
            warn_user(
                f"the VAE has scaling_factor={vae.config.scaling_factor}; the published upscaler's is {SCALING_FACTOR}, and "
                "early files leave it out. If this is that one, write it into vae/config.json."
            )

    def _check_fit(self) -> None:
        config, channels = self.unet.config, self.vae.config.latent_channels
        if config.in_channels in (channels, 2 * channels + 1):
            fits = "Text2ImagePipeline or Img2ImgPipeline" if config.in_channels == channels else "InpaintPipeline"
            raise ValueError(f"the UNet takes {config.in_channels} channels, which is no upscaler's: {fits} takes it.")
        if (config.in_channels, config.out_channels) != (channels + 3, channels) or config.num_class_embeds is None:
            raise ValueError(
                f"the UNet takes {config.in_channels} channels, gives {config.out_channels} and knows "
                f"{config.num_class_embeds or 'no'} noise levels (num_class_embeds); super-resolution needs {channels + 3} and "
                f"{channels} channels (the VAE's latents and a picture) and some levels: it is of another task."
            )
        check_text_width(self.text_encoder, self.unet)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Any = None,
        *,
        noise_level: int = 20,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 75,
        guidance_scale: float = 9.0,
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
        """Enlarge pictures.

        Args:
            prompt: what they show; "" leaves it to the picture. Prompts and pictures go together: as many of each, or one of
                either for all of the other.
            image: one small picture or a list: of PIL (any mode, turned as its EXIF says), arrays (H, W, 3) or tensors
                (3, H, W), uint8 or floats in [0, 1]. The results are 4 H x 4 W (by the VAE's factor).
            noise_level: how much noise is put on it, from 0 to 350 (fewer if the UNet knows fewer): more of it invents more.
            negative_prompt: what to stay away from; one for all prompts or one for each.
            num_inference_steps: in [1, trained timesteps].
            guidance_scale: at least 0; 1 follows the prompt without guidance (Ho and Salimans 2022).
            guidance_rescale: in [0, 1], against overexposure (Lin et al. 2024, section 3.4).
            num_images_per_prompt: for each pair of prompt and picture, at least 1: the results are ordered by pair, then by
                image.
            seed: an int s gives the images seeds s, s + 1, ...; a list gives each its own; None draws them at random.
            generator: instead of `seed`, a torch.Generator that the seeds are drawn from (or one for each image).
            eta: in [0, 1], DDIM's amount of fresh noise (Song et al. 2021, eq. 16).
            scheduler: for this call only: a scheduler, or a name as "euler", "dpm++_karras" with the model's settings.
            latents: (N, C, H, W) standard normal noise to start from, instead of the seed's.
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
            FloatingPointError: if a network gives values that are not finite.
        """
        call = begin(
            self,
            self.vae,
            num_inference_steps=num_inference_steps,
            scheduler=scheduler,
            eta=eta,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            tiling=tiling,
            output_type=output_type,
            callback=callback_on_step_end,
            show_progress=show_progress,
        )
        per_pair = check_count("num_images_per_prompt", num_images_per_prompt)
        level = self._noise_level(noise_level)
        pixels = read_pictures("image", image, max_pixels=self.max_pixels)
        condition = condition_on_text(
            self, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, clip_skip, guided=call.guided
        )
        pairs = count_pairs(len(condition.positive), len(pixels))
        condition = condition.expanded(pairs).repeated(per_pair)
        seeds = resolve_seeds(seed, generator, pairs * per_pair)
        noise = NoiseStream(seeds, (self.vae.config.latent_channels, *pixels.shape[2:]), self.device)

        small = pixels.expand(pairs, -1, -1, -1).repeat_interleave(per_pair, 0).to(self.device) * 2 - 1
        levels = torch.full((len(small),), level, device=self.device)
        small = self.low_res_scheduler.schedule.add_noise(small, noise.draw(small.shape[1:]), levels)
        start = call.start(noise, latents) * call.plan.start_scale
        return call.output(call.sample(start, noise, condition, extra=small, class_label=level), seeds)

    def _noise_level(self, value: Any) -> int:
        most = min(
            MAX_NOISE_LEVEL, (self.unet.config.num_class_embeds or 1) - 1, len(self.low_res_scheduler.schedule) - 1
        )
        if not is_whole(value) or not 0 <= value <= most:
            raise ValueError(f"noise_level={value!r} must be a whole number from 0 to {most}.")
        return int(value)
