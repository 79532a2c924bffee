"""Image to image: a picture, drawn anew under a prompt (SDEdit, Meng et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from latentgen.diffusion.noise import NoiseStream
from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.models.ldm_bert import LDMBertModel
from latentgen.models.unet import UNet2DConditionModel
from latentgen.pipelines.adapters import TextPipeline
from latentgen.pipelines.first_stage import encode
from latentgen.pipelines.inputs import check_count, count_pairs, resolve_seeds
from latentgen.pipelines.output import ImageOutput, OutputType
from latentgen.pipelines.pictures import pad_to_multiple, read_pictures
from latentgen.pipelines.run import Callback, begin
from latentgen.pipelines.solver import first_knot, knot_of_start
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


class Img2ImgPipeline(TextPipeline):
    """Pictures from pictures and prompts, by text-to-image models.

        pipe = Img2ImgPipeline.from_pretrained(path)          # or Img2ImgPipeline.from_pipe(text2image)
        pipe("a watercolour of a harbour", image=photo, strength=0.6).images[0]

    The picture is encoded, noised to a knot of the plan, and denoised from there: see `strength`.
    """

    component_kinds: ClassVar[dict[str, str]] = {
        "vae": "latentgen.AutoencoderKL",
        **KINDS,
        "unet": "latentgen.UNet2DConditionModel",
        "scheduler": "latentgen.schedulers.Scheduler",
    }
    folder_classes: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", OF_LDM)
    folder_names: ClassVar[dict[str, dict[str, str]]] = NAMES_OF_LDM
    other_defaults: ClassVar[dict[str, dict[str, Any]]] = DEFAULTS_OF_LDM

    def __init__(
        self,
        *,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel | LDMBertModel,
        tokenizer: CLIPTokenizer | BertTokenizer,
        unet: UNet2DConditionModel,
        scheduler: Scheduler,
    ) -> None:
        """Put components together.

        Args:
            vae: the autoencoder.
            text_encoder, tokenizer: both CLIP's, or LDM's transformer and BERT's tokenizer.
            unet: a text-to-image model's.
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
        image: Any = None,
        *,
        strength: float = 0.8,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        eta: float = 0.0,
        scheduler: Scheduler | str | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        clip_skip: int | None = None,
        lora_scale: float | Mapping[str, float] | None = None,
        tiling: Tiling | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
        show_progress: bool | None = None,
    ) -> ImageOutput:
        """Draw pictures anew.

        Args:
            prompt: what to draw. Prompts and pictures go together: as many of each, or one of either for all of the other.
            image: one picture or a list: of PIL (any mode, turned as its EXIF says), arrays (H, W, 3) or tensors (3, H, W),
                uint8 or floats in [0, 1]. Any size, which the result has too; a list has one size.
            strength: in (0, 1]: of n steps the last `floor(n * strength)` are run, from the picture noised to where they
                begin. 1 leaves next to nothing of the picture.
            negative_prompt: what to stay away from; one for all prompts or one for each.
            num_inference_steps: n, in [1, trained timesteps].
            guidance_scale: at least 0; 1 follows the prompt without guidance (Ho and Salimans 2022).
            guidance_rescale: in [0, 1], against overexposure (Lin et al. 2024, section 3.4).
            num_images_per_prompt: for each pair of prompt and picture, at least 1: the results are ordered by pair, then by
                image.
            seed: an int s gives the images seeds s, s + 1, ...; a list gives each its own; None draws them at random.
            generator: instead of `seed`, a torch.Generator that the seeds are drawn from (or one for each image).
            eta: in [0, 1], DDIM's amount of fresh noise (Song et al. 2021, eq. 16).
            scheduler: for this call only: a scheduler, or a name as "euler", "dpm++_karras" with the model's settings.
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
            lora_scale=lora_scale,
        )
        per_pair = check_count("num_images_per_prompt", num_images_per_prompt)
        first = first_knot(strength, call.plan)
        plan, noisy = call.plan.tail(first), knot_of_start(first, call.solver, strength)
        pixels = read_pictures("image", image, max_pixels=self.max_pixels)
        condition = condition_on_text(
            call.parts, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, clip_skip, guided=call.guided
        )
        pairs = count_pairs(len(condition.positive), len(pixels))
        condition = condition.expanded(pairs).repeated(per_pair)
        seeds = resolve_seeds(seed, generator, pairs * per_pair)

        padded = pad_to_multiple(pixels, self.vae.config.factor).to(self.device)
        posterior = encode(self.vae, padded, call.tiling).expanded(pairs).repeated(per_pair)
        noise = NoiseStream(seeds, (self.vae.config.latent_channels, *posterior.mean.shape[2:]), self.device)
        x0 = self.vae.scale(posterior.sample(noise.draw()))
        start = call.plan.alphas[noisy] * x0 + call.plan.sigmas[noisy] * noise.draw()
        height, width = pixels.shape[-2:]
        final = call.sample(start, noise, condition, plan=plan)
        return call.output(final, seeds, finish=lambda drawn: drawn[..., :height, :width])
