"""Tables from other spellings of tensor names to ours, each total, injective and reversible."""

from __future__ import annotations

import re
from collections.abc import Mapping

from latentgen.weights.errors import WeightsError
from latentgen.weights.stored import StoredTensor

OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""The layers of an autoencoder's attention: as files before diffusers 0.13 spell them, and as they are spelt now."""

_ATTENTION_LAYER = re.compile(r"(?P<block>(?:.*\.)?attentions\.\d+)\.(?P<layer>[a-z_]+(?:\.0)?)\.(?P<kind>weight|bias)")


def rename_old_vae_attention(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Bring an autoencoder's attention to today's spelling; everything else passes unchanged.

    The weights of attention layers that were kept as 1x1 convolutions, (C, C, 1, 1), become matrices (C, C).

    Raises:
        WeightsError: if a file has the same layer in both spellings.
    """
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        match = _ATTENTION_LAYER.fullmatch(name)
        if match:
            layer = OLD_VAE_ATTENTION.get(match["layer"], match["layer"])
            name = f"{match['block']}.{layer}.{match['kind']}"
            if layer in OLD_VAE_ATTENTION.values() and tensor.like.ndim == 4 and tensor.shape[2:] == (1, 1):
                tensor = tensor.then(lambda weight: weight[:, :, 0, 0])
        if name in renamed:
            raise WeightsError(f"The file has {name} twice, in the old and in the new spelling: fetch a file with one.")
        renamed[name] = tensor
    return renamed
