"""The settings files of published checkpoints, in the words of the folder layout."""

import json
from pathlib import Path

import pytest

from latentgen.models import UNet2DConditionModel, UNet2DModel

CHECKPOINTS = Path(__file__).resolve().parents[2] / "shared" / "reference" / "checkpoints"
AUTOENCODERS = ["kl-f4", "kl-f8", "kl-f16", "kl-f32", "vq-f4", "vq-f4-noattn", "vq-f8", "vq-f8-n256", "vq-f16"]


def published(name):
    """A checkpoint's settings and its tensors' shapes; the test is skipped where they are absent."""
    path = CHECKPOINTS / f"{name}.json"
    if not path.is_file():
        pytest.skip("shared/reference/checkpoints, with the tensors of published models, is not beside this checkout")
    return json.loads(path.read_text())


def autoencoder_words(model):
    """CompVis' settings as those of the folder layout."""
    params = model["params"]
    settings = params["ddconfig"]
    levels = len(settings["ch_mult"])
    attends = [settings["resolution"] >> level in settings["attn_resolutions"] for level in range(levels)]
    words = {
        "block_out_channels": [settings["ch"] * m for m in settings["ch_mult"]],
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
        "layers_per_block": settings["num_res_blocks"],
        "latent_channels": settings["z_channels"],
        "mid_block_add_attention": settings.get("attn_type") != "none",
        "sample_size": settings["resolution"],
    }
    if "n_embed" in params:
        words |= {"num_vq_embeddings": params["n_embed"], "vq_embed_dim": params["embed_dim"]}
    return words


def unet_words(settings):
    """CompVis' settings as those of the folder layout, and the class that has them."""
    widths = [settings["model_channels"] * m for m in settings["channel_mult"]]
    attends = [2**level in settings["attention_resolutions"] for level in range(len(widths))]
    heads = [
        w // settings["num_head_channels"] if "num_head_channels" in settings else settings["num_heads"] for w in widths
    ]
    words = {
        "in_channels": settings["in_channels"],
        "out_channels": settings["out_channels"],
        "block_out_channels": widths,
        "layers_per_block": settings["num_res_blocks"],
        "num_class_embeds": settings.get("num_classes"),
    }
    text = settings.get("use_spatial_transformer", False)
    down = "CrossAttnDownBlock2D" if text else "AttnDownBlock2D"
    up = "CrossAttnUpBlock2D" if text else "AttnUpBlock2D"
    updown = settings.get("resblock_updown", False)
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if updown else ("DownBlock2D", "UpBlock2D")
    words["down_block_types"] = [down if a else plain[0] for a in attends]
    words["up_block_types"] = [up if a else plain[1] for a in reversed(attends)]
    if not text:
        resample = "resnet" if updown else "conv"
        shift = "scale_shift" if settings.get("use_scale_shift_norm") else "default"
        return UNet2DModel, words | {
            "attention_head_dim": [w // h for w, h in zip(widths, heads, strict=True)],
            "downsample_type": resample, "upsample_type": resample, "resnet_time_scale_shift": shift,
        }  # fmt: skip
    only_cross = settings.get("disable_self_attentions", [False] * len(widths))
    return UNet2DConditionModel, words | {
        "attention_head_dim": heads,
        "cross_attention_dim": settings["context_dim"],
        "transformer_layers_per_block": settings["transformer_depth"],
        "use_linear_projection": settings.get("use_linear_in_transformer", False),
        "only_cross_attention": only_cross,
    }
