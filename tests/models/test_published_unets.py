"""Every published UNet can be built, and has exactly the tensors that its checkpoint lists, by shape and count."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from latentgen.models import UNet2DConditionModel, UNet2DModel

CHECKPOINTS = Path(__file__).resolve().parents[3] / "shared" / "reference" / "checkpoints"
NAMES = [
    "ldm-bsr_sr", "ldm-celeba256", "ldm-cin256", "ldm-cin256-v2", "ldm-ffhq256", "ldm-inpainting_big",
    "ldm-layout2img-openimages256", "ldm-lsun_beds256", "ldm-lsun_churches256", "ldm-semantic_synthesis256",
    "ldm-semantic_synthesis512", "ldm-text2img256", "ldm-txt2img-1p4B-eval", "sd-v1", "sd-v1-inpainting", "sd-v2-base",
    "sd-v2-768-v", "sd-v2-inpainting", "sd-x4-upscaler",
]  # fmt: skip
PREFIX = "model.diffusion_model."


def in_our_words(settings):
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


@pytest.mark.parametrize("name", NAMES)
def test_a_published_unet(name):
    path = CHECKPOINTS / f"{name}.json"
    if not path.is_file():
        pytest.skip("shared/reference/checkpoints, with the tensors of published models, is not beside this checkout")
    published = json.loads(path.read_text())
    cls, words = in_our_words(published["model"]["params"]["unet_config"]["params"])
    with torch.device("meta"):
        model = cls.from_config(words)
    # Attention without a context keeps queries, keys and values in one 1-dimensional convolution there.
    theirs: Counter = Counter()
    for full, shape in published["tensors"].items():
        if full.startswith(PREFIX):
            if ".qkv." in full:
                theirs[(shape[0] // 3, *shape[1:2])] += 3
            else:
                theirs[tuple(shape[:2]) if shape[2:] in ([1], [1, 1]) else tuple(shape)] += 1
    ours = Counter(tuple(t.shape[:2]) if t.shape[2:] == (1, 1) else tuple(t.shape) for t in model.state_dict().values())
    assert ours == theirs
