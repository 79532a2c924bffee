"""Super-resolution: a picture four times as wide and high, by Stable Diffusion's x4 upscaler or by LDM's models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from latentgen.diffusion.noise import NoiseStream
from latentgen.models.first_stage import FirstStage
from latentgen.models.unet import UNet2DConditionModel
from latentgen.models.unet2d import UNet2DModel
from latentgen.pipelines.adapters import TextPipeline
from latentgen.pipelines.inputs import check_count, count_pairs, is_whole, refuse, resolve_seeds
from latentgen.pipelines.memory import Work
from latentgen.pipelines.output import ImageOutput, OutputType
from latentgen.pipelines.pictures import read_pictures
from latentgen.pipelines.run import Callback, begin
from latentgen.pipelines.text_condition import check_text_width, condition_on_text
from latentgen.runtime.tiling import Tiling
from latentgen.runtime.warn import warn_user
from latentgen.schedulers import Scheduler
from latentgen.weights.sizes import read_bytes

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

SCALING_FACTOR = 0.08333
"""Of the published upscaler's VAE."""

MAX_NOISE_LEVEL = 350
"""The highest level that the published upscaler was trained on."""


OF_THE_UPSCALER = ("text_encoder", "tokenizer", "low_res_scheduler")
"""Components of Stable Diffusion's upscaler that LDM's models do without."""


