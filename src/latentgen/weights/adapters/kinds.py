"""What an adapter's file says of itself by names and shapes alone: its kind, its rank, and the model it was made for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from latentgen.weights.adapters.deltas import Shape

TEXT_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
"""Models by the width of the texts that their UNets attend to."""

EMBEDDING_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "LDM's text to image (1.45B)"}
"""Models by the width of their text encoder's tokens."""

KINDS = {
    r"dora_scale|lora_magnitude_vector": "DoRA",
    r"\.hada_w[12]_[ab]$": "LoHa",
    r"\.lokr_w[12](?:_[ab])?$": "LoKr",
    r"^lora_.+\.on_input$": "IA3",
    r"\.lora_(?:A|B|down|up)(?:\.\w+)?\.weight$|[._]lora\.(?:down|up)\.weight$|\.lora_linear_layer\.": "LoRA",
    r"^lora_.+\.(?:diff|diff_b|w_norm|b_norm)$": "full differences",
}
"""Names that betray a kind of adapter, the most telling first."""

_DOWN = re.compile(r".*(?:\.lora_A(?:\.\w+)?|\.lora_down|[._]lora\.down|\.lora_linear_layer\.down)\.weight")
_KEYS_OF_TEXT = re.compile(r".*attn2[._](?:processor\.)?to_k[._].*")
_OF_TEXT_ENCODER = re.compile(r"(?:base_model\.model\.)?(?:text_encoder\.|lora_te\d?_|text_model\.)")
_EMBEDDING = re.compile(r"emb_params|clip_[lg]|<.+>")


def adapter_title(shapes: Mapping[str, Shape]) -> str | None:
    """What an adapter's file holds, in words; None for another file."""
    kind = next((kind for mark, kind in KINDS.items() if any(re.search(mark, name) for name in shapes)), None)
    if kind is None:
        return None
    downs = {name: shape for name, shape in shapes.items() if _DOWN.fullmatch(name) and len(shape) >= 2}
    widths = {shape[1] for name, shape in downs.items() if _KEYS_OF_TEXT.fullmatch(name)}
    base = next((f" for {TEXT_WIDTHS[width]}" for width in widths if width in TEXT_WIDTHS), "")
    halves = {"text encoder" if _OF_TEXT_ENCODER.match(name) else "UNet" for name in shapes}
    ranks = Counter(shape[0] for shape in downs.values())
    rank = f", rank {ranks.most_common(1)[0][0]}" if ranks else ""
    return f"an adapter ({kind}){base}: {' and '.join(sorted(halves))}{rank}"


def embedding_title(shapes: Mapping[str, Shape]) -> str | None:
    """What an embedding's file holds, in words; None for another file."""
    if not shapes or not all(_EMBEDDING.fullmatch(name) and 1 <= len(shape) <= 2 for name, shape in shapes.items()):
        return None
    if len(shapes) > 1:
        return "an embedding for a model with several text encoders, as Stable Diffusion XL"
    (shape,) = shapes.values()
    base = f" for {EMBEDDING_WIDTHS[shape[-1]]}" if shape[-1] in EMBEDDING_WIDTHS else ""
    return f"an embedding (textual inversion){base}, vectors: {shape[0] if len(shape) == 2 else 1}"
