"""The models that both libraries load: the configurations of Stable Diffusion 1.5 and of its x4 upscaler with random weights,
written by diffusers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from benchmarks.progress import say
from benchmarks.settings import Settings
from benchmarks.stamp import read_variants, write_stamp

UPSCALER = "x4"
"""The upscaler's folder, in that of the other model."""

SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
"""Stable Diffusion's noise schedule; the solver is DDIM, whose n steps are n evaluations of the UNet."""

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
"""All bytes, alone and at a word's end."""


def ensure_model_folder(folder: Path, settings: Settings, variants: Sequence[str | None]) -> None:
    """See to it that `folder` holds the model of `settings` in these variants, writing what it lacks.

    Raises:
        ValueError: if the folder holds anything else (see `stamp.read_variants`).
    """
    there = read_variants(folder, settings)
    missing = [variant for variant in variants if variant not in there]
    if missing:
        say(f"writing the model to {folder}")
        make_model_folder(folder, settings, variants=missing)
        write_stamp(folder, settings, [*there, *missing])


def ensure_upscaler_folder(folder: Path, settings: Settings) -> None:
    """The same for the x4 upscaler, whose files are float32 alone.

    Raises:
        ValueError: if the folder holds anything else.
    """
    if not read_variants(folder, settings):
        say(f"writing the upscaler to {folder}")
        make_upscaler_folder(folder, settings)
        write_stamp(folder, settings, [None])


def make_model_folder(folder: Path, settings: Settings, *, variants: Sequence[str | None]) -> None:
    """Write the model, once for each variant: None is float32, "fp16" is float16 under that name."""
    torch.manual_seed(0)
    pipeline: Any = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=settings.vae_widths,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=settings.pixels,
        ),
        text_encoder=_text_encoder(settings, settings.text_width),
        tokenizer=CLIPTokenizer.from_pretrained(str(_write_tokenizer(folder / "tokenizer"))),
        unet=UNet2DConditionModel(
            block_out_channels=settings.unet_widths,
            attention_head_dim=settings.heads,
            cross_attention_dim=settings.text_width,
            sample_size=settings.latent_side,
        ),
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    if None in variants:
        pipeline.save_pretrained(folder)
    if "fp16" in variants:
        for module in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
            module.to(torch.float16)  # not pipeline.to(), which warns of a CPU: nothing runs here
        pipeline.save_pretrained(folder, variant="fp16")


def make_upscaler_folder(folder: Path, settings: Settings) -> None:
    """Write a model of the form of Stable Diffusion's x4 upscaler."""
    torch.manual_seed(0)
    pipeline: Any = StableDiffusionUpscalePipeline(
        vae=AutoencoderKL(
            block_out_channels=settings.vae_widths[:3],
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=2,
            sample_size=settings.pixels // 2,
            scaling_factor=0.08333,
        ),
        text_encoder=_text_encoder(settings, settings.upscaler_text_width),
        tokenizer=CLIPTokenizer.from_pretrained(str(_write_tokenizer(folder / "tokenizer"))),
        unet=UNet2DConditionModel(
            in_channels=7,
            block_out_channels=settings.upscaler_widths,
            down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
            up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
            only_cross_attention=(True, True, True, False),
            attention_head_dim=settings.heads,
            cross_attention_dim=settings.upscaler_text_width,
            use_linear_projection=True,
            num_class_embeds=1000,
            sample_size=settings.pixels // 4,
        ),
        low_res_scheduler=DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.0001, beta_end=0.02),
        scheduler=DDIMScheduler(**SCHEDULER, prediction_type="v_prediction"),
    )
    pipeline.save_pretrained(folder)


def _text_encoder(settings: Settings, width: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=settings.vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=settings.text_layers,
            num_attention_heads=settings.text_heads if width % settings.text_heads == 0 else width // 64,
            bos_token_id=len(TOKENS) - 2,
            eos_token_id=len(TOKENS) - 1,
        )
    )


def hide_progress_bars() -> None:
    """Those of loading and saving, in this process."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def read_through(folder: Path) -> int:
    """Read every file once, so that no library is the first to fetch it from the disk; the number of bytes."""
    total = 0
    for path in folder.rglob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(2**24):
                total += len(chunk)
    return total


def _write_tokenizer(folder: Path) -> Path:
    """A CLIP tokenizer that knows `TOKENS` and no longer pieces."""
    config = {
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer",
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