class SuperResPipeline(TextPipeline):
    """Pictures of 4 times the width and height.

        pipe = SuperResPipeline.from_pretrained("path/to/stable-diffusion-x4-upscaler")
        pipe("a photo of a fox", image=small).images[0]

    The UNet is shown the small picture beside latents of the same size. Stable Diffusion's upscaler puts a little noise on it
    first, and is told how much that is and what the picture shows. LDM's models see the picture alone (LDM, section 4.4): they
    have no `text_encoder`, `tokenizer` and `low_res_scheduler`.
    """

    component_kinds: ClassVar[dict[str, str]] = {
        "vae": "latentgen.FirstStage",
        "text_encoder": "transformers.CLIPTextModel",
        "tokenizer": "transformers.CLIPTokenizer",
        "unet": "latentgen.UNet2DConditionModel or latentgen.UNet2DModel",
        "low_res_scheduler": "latentgen.schedulers.Scheduler",
        "scheduler": "latentgen.schedulers.Scheduler",
    }
    optional: ClassVar[frozenset[str]] = frozenset(OF_THE_UPSCALER)
    scheduler_defaults: ClassVar[dict[str, Any]] = {"clip_sample": False}  # other libraries correct no offset here
    folder_classes: ClassVar[tuple[str, ...]] = ("StableDiffusionUpscalePipeline", "LDMSuperResolutionPipeline")
    folder_names: ClassVar[dict[str, dict[str, str]]] = {"LDMSuperResolutionPipeline": {"vae": "vqvae"}}

    unet: Any
    low_res_scheduler: Any

    def __init__(
        self,
        *,
        vae: FirstStage[Any],
        unet: UNet2DConditionModel | UNet2DModel,
        scheduler: Scheduler,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        low_res_scheduler: Scheduler | None = None,
    ) -> None:
        """Put components together.

        Args:
            vae: an `AutoencoderKL` or a `VQModel`, of a factor of 4.
            unet: takes latents and a picture.
            scheduler: with the model's settings.
            text_encoder, tokenizer, low_res_scheduler: of Stable Diffusion's upscaler: all three or none.

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
        if self._knows_texts and vae.config.scaling_factor != SCALING_FACTOR:
            warn_user(
                f"the VAE has scaling_factor={vae.config.scaling_factor}; the published upscaler's is {SCALING_FACTOR}, and "
                "early files leave it out. If this is that one, write it into vae/config.json."
            )

    @property
    def _knows_texts(self) -> bool:
        """Is it Stable Diffusion's form, with texts and noise levels?"""
        return self.text_encoder is not None

    @property
    def _folder_class(self) -> str:
        return self.folder_classes[0 if self._knows_texts else 1]

    def _check_fit(self) -> None:
        config, channels = self.unet.config, self.vae.config.embed_dim
        given = [name for name in OF_THE_UPSCALER if getattr(self, name) is not None]
        if given and len(given) < len(OF_THE_UPSCALER):
            raise ValueError(
                f"of {', '.join(OF_THE_UPSCALER)} only {', '.join(given)} are there: Stable Diffusion's upscaler has all of "
                "them, LDM's models have none."
            )
        if config.in_channels in (channels, 2 * channels + 1):
            of_text = isinstance(self.unet, UNet2DConditionModel)
            alone = "Text2ImagePipeline or Img2ImgPipeline" if of_text else "UnconditionalPipeline"
            fits = alone if config.in_channels == channels else "InpaintPipeline"
            raise ValueError(f"the UNet takes {config.in_channels} channels, which is no upscaler's: {fits} takes it.")
        levels = config.num_class_embeds
        if (config.in_channels, config.out_channels) != (channels + 3, channels) or (levels is None) == bool(given):
            wanted = "some levels" if given else "none, for it has no text encoder"
            raise ValueError(
                f"the UNet takes {config.in_channels} channels, gives {config.out_channels} and knows "
                f"{levels or 'no'} noise levels (num_class_embeds); super-resolution needs {channels + 3} and "
                f"{channels} channels (the VAE's latents and a picture) and {wanted}: it is of another task."
            )
        if isinstance(self.unet, UNet2DConditionModel) != bool(given):
            raise ValueError(
                f"the UNet is a {type(self.unet).__name__}: with a text encoder it must be a UNet2DConditionModel, without one a "
                "UNet2DModel."
            )
        if given:
            check_text_width(self.text_encoder, self.unet)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Any = None,
        *,
        noise_level: int | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 75,
        guidance_scale: float | None = None,
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
        lora_scale: float | Mapping[str, float] | None = None,
        tiling: Tiling | None = None,
        memory: int | str | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
        show_progress: bool | None = None,
    ) -> ImageOutput:
        """Enlarge pictures.

        Args:
            prompt: what they show; "" leaves it to the picture. Prompts and pictures go together: as many of each, or one of
                either for all of the other. LDM's models know no texts: leave it, and all that is about texts and noise, out.
            image: one small picture or a list: of PIL (any mode, turned as its EXIF says), arrays (H, W, 3) or tensors
                (3, H, W), uint8 or floats in [0, 1]. The results are 4 H x 4 W (by the VAE's factor).
            noise_level: how much noise is put on it, from 0 to 350 (fewer if the UNet knows fewer): more of it invents more.
                None is 20.
            negative_prompt: what to stay away from; one for all prompts or one for each.
            num_inference_steps: in [1, trained timesteps].
            guidance_scale: at least 0; 1 follows the prompt without guidance (Ho and Salimans 2022); None is 9.
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
            lora_scale: for this call only: a number multiplies the scales of all LoRAs that are loaded, a table by name replaces
                some of them; None leaves them as they are.
            tiling: for large pictures, a `Tiling` that says in which tiles the UNet and the VAE work; None is none.
            memory: instead of `tiling`, the most that the call may take above the weights, in bytes or as "4GB": it works in the
                largest tiles with which it takes no more, and whole if that does. An estimate, on the safe side.
            output_type: "pil", "np", "pt" or "latent"; see `ImageOutput`.
            callback_on_step_end: called as `(pipe, step, timestep, {"latents": ...})` after each step; may return a
                dictionary whose "latents" replace them, and may raise `StopSampling` to end the call with what there is.
            show_progress: whether to show a progress bar; None is `pipe.show_progress`.

        Raises:
            ValueError: for an argument that breaks its rule.
            FloatingPointError: if a network gives values that are not finite.
        """
        if not self._knows_texts:
            refuse(
                "this model is shown the picture alone (LDM's super-resolution)",
                prompt=prompt or None,
                negative_prompt=negative_prompt or None,
                noise_level=noise_level,
                guidance_scale=None if guidance_scale == 1 else guidance_scale,
                guidance_rescale=guidance_rescale or None,
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                clip_skip=clip_skip,
                lora_scale=lora_scale,
            )
        call = begin(
            self,
            self.vae,
            num_inference_steps=num_inference_steps,
            scheduler=scheduler,
            eta=eta,
            guidance_scale=(9.0 if self._knows_texts else 1.0) if guidance_scale is None else guidance_scale,
            guidance_rescale=guidance_rescale,
            tiling=tiling,
            output_type=output_type,
            callback=callback_on_step_end,
            show_progress=show_progress,
            lora_scale=lora_scale,
        )
        bound = None if memory is None else read_bytes("memory", memory, otherwise=", or None for no bound")
        if bound is not None and tiling is not None:
            raise ValueError("memory and tiling are two ways to say one thing: give one of them.")
        per_pair = check_count("num_images_per_prompt", num_images_per_prompt)
        level = self._noise_level(noise_level) if self._knows_texts else None
        pixels = read_pictures("image", image, max_pixels=self.max_pixels)
        condition, pairs = None, len(pixels)
        if self._knows_texts:
            condition = condition_on_text(
                call.parts,
                prompt,
                negative_prompt,
                prompt_embeds,
                negative_prompt_embeds,
                clip_skip,
                guided=call.guided,
            )
            pairs = count_pairs(len(condition.positive), len(pixels))
            condition = condition.expanded(pairs).repeated(per_pair)
        seeds = resolve_seeds(seed, generator, pairs * per_pair)
        if bound is not None:
            height, width = pixels.shape[2:]
            work = Work(unet=self.unet, vae=self.vae, count=len(seeds), guided=call.guided, height=height, width=width)
            call = replace(call, tiling=work.tiling(bound))
        noise = NoiseStream(seeds, (self.vae.config.embed_dim, *pixels.shape[2:]), self.device)

        small = pixels.expand(pairs, -1, -1, -1).repeat_interleave(per_pair, 0).to(self.device) * 2 - 1
        if level is not None:
            levels = torch.full((len(small),), level, device=self.device)
            small = self.low_res_scheduler.schedule.add_noise(small, noise.draw(small.shape[1:]), levels)
        start = call.start(noise, latents) * call.plan.start_scale
        return call.output(call.sample(start, noise, condition, extra=small, class_label=level), seeds)

    def _noise_level(self, value: Any) -> int:
        value = 20 if value is None else value
        most = min(
            MAX_NOISE_LEVEL, (self.unet.config.num_class_embeds or 1) - 1, len(self.low_res_scheduler.schedule) - 1
        )
        if not is_whole(value) or not 0 <= value <= most:
            raise ValueError(f"noise_level={value!r} must be a whole number from 0 to {most}.")
        return int(value)
