"""Texts as a UNet's condition: prompts, or embeddings in their place, and under guidance what to stay away from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from latentgen.models.first_stage import FirstStage
from latentgen.models.ldm_bert import LDMBertModel
from latentgen.models.unet import UNet2DConditionModel
from latentgen.pipelines.adapted import Parts
from latentgen.pipelines.condition import Condition
from latentgen.pipelines.inputs import check_prompts, check_tensor
from latentgen.runtime.warn import warn_user
from latentgen.text import check_clip_skip, encode_prompts

OF_LDM = "LDMTextToImagePipeline"
"""What LDM's text-to-image model is called in `model_index.json`."""

NAMES_OF_LDM: dict[str, dict[str, str]] = {OF_LDM: {"vae": "vqvae", "text_encoder": "bert"}}
"""What its folders call components: see `Pipeline.folder_names`."""

DEFAULTS_OF_LDM: dict[str, dict[str, Any]] = {OF_LDM: {"clip_sample": False}}
"""What its scheduler file means by leaving this out: other libraries correct no offset there."""

KINDS = {
    "text_encoder": "transformers.CLIPTextModel or latentgen.LDMBertModel",
    "tokenizer": "transformers.CLIPTokenizer or transformers.BertTokenizer",
}
"""The components that make a text a condition: both Stable Diffusion's, or both LDM's."""


def check_unet_channels(unet: UNet2DConditionModel, vae: FirstStage[Any], *takes: int) -> None:
    """Raise ValueError, naming the pipeline that fits, unless the UNet takes so many channels, and a text, and gives latents.

    Args:
        unet: the network.
        vae: whose latents it draws.
        takes: numbers of input channels that fit; none is that of the latents.
    """
    channels, given = vae.config.embed_dim, unet.config.in_channels
    takes = takes or (channels,)
    if given == 2 * channels + 1 and given not in takes:
        raise ValueError(
            f"the UNet has {given} input channels: it is an inpainting model, which InpaintPipeline loads."
        )
    if given == channels + 3 and unet.config.num_class_embeds is not None:
        raise ValueError(
            f"the UNet takes {given} channels and a noise level: it is an upscaler, which SuperResPipeline loads."
        )
    if given not in takes or unet.config.out_channels != channels:
        fit = "" if takes == (channels,) else f" (it may take {' or '.join(map(str, takes))})"
        raise ValueError(
            f"the UNet takes {given} channels and gives {unet.config.out_channels}, and the VAE's latents have {channels}; "
            f"they must agree{fit}."
        )
    if unet.config.num_class_embeds is not None:
        raise ValueError(
            f"the UNet wants class labels (num_class_embeds={unet.config.num_class_embeds}), which pictures from texts do "
            "not have: it is of another task."
        )


def check_text_width(text_encoder: Any, unet: UNet2DConditionModel) -> None:
    """Raise ValueError unless the UNet attends to what the text encoder gives."""
    config, context = text_encoder.config, unet.config.cross_attention_dim
    width = config.d_model if isinstance(text_encoder, LDMBertModel) else config.hidden_size
    if width != context:
        raise ValueError(
            f"the text encoder gives embeddings of width {width} and the UNet attends to width {context}; they must agree."
        )


def check_tokenizer(tokenizer: Any, text_encoder: Any) -> None:
    """Raise ValueError for a tokenizer of another kind than the text encoder's."""
    wanted = "BertTokenizer" if isinstance(text_encoder, LDMBertModel) else "CLIPTokenizer"
    if not any(cls.__name__ == wanted for cls in type(tokenizer).__mro__):
        raise ValueError(
            f"tokenizer is a {type(tokenizer).__name__} and text_encoder a {type(text_encoder).__name__}, whose tokenizer is a "
            f"{wanted}: give both of one model."
        )


def condition_on_text(
    parts: Parts,
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    prompt_embeds: Tensor | None,
    negative_prompt_embeds: Tensor | None,
    clip_skip: int | None,
    *,
    guided: bool,
) -> Condition:
    """Embed the texts of a call, or check the embeddings that were given instead.

    Raises:
        ValueError: for texts or embeddings that break their rule, or do not fit each other.
    """
    if (prompt is None) == (prompt_embeds is None):
        raise ValueError("give prompt or prompt_embeds, one of them; prompt='' draws without a condition.")
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise ValueError("negative_prompt and negative_prompt_embeds were both given; give one of them.")
    skip = check_clip_skip(parts.text_encoder, clip_skip)
    if skip and prompt_embeds is not None and (negative_prompt_embeds is not None or not guided):
        warn_user("clip_skip has no effect: embeddings were given, and no text is encoded.")
    if prompt_embeds is None:
        positive = encode_prompts(
            parts.tokenizer, parts.text_encoder, check_prompts(prompt), clip_skip=skip, runs=parts.runs
        )
    else:
        shape = (None, None, parts.unet.config.cross_attention_dim)
        positive = check_tensor("prompt_embeds", prompt_embeds, shape, parts.device, parts.dtype)
    texts = check_prompts("" if negative_prompt is None else negative_prompt, "negative_prompt")
    if len(texts) not in (1, len(positive)):
        raise ValueError(
            f"negative_prompt has {len(texts)} entries; there must be 1 or {len(positive)}, as of prompts."
        )
    if guided:
        return Condition(positive, _negative(parts, positive, texts, negative_prompt_embeds, skip))
    if any(texts) or negative_prompt_embeds is not None:
        warn_user("guidance_scale=1 runs without guidance: the negative prompt has no effect.")
    return Condition(positive, None)


def _negative(parts: Parts, positive: Tensor, texts: list[str], given: Tensor | None, skip: int) -> Tensor:
    """Embeddings of the shape and dtype of `positive`: those given, or of one text for all or one for each."""
    if given is not None:
        check_tensor("negative_prompt_embeds", given, positive.shape, parts.device, parts.dtype)
        return given.to(positive.dtype)
    negative = encode_prompts(parts.tokenizer, parts.text_encoder, texts, clip_skip=skip, runs=parts.runs)
    negative = negative.expand(len(positive), -1, -1)
    if negative.shape != positive.shape:
        raise ValueError(
            f"prompt_embeds has shape {tuple(positive.shape)} and the negative prompt's {tuple(negative.shape)}; "
            "they must have equal lengths: give negative_prompt_embeds too."
        )
    return negative.to(positive.dtype)
