"""CLIP's text encoder, from and to the folder layout; the network itself is that of transformers."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latentgen.weights.config_files import read_json, write_json
from latentgen.weights.errors import WeightsError
from latentgen.weights.sharding import load_tensors, save_tensors, shard_limit
from latentgen.weights.stored import StoredTensor
from latentgen.weights.strict import fill
from latentgen.weights.weight_files import check_variant

if TYPE_CHECKING:
    from transformers import CLIPTextConfig, CLIPTextModel

STEM = "model"  # the name that transformers gives weights
PREFIX = "text_model."  # all published files have it; files that transformers 5.6 and later wrote do not
CLASS_NAME = "CLIPTextModel"

ACTIVATIONS = ("gelu", "quick_gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
"""Those that are believed: transformers knows others, some of which import a library by name when they are made."""

SIZE_LIMITS = {
    "vocab_size": 2**20,
    "hidden_size": 2**14,
    "intermediate_size": 2**16,
    "num_hidden_layers": 256,
    "num_attention_heads": 256,
    "max_position_embeddings": 2**16,
}
"""Settings that decide how much memory is taken, and the most that is believed of a file."""

OTHER_FIELDS: dict[str, tuple[type, ...]] = {
    "hidden_act": (str,),
    "layer_norm_eps": (float, int),
    "attention_dropout": (float, int),
    "projection_dim": (int,),
    "initializer_range": (float, int),
    "initializer_factor": (float, int),
    "pad_token_id": (int,),
    "bos_token_id": (int,),
    "eos_token_id": (int,),
}
"""The other settings of a CLIP text encoder that are read; whatever else a config.json says has no effect."""

LARGEST = sys.float_info.max


def load_clip_text_encoder(
    folder: str | os.PathLike[str], *, variant: str | None = None, dtype: torch.dtype | None, device: torch.device
) -> CLIPTextModel:
    """Load the text encoder of a Stable Diffusion model.

    Args:
        folder: for example ".../text_encoder", with `config.json` and `model.safetensors`.
        variant: for example "fp16".
        dtype: format to run in; the files' own format does not matter. None keeps it.
        device: where it goes.

    Returns:
        The encoder, frozen and in eval mode.

    Raises:
        WeightsError: if a file is missing or damaged, describes another class, or does not fit the others.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    _check_class(config, folder / "config.json")
    encoder = _on_meta(config, str(folder / "config.json"))
    tensors = _with_names_of(encoder, load_tensors(folder, STEM, variant), str(folder))
    fill(encoder, tensors, dtype=dtype, device=device, source=str(folder))
    return encoder


def make_clip_text_encoder(
    config: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    source: str,
    settings: str,
) -> CLIPTextModel:
    """A text encoder of the content of a `config.json` and of tensors that are still in a file, by the names in folders.

    Raises:
        WeightsError: naming `source`, if these do not fit each other; `settings` says what was not followed.
    """
    encoder = _on_meta(config, source)
    fill(
        encoder, _with_names_of(encoder, tensors, source), dtype=dtype, device=device, source=source, settings=settings
    )
    return encoder


def save_text_encoder(
    encoder: CLIPTextModel,
    folder: str | os.PathLike[str],
    *,
    variant: str | None = None,
    max_shard_size: int | str | None = "10GB",
) -> None:
    """Write `config.json` and `model.safetensors` as published model folders have them.

    Args:
        encoder: a `CLIPTextModel` of transformers.
        folder: made if it is missing.
        variant: goes into the file's name only, nothing is cast.
        max_shard_size: bytes, or for example "10GB"; None is no limit.

    Raises:
        TypeError: for another class, such as the one with a projection, which needs other files.
        ValueError: for a size or a variant that is not one; nothing is written then.
    """
    if type(encoder).__name__ != CLASS_NAME:
        raise TypeError(f"a {type(encoder).__name__} was given; only a {CLASS_NAME} can be written in this form.")
    check_variant(variant)
    max_shard_size = shard_limit(max_shard_size)
    folder = Path(folder)
    fields = {name: getattr(encoder.config, name) for name in sorted({*SIZE_LIMITS, *OTHER_FIELDS})}
    named = {"architectures": [CLASS_NAME], "model_type": "clip_text_model"}
    precision = {"torch_dtype": str(encoder.dtype).removeprefix("torch.")}
    write_json(folder / "config.json", named | fields | precision)
    tensors = {PREFIX + name.removeprefix(PREFIX): tensor for name, tensor in encoder.state_dict().items()}
    save_tensors(folder, STEM, tensors, variant=variant, max_shard_size=max_shard_size)


