"""What turns a condition into a context, in single files: kinds, what shapes say of them, and names in both spellings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from latentgen.weights.compvis.table import Row, Shapes, Table, fused, layers
from latentgen.weights.errors import WeightsError

MOST_LAYERS = 256
"""Of a file that is believed."""


@dataclass(frozen=True)
class Conditioner:
    """A kind of conditioner.

    Attributes:
        prefix: what its tensors' names begin with, after that of all conditioners.
        mark: a tensor that only this kind has, after the prefix.
        network: its class.
        config: its settings from its shapes, in the words of `config.json`.
        table: the names of a network with these settings.
        surplus: the names, after the prefix, of tensors that no picture depends on.
        strangers: the same of tensors without the prefix.
    """

    prefix: str
    mark: str
    network: str
    config: Callable[[Shapes], dict[str, Any]]
    table: Callable[[Mapping[str, Any]], Table]
    surplus: Callable[[Mapping[str, Any]], re.Pattern[str]] = lambda config: re.compile("(?!)")
    strangers: re.Pattern[str] = re.compile("(?!)")


CLIP_LAYER = {
    name: name
    for name in (
        "layer_norm1",
        "layer_norm2",
        "mlp.fc1",
        "mlp.fc2",
        *(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")),
    )
}
OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
BERT_ATTENTION = {"0": "self_attn_layer_norm", **{f"1.to_{x}": f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")}}
BERT_FEED_FORWARD = {"0": "final_layer_norm", "1.net.0.0": "fc1", "1.net.2": "fc2"}


def _layers_in(shapes: Shapes, pattern: str) -> int:
    count = 1 + max((int(match[1]) for name in shapes if (match := re.match(pattern, name))), default=-1)
    if not 0 < count <= MOST_LAYERS:
        raise WeightsError(f"its text encoder has {count} layers; 1 to {MOST_LAYERS} are read.")
    return count


def _clip_config(shapes: Shapes) -> dict[str, Any]:
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _layers_in(shapes, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "hidden_act": "quick_gelu",
        "projection_dim": width,
        **SPECIAL_IDS,
    }


def _open_clip_config(shapes: Shapes) -> dict[str, Any]:
    vocabulary, width = shapes["token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": _open_clip_layers(_layers_in(shapes, r"transformer\.resblocks\.(\d+)\."), width, shapes),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": shapes["positional_embedding"][0],
        "hidden_act": "gelu",
        "projection_dim": 512,
        **SPECIAL_IDS,
    }


def _open_clip_layers(there: int, width: int, shapes: Shapes) -> int:
    """The layers that are read: Stable Diffusion 2 takes the states before the last one.

    That one is not in files that were converted back from folders, which as a rule lack the projection too. Of the published
    width the number tells; of others the projection.
    """
    if width == OPEN_CLIP_H[0] and there in (OPEN_CLIP_H[1] - 1, OPEN_CLIP_H[1]):
        return OPEN_CLIP_H[1] - 1
    return there - ("text_projection" in shapes)


OPEN_CLIP_H = (1024, 24)
"""Width and layers of the text encoder of OpenCLIP's ViT-H/14."""

SPECIAL_IDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
"""What published folders say; nothing is read from them here."""


def _clip_rows(config: Mapping[str, Any]) -> Iterator[Row]:
    embeddings = ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight")
    yield from (Row(name, (f"text_model.{name}",)) for name in embeddings)
    for n in range(config["num_hidden_layers"]):
        yield from layers(f"encoder.layers.{n}", f"text_model.encoder.layers.{n}", CLIP_LAYER)
    yield from layers("final_layer_norm", "text_model.final_layer_norm", {"": ""})


def _open_clip_rows(config: Mapping[str, Any]) -> Iterator[Row]:
    yield Row("token_embedding.weight", ("text_model.embeddings.token_embedding.weight",))
    yield Row("positional_embedding", ("text_model.embeddings.position_embedding.weight",))
    for n in range(config["num_hidden_layers"]):
        theirs, ours = f"transformer.resblocks.{n}", f"text_model.encoder.layers.{n}"
        yield from layers(theirs, ours, OPEN_CLIP_LAYER)
        for kind, dimensions in (("weight", 2), ("bias", 1)):
            parts = tuple(f"{ours}.self_attn.{letter}_proj.{kind}" for letter in "qkv")
            yield Row(f"{theirs}.attn.in_proj_{kind}", parts, fused(1, dimensions))
    yield from layers("ln_final", "text_model.final_layer_norm", {"": ""})


