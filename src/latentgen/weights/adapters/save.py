"""Writing LoRA and DoRA factors, as from training, in the two forms that other programs read."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from latentgen.weights.adapters.deltas import Decomposed, LowRank
from latentgen.weights.adapters.lora import METADATA_KEY
from latentgen.weights.adapters.names import TEXT, TEXT_PREFIX, UNET
from latentgen.weights.safetensors_io import write_tensors

Layout = Literal["peft", "kohya"]
Factors = LowRank | Decomposed
Networks = Mapping[str, Mapping[str, Factors]]


def save_lora(
    path: str | os.PathLike[str],
    *,
    unet: Mapping[str, Factors] | None = None,
    text_encoder: Mapping[str, Factors] | None = None,
    layout: Layout = "peft",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write LoRA factors, or DoRA's (`Decomposed` on `LowRank`); what is read back is the same, bit for bit.

    Args:
        path: ends in ".safetensors".
        unet, text_encoder: factors by layer, named as in the network (`mid_block.attentions.0.proj_in`). A text encoder's layers
            may begin with `text_model.` or not: in PEFT's form they stand as they are given, for diffusers takes only the
            names that the installed transformers has (without, from 5.6 on); here both are read.
        layout: "peft", which diffusers loads, with ranks and alphas in the header; or "kohya", for A1111, ComfyUI and others.
        metadata: further entries of the header.

    Raises:
        ValueError: for a layout that is none of these, factors that do not multiply, a layer given twice, nothing to write, or
            what PEFT's form has not: Tucker factors, magnitudes by input, or magnitudes of some layers of a network only.
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
            low = _low_rank(delta)
            if not isinstance(low, LowRank):
                raise ValueError(f"{network}.{layer} is a {type(low).__name__}: only LoRA and DoRA are written.")
            up, down = low.up, low.down
            shape = (up.shape[0], *down.shape[1:2], *(down if low.mid is None else low.mid).shape[2:])
            if reason := delta.misfit(shape):
                raise ValueError(f"{network}.{layer}: {reason}.")
    if layout == "kohya":
        write_tensors(path, _kohya(networks), metadata)
    else:
        write_tensors(path, _peft(networks), {**(metadata or {}), METADATA_KEY: _peft_settings(networks)})


def _low_rank(delta: Factors) -> Any:
    return delta.inner if isinstance(delta, Decomposed) else delta


def _magnitude(delta: Decomposed) -> Tensor:
    """The lengths in kohya's shape: (O, 1, ...), or (1, I, ...) by input."""
    ones = [1] * (_low_rank(delta).down.ndim - 2)
    return delta.magnitude.reshape(1, -1, *ones) if delta.by_input else delta.magnitude.reshape(-1, 1, *ones)


def _peft(networks: Networks) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for network, layers in networks.items():
        decomposed = {layer: delta for layer, delta in layers.items() if isinstance(delta, Decomposed)}
        if decomposed and len(decomposed) < len(layers):
            plain = next(layer for layer in layers if layer not in decomposed)
            raise ValueError(
                f"{network}.{plain} has no magnitude and {next(iter(decomposed))} has: PEFT's form has them for all layers of a "
                "network, or for none. Use layout='kohya'."
            )
        for layer, delta in layers.items():
            low = _low_rank(delta)
            if low.mid is not None or (isinstance(delta, Decomposed) and delta.by_input):
                what = "magnitudes by input" if low.mid is None else "Tucker factors"
                raise ValueError(f"{network}.{layer} has {what}, which PEFT's form has not: use layout='kohya'.")
            tensors[f"{network}.{layer}.lora_A.weight"] = low.down
            tensors[f"{network}.{layer}.lora_B.weight"] = low.up
            if isinstance(delta, Decomposed):
                magnitude = delta.magnitude.flatten()
                shaped = magnitude if low.down.ndim == 2 else magnitude.reshape(1, -1, 1, 1)
                # Under this name diffusers finds it in text encoders too; without ".weight" it leaves its own there.
                tensors[f"{network}.{layer}.lora_magnitude_vector.weight"] = shaped
    return tensors


def _peft_settings(networks: Networks) -> str:
    """The header's entry: PEFT's LoraConfig, each field behind its network's name, with exceptions from the commonest."""
    settings: dict[str, Any] = {}
    for network, layers in networks.items():
        if not layers:
            continue
        lows = {layer: _low_rank(delta) for layer, delta in layers.items()}
        ranks = {layer: low.rank for layer, low in lows.items()}
        alphas = {layer: float(low.rank if low.alpha is None else low.alpha) for layer, low in lows.items()}
        rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
        fields = {
            "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": sorted(layers),
            "rank_pattern": {f"^{layer}": r for layer, r in ranks.items() if r != rank},
            "alpha_pattern": {f"^{layer}": a for layer, a in alphas.items() if a != alpha},
            "use_rslora": False, "use_dora": any(isinstance(delta, Decomposed) for delta in layers.values()),
            "lora_bias": False, "bias": "none", "lora_dropout": 0.0,
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
            low = _low_rank(delta)
            tensors[f"{name}.lora_down.weight"] = low.down
            tensors[f"{name}.lora_up.weight"] = low.up
            if low.mid is not None:
                tensors[f"{name}.lora_mid.weight"] = low.mid
            if isinstance(delta, Decomposed):
                tensors[f"{name}.dora_scale"] = _magnitude(delta)
            alpha = float(low.rank if low.alpha is None else low.alpha)
            single = torch.tensor(alpha, dtype=torch.float32, device="cpu")
            tensors[f"{name}.alpha"] = (
                single if single.item() == alpha else single.new_tensor(alpha, dtype=torch.float64)
            )
    return tensors
