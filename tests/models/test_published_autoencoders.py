"""Every published autoencoder can be built, and has exactly the tensors that its checkpoint lists, by shape and count."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from latentgen.models import AutoencoderKL, VQModel

CHECKPOINTS = Path(__file__).resolve().parents[3] / "shared" / "reference" / "checkpoints"
NAMES = ["kl-f4", "kl-f8", "kl-f16", "kl-f32", "vq-f4", "vq-f4-noattn", "vq-f8", "vq-f8-n256", "vq-f16"]


def in_our_words(model):
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


@pytest.mark.parametrize("name", NAMES)
def test_a_published_autoencoder(name):
    path = CHECKPOINTS / f"autoencoder-{name}.json"
    if not path.is_file():
        pytest.skip("shared/reference/checkpoints, with the tensors of published models, is not beside this checkout")
    published = json.loads(path.read_text())
    with torch.device("meta"):
        model = (VQModel if "vq" in name else AutoencoderKL).from_config(in_our_words(published["model"]))
    # Attention layers are 1 x 1 convolutions there and matrices here.
    theirs = Counter(tuple(s[:2]) if s[2:] == [1, 1] else tuple(s) for n, s in published["tensors"].items()
                     if not n.startswith("loss."))  # fmt: skip
    ours = Counter(tuple(t.shape[:2]) if t.shape[2:] == (1, 1) else tuple(t.shape) for t in model.state_dict().values())
    assert ours == theirs
    assert model.config.factor == int(name.split("-")[1].removeprefix("f"))