def _bert_config(shapes: Shapes) -> dict[str, Any]:
    vocabulary, width = shapes["token_emb.weight"]
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "max_position_embeddings": shapes["pos_emb.emb.weight"][0],
        "encoder_layers": _layers_in(shapes, r"attn_layers\.layers\.(\d+)\.") // 2,
        "encoder_ffn_dim": shapes["attn_layers.layers.1.1.net.0.0.weight"][0],
        "encoder_attention_heads": shapes["attn_layers.layers.0.1.to_q.weight"][0] // 64,
        "head_dim": 64,
    }


def _bert_rows(config: Mapping[str, Any]) -> Iterator[Row]:
    yield Row("token_emb.weight", ("model.embed_tokens.weight",))
    yield Row("pos_emb.emb.weight", ("model.embed_positions.weight",))
    for n in range(config["encoder_layers"]):
        yield from layers(f"attn_layers.layers.{2 * n}", f"model.layers.{n}", BERT_ATTENTION)
        yield from layers(f"attn_layers.layers.{2 * n + 1}", f"model.layers.{n}", BERT_FEED_FORWARD)
    yield from layers("norm", "model.layer_norm", {"": ""})
    yield from layers("to_logits", "to_logits", {"": ""})


def _class_config(shapes: Shapes) -> dict[str, Any]:
    classes, width = shapes["embedding.weight"]
    return {"num_classes": classes, "embed_dim": width}


def _map_config(shapes: Shapes) -> dict[str, Any]:
    theirs = shapes["channel_mapper.weight"]
    return {"n_stages": 2, "in_channels": theirs[1], "out_channels": theirs[0]}


def _one_table(name: str) -> Callable[[Mapping[str, Any]], Table]:
    return lambda config: Table([Row(name, (name,))])


def _clip_surplus(config: Mapping[str, Any]) -> re.Pattern[str]:
    return re.compile(r"embeddings\.position_ids|text_projection\.weight|logit_scale")


OTHER_HALF = re.compile(r"(?:transformer\.)?(?:logit_scale|text_projection(?:\.weight)?|embeddings\.position_ids)")
"""What only the other half of CLIP needs, where programs that save the whole of it leave it."""


def _open_clip_surplus(config: Mapping[str, Any]) -> re.Pattern[str]:
    """What only the other half of CLIP needs, and the layer after the states that are read."""
    return re.compile(
        rf"text_projection|logit_scale|attn_mask|transformer\.resblocks\.{config['num_hidden_layers']}\..+|"
        r"transformer\.text_model\.embeddings\.position_ids|transformer\.text_projection\.weight|text_projection\.weight"
    )


CONDITIONERS: dict[str, Conditioner] = {
    "clip": Conditioner(
        "transformer.text_model.", "embeddings.token_embedding.weight", "CLIPTextModel", _clip_config,
        lambda config: Table(_clip_rows(config)), _clip_surplus, OTHER_HALF),
    "older clip": Conditioner(
        "transformer.", "embeddings.token_embedding.weight", "CLIPTextModel", _clip_config,
        lambda config: Table(_clip_rows(config)), _clip_surplus, OTHER_HALF),
    "open clip": Conditioner(
        "model.", "positional_embedding", "CLIPTextModel", _open_clip_config,
        lambda config: Table(_open_clip_rows(config)), _open_clip_surplus),
    "bert": Conditioner(
        "transformer.", "token_emb.weight", "LDMBertModel", _bert_config, lambda config: Table(_bert_rows(config))),
    "classes": Conditioner("", "embedding.weight", "ClassEmbedder", _class_config, _one_table("embedding.weight")),
    "map": Conditioner("", "channel_mapper.weight", "SpatialRescaler", _map_config, _one_table("channel_mapper.weight")),
}  # fmt: skip
"""By kind. "older clip" is "clip" in a spelling without a level."""
