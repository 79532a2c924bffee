"""Text to image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from latentgen.diffusion.noise import NoiseStream
from latentgen.models.first_stage import FirstStage
from latentgen.models.ldm_bert import LDMBertModel
from latentgen.models.unet import UNet2DConditionModel
from latentgen.pipelines.adapters import TextPipeline
from latentgen.pipelines.inputs import check_count, check_size, resolve_seeds
from latentgen.pipelines.output import ImageOutput, OutputType
from latentgen.pipelines.run import Callback, begin
from latentgen.pipelines.text_condition import (
    DEFAULTS_OF_LDM,
    KINDS,
    NAMES_OF_LDM,
    OF_LDM,
    check_text_width,
    check_tokenizer,
    check_unet_channels,
    condition_on_text,
)
from latentgen.runtime.tiling import Tiling
from latentgen.schedulers import Scheduler

if TYPE_CHECKING:
    from transformers import BertTokenizer, CLIPTextModel, CLIPTokenizer


class Text2ImagePipeline(TextPipeline):
    """Pictures from prompts, by Stable Diffusion 1 and 2, LDM's text-to-image model, and models of their form.

        pipe = Text2ImagePipeline.from_pretrained(path)
        pipe("an astronaut riding a horse", guidance_scale=7.5).images[0]

    A pipeline holds no state of a call: any number of threads may call one at the same time.
    """

    component_kinds: ClassVar[dict[str, str]] = {
        "vae": "latentgen.FirstStage",
        **KINDS,
        "unet": "latentgen.UNet2DConditionModel",
        "scheduler": "latentgen.schedulers.Scheduler",
    }
    folder_classes: ClassVar[tuple[str, ...]] = (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        OF_LDM,
    )
    folder_names: ClassVar[dict[str, dict[str, str]]] = NAMES_OF_LDM
    other_defaults: ClassVar[dict[str, dict[str, Any]]] = DEFAULTS_OF_LDM

    def __init__(
        self,
        *,
        vae: FirstStage[Any],
        text_encoder: CLIPTextModel | LDMBertModel,
        tokenizer: CLIPTokenizer | BertTokenizer,
        unet: UNet2DConditionModel,
        scheduler: Scheduler,
    ) -> None:
        """Put components together.

        Args:
            vae: an `AutoencoderKL` or a `VQModel`.
            text_encoder, tokenizer: both CLIP's, or LDM's transformer and BERT's tokenizer.
            unet: attends to the text encoder's states.
            scheduler: with the model's settings.

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
        check_tokenizer(self.tokenizer, self.text_encoder)

    @property
    def _folder_class(self) -> str:
        return OF_LDM if isinstance(self.text_encoder, LDMBertModel) else self.folder_classes[0]

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
        lora_scale: float | Mapping[str, float] | None = None,
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
            lora_scale: for this call only: a number multiplies the scales of all LoRAs that are loaded, a table by name replaces
                some of them; None leaves them as they are.
            tiling: for large pictures, a `Tiling` that says in which tiles the UNet and the VAE work; None is none.
            output_type: "pil", "np", "pt" or "latent"; see `ImageOutput`.
            callback_on_step_end: called as `(pipe, step, timestep, {"latents": ...})` after each step; may return a
                dictionary whose "latents" replace them, and may raise `StopSampling` to end the call with what there is.
            show_progress: whether to show a progress bar; None is `pipe.show_progress`.

        Raises:
            ValueError: for an argument that breaks its rule.
            FloatingPointError: if the text encoder, the UNet or the decoder gives values that are not finite.
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
            lora_scale=lora_scale,
        )
        per_prompt = check_count("num_images_per_prompt", num_images_per_prompt)
        size = check_size(height, width, self.unet.config.sample_size, self.vae.config.factor)
        condition = condition_on_text(
            call.parts, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, clip_skip, guided=call.guided
        ).repeated(per_prompt)
        seeds = resolve_seeds(seed, generator, len(condition.positive))
        noise = NoiseStream(seeds, (self.vae.config.embed_dim, *size), self.device)
        start = call.start(noise, latents)
        return call.output(call.sample(start * call.plan.start_scale, noise, condition), seeds)
