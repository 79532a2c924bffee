"""Every published autoencoder can be built, and has exactly the tensors that its checkpoint lists, by shape and count."""

from collections import Counter

import pytest
import torch
from published import AUTOENCODERS, autoencoder_words, published

from latentgen.models import AutoencoderKL, VQModel


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_published_autoencoder(name):
    checkpoint = published(f"autoencoder-{name}")
    with torch.device("meta"):
        model = (VQModel if "vq" in name else AutoencoderKL).from_config(autoencoder_words(checkpoint["model"]))
    # Attention layers are 1 x 1 convolutions there and matrices here.
    theirs = Counter(tuple(s[:2]) if s[2:] == [1, 1] else tuple(s) for n, s in checkpoint["tensors"].items()
                     if not n.startswith("loss."))  # fmt: skip
    ours = Counter(tuple(t.shape[:2]) if t.shape[2:] == (1, 1) else tuple(t.shape) for t in model.state_dict().values())
    assert ours == theirs
    assert model.config.factor == int(name.split("-")[1].removeprefix("f"))
