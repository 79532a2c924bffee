"""Single files whose tensors are of other names, shapes and kinds: of a known family and whole, or a typed error."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

from fuzz.bent import bend
from fuzz.outcome import Tally
from fuzz.tiny import HOW, make_single_file
from latentgen import AutoencoderKL, InpaintPipeline, SuperResPipeline, Text2ImagePipeline, VQModel
from latentgen.pipelines.describe import describe
from latentgen.weights.safetensors_io import read_tensors, write_tensors

ZEROS = ("untyped", "slow", "hollow")
"""Hollow is a model with a parameter that is nowhere, or not finite."""
U, V, C = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
NAMES = ("x", U, V, C, "model_ema.x", "model_ema.decay", f"{V}x", f"{C}y", f"{U}input_blocks.99.0.weight",
         f"{U}input_blocks.x.0.weight",
         f"{U}middle_block.7.x", f"{U}label_emb.0.0.weight", f"{U}time_embed.0.weight", "scale_factor", "v_pred", "ztsnr",
         "logvar", f"{V}encoder.down.9.block.0.conv1.weight", f"{V}quantize.embedding.weight", f"{C}model.ln_final.weight",
         "conv_in.weight", f"{C}transformer.text_model.encoder.layers.99999.layer_norm1.weight", "lora_unet_x.alpha",
         "encoder.conv_in.weight", f"{C}embedding.weight", f"{U}input_blocks.{10**30}.0.weight")  # fmt: skip
CLASSES = (Text2ImagePipeline, Text2ImagePipeline, Text2ImagePipeline, InpaintPipeline, SuperResPipeline)


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Load `count` single files that were bent, as pipelines and as autoencoders, and describe each."""
    r, tally = random.Random(seed), Tally()
    path = folder / "bent.safetensors"
    pipe = make_single_file(path)
    good, words = read_tensors(path), {"tokenizer": pipe.tokenizer, **HOW}
    Text2ImagePipeline.from_single_file(path, family="sd-v1", **words)
    for number in range(count):
        write_tensors(path, bend(r, good, NAMES))
        os.utime(path, (1, 1))
        case, start = f"number {number} of seed {seed}", time.perf_counter()
        family = r.choice(["sd-v1", "sd-v1", "sd-v1-inpainting", "ldm-text2img256", "sd-v2-base", None])
        told = r.choice([None, "epsilon", "v_prediction"])
        cls, made = r.choice(CLASSES), []

        def whole(cls: Any = cls, family: str | None = family, told: str | None = told, made: list[Any] = made) -> None:
            made.append(cls.from_single_file(path, family=family, prediction_type=told, **words))

        tally.load(case, whole)
        tally.load(f"autoencoder, {case}", lambda: r.choice([AutoencoderKL, VQModel]).from_single_file(path, **HOW))
        tally.load(f"info, {case}", lambda: describe(path))
        tally.counts["cases"] -= 2  # all three are of one
        tally.timed(case, start)
        for model in made:
            parts = [model.unet, model.vae, model.text_encoder]
            if any(p.is_meta or not bool(p.isfinite().all()) for part in parts for p in part.parameters()):
                tally.blame("hollow", case)
    return tally.result(*ZEROS)
