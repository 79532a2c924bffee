"""Inpainting: a part of a picture drawn anew under a prompt, the rest kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from latentgen.diffusion.noise import NoiseStream
from latentgen.diffusion.plan import Plan
from latentgen.models.first_stage import FirstStage
from latentgen.models.ldm_bert import LDMBertModel
from latentgen.models.unet import UNet2DConditionModel
from latentgen.models.unet2d import UNet2DModel
from latentgen.models.vq_model import VQModel
from latentgen.pipelines.adapters import TextPipeline
from latentgen.pipelines.canvas import Canvas, filled
from latentgen.pipelines.first_stage import encode, encode_codes
from latentgen.pipelines.inputs import (
    check_choice,
    check_count,
    check_number,
    check_size,
    count_pairs,
    is_whole,
    refuse,
    resolve_seeds,
)
from latentgen.pipelines.output import ImageOutput, OutputType, of_type
from latentgen.pipelines.pictures import read_masks, read_pictures
from latentgen.pipelines.run import Callback, begin
from latentgen.pipelines.solver import first_knot
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
from latentgen.runtime.warn import warn_user
from latentgen.schedulers import Scheduler

if TYPE_CHECKING:
    from transformers import BertTokenizer, CLIPTextModel, CLIPTokenizer

Picture = Image.Image | np.ndarray | Tensor

MaskedContent = Literal["original", "fill"]
MASKED_CONTENTS: tuple[MaskedContent, ...] = ("original", "fill")

RESAMPLED_ABOVE = 0.5
"""Steps that end with less noise than this are taken once, whatever `repeats` says: they draw details."""


class InpaintPipeline(TextPipeline):
    """Pictures of which a part is drawn anew.

        pipe = InpaintPipeline.from_pretrained(path)
        pipe("a vase of flowers", image=photo, mask_image=mask).images[0]

    The UNet may be an inpainting model's, which is shown the mask and what is around it (9 channels for 4 of latents), or any
    text-to-image model's: the known part is then put back into the latents after every step, as noisy as they are
    (Lugmayr et al. 2022, section 4.1; with `repeats`, 4.2 too). LDM's own inpainting model (LDM, section 4.5) is shown both as
    well and knows no texts: it has no `text_encoder` and no `tokenizer`.
    """

    component_kinds: ClassVar[dict[str, str]] = {
        "vae": "latentgen.FirstStage",
        **KINDS,
        "unet": "latentgen.UNet2DConditionModel or latentgen.UNet2DModel",
        "scheduler": "latentgen.schedulers.Scheduler",
    }
    optional: ClassVar[frozenset[str]] = frozenset({"text_encoder", "tokenizer"})
    folder_classes: ClassVar[tuple[str, ...]] = (
        "StableDiffusionInpaintPipeline",
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "LDMInpaintPipeline",
        OF_LDM,
    )
    folder_names: ClassVar[dict[str, dict[str, str]]] = NAMES_OF_LDM
    other_defaults: ClassVar[dict[str, dict[str, Any]]] = DEFAULTS_OF_LDM

    vae: Any
    unet: Any

    def __init__(
        self,
        *,
        vae: FirstStage[Any],
        unet: UNet2DConditionModel | UNet2DModel,
        scheduler: Scheduler,
        text_encoder: CLIPTextModel | LDMBertModel | None = None,
        tokenizer: CLIPTokenizer | BertTokenizer | None = None,
    ) -> None:
        """Put components together.

        Args:
            vae: an `AutoencoderKL` or a `VQModel`.
            unet: a text-to-image model's, an inpainting model's, or LDM's, which attends to no texts.
            scheduler: with the model's settings.
            text_encoder, tokenizer: both CLIP's, or LDM's transformer and BERT's tokenizer; neither for LDM's inpainting model.

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
        channels = self.vae.config.embed_dim
        if (self.text_encoder is None) != (self.tokenizer is None):
            raise ValueError(
                "text_encoder and tokenizer go together: give both, or neither for LDM's inpainting model."
            )
        if isinstance(self.unet, UNet2DConditionModel) != self._knows_texts:
            raise ValueError(
                f"the UNet is a {type(self.unet).__name__}: with a text encoder it must be a UNet2DConditionModel, without one a "
                "UNet2DModel."
            )
        if self._knows_texts:
            check_unet_channels(self.unet, self.vae, channels, 2 * channels + 1)
            check_text_width(self.text_encoder, self.unet)
            check_tokenizer(self.tokenizer, self.text_encoder)
            return
        config = self.unet.config
        if (config.in_channels, config.out_channels) != (2 * channels + 1, channels) or config.num_class_embeds:
            fits = {channels: "UnconditionalPipeline", channels + 3: "SuperResPipeline"}.get(config.in_channels)
            raise ValueError(
                f"the UNet takes {config.in_channels} channels and gives {config.out_channels}; inpainting without texts needs "
                f"{2 * channels + 1} (latents, those of the picture around the mask, and the mask) and {channels}"
                + (f": {fits} takes it." if fits else ": it is of another task.")
            )

    @property
    def _knows_texts(self) -> bool:
        return self.text_encoder is not None

    @property
    def _folder_class(self) -> str:
        if not self._knows_texts:
            return "LDMInpaintPipeline"
        if self._sees_the_mask:
            return self.folder_classes[0]
        return OF_LDM if isinstance(self.text_encoder, LDMBertModel) else self.folder_classes[1]

    @property
    def _sees_the_mask(self) -> bool:
        return bool(self.unet.config.in_channels != self.vae.config.embed_dim)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Picture | Sequence[Picture] | None = None,
        mask_image: Picture | Sequence[Picture] | None = None,
        *,
        strength: float = 1.0,
        repeats: int = 1,
        masked_content: MaskedContent = "original",
        keep_unmasked: bool = True,
        mask_blur: float = 0.0,
        padding_mask_crop: int | None = None,
        height: int | None = None,
        width: int | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
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
        """Draw a part of pictures anew.

        Args:
            prompt: what to draw. Prompts and pictures go together: as many of each, or one of either for all of the other. LDM's
                inpainting model knows no texts: leave it, and all that is about texts, out.
            image: one picture or a list: of PIL (any mode, turned as its EXIF says), arrays (H, W, 3) or tensors (3, H, W),
                uint8 or floats in [0, 1]. Any size, which the result has too; a list has one size.
            mask_image: of the same size, in the same forms: what is brighter than half is drawn anew. One for all pictures, or
                one for each. A mask without such a pixel gives the picture back, with a warning.
            strength: in (0, 1]: of n steps the last `floor(n * strength)` are run, from the picture noised to where they
                begin; 1 starts from noise alone.
            repeats: at least 1: how often each of the earlier steps is taken, those that end with a noise of more than 0.5 beside
                latents of unit variance, its start made anew each time (Lugmayr et al. 2022, section 4.2). What is drawn then
                agrees better with what is around it. For UNets that are not shown the mask; it costs as many times the work.
            masked_content: what a `strength` below 1 starts from under the mask: "original", or "fill", the colours around it,
                from which nothing of the old picture can come back.
            keep_unmasked: every pixel outside the mask is the picture's, bit for bit; False leaves what the decoder gives, which
                differs a little everywhere.
            mask_blur: at least 0: how many pixels wide the seam between old and new is, inside the mask.
            padding_mask_crop: draw only the surroundings of the mask, with so many pixels around it, enlarged to height x
                width, and put them back; None draws the whole picture.
            height, width: with `padding_mask_crop`, the size to draw in; None is the size that the model was trained on.
            negative_prompt: what to stay away from; one for all prompts or one for each.
            num_inference_steps: n, in [1, trained timesteps].
            guidance_scale: at least 0; 1 follows the prompt without guidance (Ho and Salimans 2022); None is 7.5.
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
            output_type: "pil", "np", "pt" or "latent" (of the part that was drawn); see `ImageOutput`.
            callback_on_step_end: called as `(pipe, step, timestep, {"latents": ...})` after each step; may return a
                dictionary whose "latents" replace them, and may raise `StopSampling` to end the call with what there is.
            show_progress: whether to show a progress bar; None is `pipe.show_progress`.

        Raises:
            ValueError: for an argument that breaks its rule.
            FloatingPointError: if a network gives values that are not finite.
        """
        if not self._knows_texts:
            refuse(
                "this model is shown the mask and the picture around it alone (LDM's inpainting)",
                prompt=prompt or None,
                negative_prompt=negative_prompt or None,
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
            guidance_scale=(7.5 if self._knows_texts else 1.0) if guidance_scale is None else guidance_scale,
            guidance_rescale=guidance_rescale,
            tiling=tiling,
            output_type=output_type,
            callback=callback_on_step_end,
            show_progress=show_progress,
            lora_scale=lora_scale,
        )
        per_pair = check_count("num_images_per_prompt", num_images_per_prompt)
        mask_blur = check_number("mask_blur", mask_blur, 0)
        check_choice("keep_unmasked", keep_unmasked, (True, False))
        check_choice("masked_content", masked_content, MASKED_CONTENTS)
        if check_count("repeats", repeats) > 1 and self._sees_the_mask:
            raise ValueError(f"repeats={repeats} is for a UNet that is not shown the mask; this one is: leave it out.")
        if mask_blur and not keep_unmasked:
            warn_user("keep_unmasked=False leaves nothing to blend with: mask_blur has no effect.")
        first = first_knot(strength, call.plan)
        plan = call.plan.tail(first)
        canvas = self._canvas(image, mask_image, padding_mask_crop, height, width)
        condition, pairs = None, len(canvas.pictures)
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
            pairs = count_pairs(len(condition.positive), len(canvas.pictures))
            condition = condition.expanded(pairs).repeated(per_pair)
        count = pairs * per_pair
        seeds = resolve_seeds(seed, generator, count)
        pictures = [k // per_pair if len(canvas.pictures) > 1 else 0 for k in range(count)]

        def put_back(drawn: Tensor) -> Tensor:
            back = [canvas.put_back(d, k, keep_unmasked=keep_unmasked, blur=mask_blur)
                    for d, k in zip(drawn, pictures, strict=True)]  # fmt: skip
            return torch.stack(back)

        empty = [k for k, mask in enumerate(canvas.masks) if not mask.any()]
        if empty:
            which = "" if len(canvas.masks) == 1 else f" in mask {', '.join(map(str, empty))} (counted from 0)"
            warn_user(
                f"mask_image has nothing white (brighter than half){which}: nothing is drawn, and the picture comes back."
            )
        if len(empty) == len(canvas.masks) and output_type != "latent":
            return ImageOutput(of_type(canvas.pictures[pictures].to(self.device), output_type), seeds)

        shown, masks = canvas.shown.to(self.device), canvas.shown_masks.to(self.device)
        factor = self.vae.config.factor
        cells = F.max_pool2d(masks, factor)[pictures]  # a latent of which any pixel is to be drawn is drawn
        noise = NoiseStream(seeds, (self.vae.config.embed_dim, *cells.shape[2:]), self.device)

        def latents_of(pixels: Tensor) -> Tensor:
            if isinstance(self.vae, VQModel):
                codes = encode_codes(self.vae, pixels, call.tiling)
                return self.vae.scale(codes.expand(pairs, -1, -1, -1).repeat_interleave(per_pair, 0))
            posterior = encode(self.vae, pixels, call.tiling).expanded(pairs).repeated(per_pair)
            return self.vae.scale(posterior.sample(noise.draw()))

        before = filled(shown, masks) if masked_content == "fill" else shown
        x0 = latents_of(before) if first > 0 or not self._sees_the_mask else None
        eps = noise.draw()
        start = eps * plan.start_scale if x0 is None or first == 0 else plan.alphas[0] * x0 + plan.sigmas[0] * eps
        extra = constrain = None
        if not self._knows_texts:  # as in LDM's script: masked pixels are black, and the mask is of -1 and 1
            extra = torch.cat([latents_of(shown * (1 - masks)), cells * 2 - 1], dim=1)
        elif self._sees_the_mask:
            extra = torch.cat([cells, latents_of(shown * (1 - masks) + 0.5 * masks)], dim=1)
        elif x0 is not None:
            constrain = keeping(x0, eps, cells, plan)
        again = [repeats if sigma > RESAMPLED_ABOVE else 1 for sigma in plan.sigmas[1:]]
        final = call.sample(start, noise, condition, plan=plan, extra=extra, constrain=constrain, repeats=again)
        return call.output(final, seeds, finish=put_back)

    def _canvas(
        self, image: Any, mask_image: Any, padding: int | None, height: int | None, width: int | None
    ) -> Canvas:
        """Pictures and masks, checked, in the size in which they are drawn."""
        pictures = read_pictures("image", image, max_pixels=self.max_pixels)
        masks = read_masks("mask_image", mask_image, max_pixels=self.max_pixels)
        if pictures.shape[-2:] != masks.shape[-2:]:
            (h, w), (mask_h, mask_w) = pictures.shape[-2:], masks.shape[-2:]
            raise ValueError(f"image is {w} x {h} pixels and mask_image {mask_w} x {mask_h}; they must have one size.")
        if len(masks) not in (1, len(pictures)) and len(pictures) != 1:
            raise ValueError(
                f"there are {len(pictures)} pictures and {len(masks)} masks; give one mask, or one for each picture."
            )
        count = max(len(pictures), len(masks))
        pictures, masks = pictures.expand(count, -1, -1, -1), masks.expand(count, -1, -1, -1)
        factor = self.vae.config.factor
        if padding is None:
            if height is not None or width is not None:
                raise ValueError(
                    "height and width are for padding_mask_crop; without it a picture is drawn in its own size: resize image and "
                    "mask_image for another."
                )
            return Canvas.whole(pictures, masks, factor)
        if not is_whole(padding) or padding < 0:
            raise ValueError(f"padding_mask_crop={padding!r} must be a whole number of pixels, at least 0, or None.")
        h, w = check_size(height, width, self.unet.config.sample_size, factor)
        return Canvas.around_masks(pictures, masks, int(padding), h * factor, w * factor)


def keeping(x0: Tensor, eps: Tensor, cells: Tensor, plan: Plan) -> Callable[[Tensor, int], Tensor]:
    """The constraint that puts back, at the knot reached, what is known: `x0`, noised with the same `eps` at every knot.

    Args:
        x0: (B, C, h, w) latents of the pictures.
        eps: (B, C, h, w) the noise that sampling started from.
        cells: (B, 1, h, w) 1 where the latents are drawn.
        plan: the run's knots. At the last the known part is `x0` itself.
    """

    def constrain(latents: Tensor, knot: int) -> Tensor:
        known = x0 if knot == len(plan) else plan.alphas[knot] * x0 + plan.sigmas[knot] * eps
        return cells * latents + (1 - cells) * known

    return constrain