def without_last_layers(encoder: CLIPTextModel, count: int) -> CLIPTextModel:
    """The encoder as if its last `count` layers were not there: its final normalisation follows those that are left.

    It shares every weight, and the encoder stays as it is. (transformers' own way to inner states leaves hooks behind on it,
    for good: it can then not be pickled, and threads meet in them.)
    """
    layers = _inner(encoder).encoder.layers
    shared = {id(part): part for part in (encoder.config, *layers, *encoder.parameters(), *encoder.buffers())}
    shell = copy.deepcopy(encoder, shared)
    _inner(shell).encoder.layers = layers[: len(layers) - count]
    return shell


def _inner(encoder: CLIPTextModel) -> Any:
    """The module that holds the layers: transformers before 5.6 keeps it one level down."""
    return getattr(encoder, "text_model", encoder)


def _with_names_of(encoder: CLIPTextModel, tensors: Mapping[str, StoredTensor], source: str) -> dict[str, StoredTensor]:
    """Spell the file's names as the installed transformers does, and leave out the position numbers of old files."""
    prefix = PREFIX if hasattr(encoder, "text_model") else ""
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix(PREFIX)
        if bare == "embeddings.position_ids":
            continue
        if prefix + bare in renamed:
            raise WeightsError(f"{source} has {bare} with and without the prefix {PREFIX}: fetch it again.")
        renamed[prefix + bare] = tensor
    return renamed


def _on_meta(content: Mapping[str, Any], source: str) -> CLIPTextModel:
    """The network of these settings, without numbers but those that no file has."""
    from transformers import CLIPTextModel

    config = _known_settings(content, source)
    with torch.device("meta"):
        encoder = CLIPTextModel(config)
    positions = torch.arange(config.max_position_embeddings, device="cpu")
    _inner(encoder).embeddings.position_ids = positions.unsqueeze(0)
    return encoder


def _check_class(content: Mapping[str, Any], path: Path) -> None:
    architectures = content.get("architectures") or [CLASS_NAME]
    if architectures != [CLASS_NAME] or content.get("model_type", "clip_text_model") != "clip_text_model":
        raise WeightsError(
            f"{path} describes {architectures} of type {content.get('model_type')!r}; only {CLASS_NAME} "
            '("clip_text_model"), the text encoder of Stable Diffusion 1 and 2, can be loaded here.'
        )


def _known_settings(content: Mapping[str, Any], path: str) -> CLIPTextConfig:
    """The settings that are known, each checked: the file is not trusted."""
    from transformers import CLIPTextConfig

    known: dict[str, Any] = {}
    for name, most in SIZE_LIMITS.items():
        if name in content:
            value: Any = content[name]
            if type(value) is not int or not 1 <= value <= most:
                raise WeightsError(f"{path}: {name}={value!r} is not a whole number from 1 to {most}. Fetch it again.")
            known[name] = value
    for name, kinds in OTHER_FIELDS.items():
        if content.get(name) is not None:
            value = content[name]
            finite = not isinstance(value, int | float) or abs(value) <= LARGEST
            if not isinstance(value, kinds) or isinstance(value, bool) or not finite:
                told = f"a {kinds[0].__name__}" if finite else "a finite number"
                raise WeightsError(f"{path}: {name}={repr(value)[:40]} is not {told}. Fetch it again.")
            known[name] = float(content[name]) if float in kinds else value
    if known.get("hidden_act", "gelu") not in ACTIVATIONS:
        raise WeightsError(
            f"{path}: hidden_act={known['hidden_act']!r} is unknown; Stable Diffusion has gelu or quick_gelu."
        )
    defaults = CLIPTextConfig()
    width = known.get("hidden_size", defaults.hidden_size)
    heads = known.get("num_attention_heads", defaults.num_attention_heads)
    if width % heads:
        raise WeightsError(
            f"{path}: hidden_size={width} is not a multiple of num_attention_heads={heads}. Fetch it again."
        )
    return CLIPTextConfig(**known, attn_implementation="sdpa")
