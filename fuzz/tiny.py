"""A model small enough to be loaded a thousand times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from latentgen import AutoencoderKL, DDIMScheduler, Text2ImagePipeline, UNet2DConditionModel
from latentgen.training.config import TextConfig
from latentgen.training.text import build_text_encoder, train_tokenizer

HOW: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
UNET = {
    "sample_size": 16, "block_out_channels": [16, 16], "norm_num_groups": 4, "attention_head_dim": 2, "layers_per_block": 1,
    "cross_attention_dim": 16, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
VAE = {
    "block_out_channels": [8, 8], "norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip


def make_model(folder: Path) -> Path:
    """Write a model folder of random weights."""
    torch.manual_seed(0)
    text = TextConfig(max_length=16, vocab_size=600, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    tokenizer = train_tokenizer(["a red circle", "a blue star"], text)
    Text2ImagePipeline(
        vae=AutoencoderKL.from_config(VAE),
        text_encoder=build_text_encoder(tokenizer, text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_config(UNET),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
    ).save_pretrained(folder)
    return folder


def make_single_file(path: Path) -> Text2ImagePipeline:
    """Write a model of Stable Diffusion 1's form as one file, and give it."""
    torch.manual_seed(0)
    text = TextConfig(max_length=77, vocab_size=600, hidden_size=64, num_hidden_layers=1, num_attention_heads=1)
    tokenizer = train_tokenizer(["a red circle", "a blue star"], text)
    vae = VAE | {"block_out_channels": [32] * 4, "norm_num_groups": 32, "down_block_types": ["DownEncoderBlock2D"] * 4,
                 "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 1}  # fmt: skip
    unet = UNET | {"block_out_channels": [64, 64], "norm_num_groups": 32, "attention_head_dim": 8, "cross_attention_dim": 64,
                   "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
                   "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}  # fmt: skip
    pipe = Text2ImagePipeline(
        vae=AutoencoderKL.from_config(vae),
        text_encoder=build_text_encoder(tokenizer, text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_config(unet),
        scheduler=DDIMScheduler(
            clip_sample=False, steps_offset=1, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
    )
    pipe.save_single_file(path, family="sd-v1")
    return pipe
