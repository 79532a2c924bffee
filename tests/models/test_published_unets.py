"""Every published UNet can be built, and has exactly the tensors that its checkpoint lists, by shape and count."""

from collections import Counter

import pytest
import torch
from published import published, unet_words

NAMES = [
    "ldm-bsr_sr", "ldm-celeba256", "ldm-cin256", "ldm-cin256-v2", "ldm-ffhq256", "ldm-inpainting_big",
    "ldm-layout2img-openimages256", "ldm-lsun_beds256", "ldm-lsun_churches256", "ldm-semantic_synthesis256",
    "ldm-semantic_synthesis512", "ldm-text2img256", "ldm-txt2img-1p4B-eval", "sd-v1", "sd-v1-inpainting", "sd-v2-base",
    "sd-v2-768-v", "sd-v2-inpainting", "sd-x4-upscaler",
]  # fmt: skip
PREFIX = "model.diffusion_model."


@pytest.mark.parametrize("name", NAMES)
def test_a_published_unet(name):
    checkpoint = published(name)
    cls, words = unet_words(checkpoint["model"]["params"]["unet_config"]["params"])
    with torch.device("meta"):
        model = cls.from_config(words)
    # Attention without a context keeps queries, keys and values in one 1-dimensional convolution there.
    theirs: Counter = Counter()
    for full, shape in checkpoint["tensors"].items():
        if full.startswith(PREFIX):
            if ".qkv." in full:
                theirs[(shape[0] // 3, *shape[1:2])] += 3
            else:
                theirs[tuple(shape[:2]) if shape[2:] in ([1], [1, 1]) else tuple(shape)] += 1
    ours = Counter(tuple(t.shape[:2]) if t.shape[2:] == (1, 1) else tuple(t.shape) for t in model.state_dict().values())
    assert ours == theirs
