"""Names in LoRA files: each says which network, which layer and which factor. Tables, no rules of thumb.

| spelling | an example |
| --- | --- |
| PEFT | `unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight` |
| diffusers before PEFT | `unet. ... .attn1.to_q.lora.down.weight`, `text_encoder. ... .q_proj.lora_linear_layer.down.weight` |
| the first one of diffusers | `unet. ... .attn1.processor.to_q_lora.down.weight`, with and without `unet.` |
| kohya, A1111, LyCORIS | `lora_unet_down_blocks_0_ ... _attn1_to_q.lora_down.weight`, or in the original code's names |
| | `lora_unet_input_blocks_1_1_ ... _attn1_to_q.lora_down.weight` |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

UNET, TEXT = "unet", "text_encoder"

ROLES = {
    "lora_A.weight": "down", "lora_B.weight": "up",
    "lora.down.weight": "down", "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down", "lora_linear_layer.up.weight": "up",
    "lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid",
    "alpha": "alpha", "dora_scale": "dora_scale",
    "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
    "hada_w1_a": "hada_w1_a", "hada_w1_b": "hada_w1_b", "hada_w2_a": "hada_w2_a", "hada_w2_b": "hada_w2_b",
    "hada_t1": "hada_t1", "hada_t2": "hada_t2",
    "lokr_w1": "lokr_w1", "lokr_w1_a": "lokr_w1_a", "lokr_w1_b": "lokr_w1_b",
    "lokr_w2": "lokr_w2", "lokr_w2_a": "lokr_w2_a", "lokr_w2_b": "lokr_w2_b", "lokr_t2": "lokr_t2",
}  # fmt: skip
"""What stands behind a layer's name, and the factor that it is: of a change of the layer's weight."""

FLAT_ROLES = {
    "diff": "diff",
    "w_norm": "diff",
    "weight": "scales",
    "on_input": "on_input",
}
"""The same in kohya's spelling alone: in the others, a `weight` behind a layer's name is that of a whole model."""

BIAS_ROLES = {"diff_b": "diff", "b_norm": "diff"}
"""The same for changes of the layer's bias."""

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
_ADAPTER = re.compile(r"(.+\.lora_(?:A|B|magnitude_vector))\.\w+\.weight")
"""PEFT's spelling with the adapter's own name, as `default`."""

_ROLE = re.compile(rf"(?P<layer>.+?)\.(?P<role>{'|'.join(map(re.escape, sorted(ROLES, key=len, reverse=True)))})")

OTHER_MODELS = {
    ("lora_te2_", "lora_te3_", "text_encoder_2.", "text_encoder_3."): "It is for a model with several text encoders, as "
    "Stable Diffusion XL.",
    ("model.diffusion_model.", "first_stage_model."): "It is a whole model: load it with from_single_file.",
    ("emb_params", "clip_l", "string_to_param"): "It is an embedding: load it with load_textual_inversion.",
    ("bundle_emb.",): "It has embeddings beside the LoRA (bundle_emb), which are not read.",
    ("lora_unet_label_emb_0_", "lora_unet_add_embedding_"): "It is for Stable Diffusion XL.",
    ("lora_unet_double_blocks_", "lora_unet_single_blocks_", "lora_unet_joint_blocks_", "lora_transformer_", "transformer.",
     "diffusion_model."): "It is for a model with a transformer in the UNet's place, as Stable Diffusion 3 or Flux.",
}  # fmt: skip
"""Beginnings of names that betray another base model."""

OTHER_KINDS = {
    (".oft_blocks", ".oft_diag"): "It is of the kind OFT",
    (".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight"): "It is of the kind GLoRA",
}
"""Ends of names that betray another kind of adapter."""


class Place(NamedTuple):
    """What a name in a file means."""

    network: str
    parameter: str
    role: str


class Layers:
    """The layers of a UNet and of a text encoder, by every spelling of their names."""

    def __init__(
        self, unet: Iterable[str], text_encoder: Iterable[str], original: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Take note of the names.

        Args:
            unet, text_encoder: of layers with a weight, those of the text encoder without `text_model.`.
            original: what the original code calls layers of the UNet, and their names here.
        """
        self.names = {UNET: frozenset(unet), TEXT: frozenset(text_encoder)}
        known = {theirs: ours for theirs, ours in original.items() if ours in self.names[UNET]}
        self.flat = {
            UNET: _flat({name: name for name in self.names[UNET]} | known),
            TEXT: _flat({start + name: name for name in self.names[TEXT] for start in ("", TEXT_PREFIX)}),
        }

    def place(self, key: str) -> Place | None:
        """What a name in a file means; None if it fits no layer."""
        key = key.removeprefix(WRAPPER)
        if match := _ADAPTER.fullmatch(key):
            key = f"{match[1]}.weight"
        for prefix, network in FLAT.items():
            if key.startswith(prefix):
                flat, _, role = key.removeprefix(prefix).partition(".")
                layer = self.flat[network].get(flat)
                return _place(network, layer, role) if layer else None
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
        return Place(network, f"{layer}.weight", role) if layer in self.names[network] else None


def _place(network: str, layer: str, role: str) -> Place | None:
    """What a role in kohya's spelling means."""
    if role in BIAS_ROLES:
        return Place(network, f"{layer}.bias", BIAS_ROLES[role])
    known = ROLES.get(role) or FLAT_ROLES.get(role)
    return Place(network, f"{layer}.weight", known) if known else None


def _flat(names: Mapping[str, str]) -> dict[str, str]:
    """Layers by any of their names, with `_` for dots.

    Raises:
        RuntimeError: if two would have the same name, which no network of ours has.
    """
    table: dict[str, str] = {}
    for name, layer in names.items():
        flat = name.replace(".", "_")
        if table.setdefault(flat, layer) != layer:
            raise RuntimeError(f"{layer} and {table[flat]} are both {flat} in kohya's spelling.")
    return table
