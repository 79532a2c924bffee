"""Writing LoRA factors, as from training, in the two forms that other programs read."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from latentgen.weights.adapters.deltas import LowRank
from latentgen.weights.adapters.lora import METADATA_KEY
from latentgen.weights.adapters.names import TEXT, TEXT_PREFIX, UNET
from latentgen.weights.safetensors_io import write_tensors

Layout = Literal["peft", "kohya"]


def save_lora(
    path: str | os.PathLike[str],
    *,
    unet: Mapping[str, LowRank] | None = None,
    text_encoder: Mapping[str, LowRank] | None = None,
    layout: Layout = "peft",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write LoRA factors; what is read back is the same, bit for bit.

    Args:
        path: ends in ".safetensors".
        unet, text_encoder: factors by layer, named as in the network (`mid_block.attentions.0.proj_in`). A text encoder's layers
            may begin with `text_model.` or not: in PEFT's form they stand as they are given, for diffusers takes only the
            names that the installed transformers has (without, from 5.6 on); here both are read.
        layout: "peft", which diffusers loads, with ranks and alphas in the header; or "kohya", for A1111, ComfyUI and others.
        metadata: further entries of the header.

    Raises:
        ValueError: for a layout that is none of these, factors that do not multiply, a layer given twice, Tucker factors in
            PEFT's form, which has none, or nothing to write.
        OSError: if the file cannot be written; nothing is left behind.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout={layout!r} must be one of {', '.join(map(repr, get_args(Layout)))}.")
    networks = {UNET: dict(unet or {}), TEXT: dict(text_encoder or {})}
    if not any(networks.values()):
        raise ValueError(
            "there is nothing to write: give the factors of at least one layer, in unet= or text_encoder=."
        )
    for network, layers in networks.items():
        for layer, delta in layers.items():
            up, down = delta.up, delta.down
            shape = (up.shape[0], *down.shape[1:2], *(down if delta.mid is None else delta.mid).shape[2:])
            if reason := delta.misfit(shape):
                raise ValueError(f"{network}.{layer}: {reason}.")
    if layout == "kohya":
        write_tensors(path, _kohya(networks), metadata)
    else:
        write_tensors(path, _peft(networks), {**(metadata or {}), METADATA_KEY: _peft_settings(networks)})


Networks = Mapping[str, Mapping[str, LowRank]]


def _peft(networks: Networks) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for network, layers in networks.items():
        for layer, delta in layers.items():
            if delta.mid is not None:
                raise ValueError(
                    f"{network}.{layer} has Tucker factors, which PEFT's form has not: use layout='kohya'."
                )
            tensors[f"{network}.{layer}.lora_A.weight"] = delta.down
            tensors[f"{network}.{layer}.lora_B.weight"] = delta.up
    return tensors


def _peft_settings(networks: Networks) -> str:
    """The header's entry: PEFT's LoraConfig, each field behind its network's name, with exceptions from the commonest."""
    settings: dict[str, Any] = {}
    for network, layers in networks.items():
        if not layers:
            continue
        ranks = {layer: delta.rank for layer, delta in layers.items()}
        alphas = {layer: float(delta.rank if delta.alpha is None else delta.alpha) for layer, delta in layers.items()}
        rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
        fields = {
            "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": sorted(layers),
            "rank_pattern": {f"^{layer}": r for layer, r in ranks.items() if r != rank},
            "alpha_pattern": {f"^{layer}": a for layer, a in alphas.items() if a != alpha},
            "use_rslora": False, "use_dora": False, "lora_bias": False, "bias": "none", "lora_dropout": 0.0,
        }  # fmt: skip
        settings |= {f"{network}.{field}": value for field, value in fields.items()}
    return json.dumps(settings, indent=2, sort_keys=True)


def _kohya(networks: Networks) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for network, start in ((UNET, "lora_unet_"), (TEXT, f"lora_te_{TEXT_PREFIX}")):
        for layer, delta in networks[network].items():
            name = (start + (layer.removeprefix(TEXT_PREFIX) if network == TEXT else layer)).replace(".", "_")
            if f"{name}.lora_down.weight" in tensors:
                raise ValueError(f"{network}.{layer} has the name of another layer, {name}, in kohya's form.")
            tensors[f"{name}.lora_down.weight"] = delta.down
            tensors[f"{name}.lora_up.weight"] = delta.up
            if delta.mid is not None:
                tensors[f"{name}.lora_mid.weight"] = delta.mid
            alpha = float(delta.rank if delta.alpha is None else delta.alpha)
            single = torch.tensor(alpha, dtype=torch.float32, device="cpu")
            tensors[f"{name}.alpha"] = (
                single if single.item() == alpha else single.new_tensor(alpha, dtype=torch.float64)
            )
    return tensors
