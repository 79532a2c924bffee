"""Names in LoRA files: each says which network, which layer and which factor. Tables, no rules of thumb.

| spelling | an example |
| --- | --- |
| PEFT | `unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight` |
| diffusers before PEFT | `unet. ... .attn1.to_q.lora.down.weight`, `text_encoder. ... .q_proj.lora_linear_layer.down.weight` |
| the first one of diffusers | `unet. ... .attn1.processor.to_q_lora.down.weight`, with and without `unet.` |
| kohya, A1111, LyCORIS | `lora_unet_down_blocks_0_ ... _attn1_to_q.lora_down.weight` |
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

UNET, TEXT = "unet", "text_encoder"

ROLES = {
    "lora_A.weight": "down", "lora_B.weight": "up",
    "lora_A.default.weight": "down", "lora_B.default.weight": "up",
    "lora.down.weight": "down", "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down", "lora_linear_layer.up.weight": "up",
    "lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid",
    "alpha": "alpha", "dora_scale": "dora_scale",
    "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude",
    "hada_w1_a": "hada_w1_a", "hada_w1_b": "hada_w1_b", "hada_w2_a": "hada_w2_a", "hada_w2_b": "hada_w2_b",
    "hada_t1": "hada_t1", "hada_t2": "hada_t2",
    "lokr_w1": "lokr_w1", "lokr_w1_a": "lokr_w1_a", "lokr_w1_b": "lokr_w1_b",
    "lokr_w2": "lokr_w2", "lokr_w2_a": "lokr_w2_a", "lokr_w2_b": "lokr_w2_b", "lokr_t2": "lokr_t2",
}  # fmt: skip
"""What stands behind a layer's name, and the factor that it is."""

FLAT = {"lora_unet_": UNET, "lora_te_": TEXT, "lora_te1_": TEXT}
"""Beginnings of names in which the layer is spelt with `_` for every dot."""

DOTTED = {"unet.": UNET, "text_encoder.": TEXT}
WRAPPER = "base_model.model."
"""What PEFT puts before the layers of a network that it saves by itself."""

TEXT_PREFIX = "text_model."
"""Before the layers of a text encoder, in files and in transformers before 5.6; it says nothing."""

PROJECTIONS = {
    UNET: {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"},
    TEXT: {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"},
}
"""The projections of an attention, as diffusers first spelt them (`to_q_lora`), and the layers that they are."""

_PROJECTION = re.compile(
    r"(?P<attention>.+?)(?:\.processor)?\.(?P<layer>to_[qkv]|to_out)_lora\.(?P<role>down|up)\.weight"
)
_ROLE = re.compile(rf"(?P<layer>.+?)\.(?P<role>{'|'.join(map(re.escape, sorted(ROLES, key=len, reverse=True)))})")

OTHER_MODELS = {
    ("lora_te2_", "lora_te3_", "text_encoder_2.", "text_encoder_3."): "It is for a model with several text encoders, as "
    "Stable Diffusion XL.",
    ("lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_"): "Its layers are named as in the "
    "original code, as those for Stable Diffusion XL are.",
    ("lora_unet_double_blocks_", "lora_unet_single_blocks_", "lora_unet_joint_blocks_", "lora_transformer_", "transformer.",
     "diffusion_model."): "It is for a model with a transformer in the UNet's place, as Stable Diffusion 3 or Flux.",
}  # fmt: skip
"""Beginnings of names that betray another base model."""


class Place(NamedTuple):
    """What a name in a file means."""

    network: str
    layer: str
    role: str


class Layers:
    """The layers of a UNet and of a text encoder, by every spelling of their names."""

    def __init__(self, unet: Iterable[str], text_encoder: Iterable[str]) -> None:
        """Args: names of layers with a weight, those of the text encoder without `text_model.`."""
        self.names = {UNET: frozenset(unet), TEXT: frozenset(text_encoder)}
        self.flat = {
            UNET: _flat(self.names[UNET], ""),
            TEXT: _flat(self.names[TEXT], "") | _flat(self.names[TEXT], TEXT_PREFIX),
        }

    def place(self, key: str) -> Place | None:
        """What a name in a file means; None if it fits no layer."""
        for prefix, network in FLAT.items():
            if key.startswith(prefix):
                flat, _, role = key.removeprefix(prefix).partition(".")
                layer = self.flat[network].get(flat)
                return Place(network, layer, ROLES[role]) if layer and role in ROLES else None
        for prefix, network in DOTTED.items():
            if key.startswith(prefix):
                return self._dotted(network, key.removeprefix(prefix))
        return self._dotted(UNET, key) or self._dotted(TEXT, key)

    def _dotted(self, network: str, key: str) -> Place | None:
        key = key.removeprefix(WRAPPER)
        if match := _PROJECTION.fullmatch(key):
            layer, role = f"{match['attention']}.{PROJECTIONS[network][match['layer']]}", match["role"]
        elif match := _ROLE.fullmatch(key):
            layer, role = match["layer"], ROLES[match["role"]]
        else:
            return None
        layer = layer.removeprefix(TEXT_PREFIX) if network == TEXT else layer
        return Place(network, layer, role) if layer in self.names[network] else None


def _flat(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Layers by their names with `_` for dots.

    Raises:
        RuntimeError: if two would have the same name, which no network of ours has.
    """
    table: dict[str, str] = {}
    for name in names:
        flat = (prefix + name).replace(".", "_")
        if flat in table:
            raise RuntimeError(f"{name} and {table[flat]} are both {flat} in kohya's spelling.")
        table[flat] = name
    return table
