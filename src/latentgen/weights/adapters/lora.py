"""LoRA files and their kin (LoHa, LoKr, DoRA, ...), in every spelling, to changes of a UNet's and a text encoder's parameters.

Loading is all or nothing: every name must fit a layer, every group of factors must be whole, every shape must be the layer's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from latentgen.weights.adapters.deltas import Decomposed, Delta, Difference, Hadamard, Kronecker, LowRank, Scaled, Shape
from latentgen.weights.adapters.kinds import TEXT_WIDTHS
from latentgen.weights.adapters.names import OTHER_KINDS, OTHER_MODELS, TEXT, TEXT_PREFIX, UNET, WRAPPER, Layers, Place
from latentgen.weights.config_files import read_json
from latentgen.weights.errors import WeightsError
from latentgen.weights.safetensors_io import read_header, read_tensors
from latentgen.weights.weight_files import PICKLES

LISTED = 10
"""Names in an error."""

METADATA_KEY = "lora_adapter_metadata"
"""Where diffusers says ranks and alphas: in the header, as JSON."""

CONFIG = "adapter_config.json"
"""Where PEFT does: in a file beside its own."""

PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` for which the base model is as it was."""

NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""Of the file in a folder that PEFT or diffusers wrote."""

MOST_PATTERNS, LONGEST_PATTERN = 4096, 256
"""Exceptions that a header may list, more than any of these networks has layers, and letters in one."""

KINDS = "LoRA, LoHa, LoKr, DoRA, full differences, IA3"
WHOLE = (
    "LoRA has down and up, LoHa four of hada_w, LoKr lokr_w1 and lokr_w2, each whole or as _a and _b, a full difference diff, "
    "IA3 weight and on_input"
)

WEIGHT = ".weight"

Group = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class LoRA:
    """What a file changes.

    Attributes:
        path: where it was read.
        unet, text_encoder: changes by parameter (`mid_block.resnets.0.conv1.weight`); of the text encoder without
            `text_model.`.
    """

    path: Path
    unet: Mapping[str, Delta]
    text_encoder: Mapping[str, Delta]

    def misfits(self, unet: Mapping[str, Shape], text_encoder: Mapping[str, Shape]) -> list[str]:
        """What keeps it from changing these parameters: a line for each that is not there or of another shape."""
        lines = []
        for network, deltas, shapes in ((UNET, self.unet, unet), (TEXT, self.text_encoder, text_encoder)):
            for name, delta in deltas.items():
                reason = delta.misfit(shapes[name]) if name in shapes else "there is no such parameter"
                if reason:
                    lines.append(f"{network}.{name}: {reason}")
        return lines


def read_lora(
    path: str | os.PathLike[str],
    *,
    unet: Mapping[str, Shape],
    text_encoder: Mapping[str, Shape],
    original: Mapping[str, str] = MappingProxyType({}),
) -> LoRA:
    """Read a LoRA, LoHa, LoKr or DoRA file in PEFT's, diffusers' or kohya's spelling, or what else LyCORIS writes.

    Args:
        path: a safetensors file, or a folder in which PEFT or diffusers wrote one.
        unet, text_encoder: the shape of every parameter that can be changed, by its name (`conv_in.weight`); those of the text
            encoder without `text_model.`.
        original: what the original code calls layers of the UNet, and their names here: kohya's spelling may have either.

    Raises:
        WeightsError: if the file cannot be read, PEFT's settings are not beside it, or anything in it has no place in these
            networks; it lists up to ten names.
    """
    path = _in_folder(Path(path))
    refuse_pickle(path)
    tensors = read_tensors(path)
    if not tensors:
        raise WeightsError(f"{path} holds no tensors: it is no LoRA. Fetch the file again.")
    names = Layers(_layers(unet), _layers(text_encoder), original)
    groups = _grouped(path, tensors, names, unet)
    settings = _Settings.of(path, tensors, groups)
    deltas: dict[str, dict[str, Delta]] = {UNET: {}, TEXT: {}}
    problems: list[str] = []
    for (network, name), group in groups.items():
        try:
            deltas[network][name] = _delta(group, settings.alpha(network, name.removesuffix(WEIGHT), group))
        except ValueError as error:
            problems.append(f"{network}.{name}: {error}")
    if problems:
        raise WeightsError(_message(path, "its factors are not whole or no numbers", problems, "Fetch the file again."))
    lora = LoRA(path, deltas[UNET], deltas[TEXT])
    if lines := lora.misfits(unet, text_encoder):
        raise WeightsError(_message(path, "it does not fit this model", lines, _other_width(groups, unet)))
    return lora


def _layers(parameters: Iterable[str]) -> list[str]:
    return [name.removesuffix(WEIGHT) for name in parameters if name.endswith(WEIGHT)]


def _in_folder(path: Path) -> Path:
    """The adapter's file in a folder; any other path as it is."""
    if not path.is_dir():
        return path
    there = [path / name for name in NAMES if (path / name).exists()]
    if not there:
        raise WeightsError(f"{path} is a folder without {' or '.join(NAMES)}: give the name of a file.")
    return there[0]


def refuse_pickle(path: Path) -> None:
    """Raise WeightsError for a name that pickles have, saying what to do."""
    if path.suffix.lower() in PICKLES:
        raise WeightsError(
            f"{path} is a pickle by its name: opening one can run code, so it is not opened here. Convert it once with "
            f"`latentgen convert {path.name} {path.stem}.safetensors`, which reads nothing but tensors, and load that."
        )


def _grouped(
    path: Path, tensors: Mapping[str, Tensor], layers: Layers, unet: Mapping[str, Shape]
) -> dict[tuple[str, str], Group]:
    """The factors of each parameter, by role."""
    places: dict[str, Place | None] = {key: layers.place(key) for key in tensors}
    if unknown := [key for key, place in places.items() if place is None]:
        known = {
            (p.network, p.parameter): {p.role: tensors[key]} for key, p in places.items() if p and p.role == "down"
        }
        hint = next((why for starts, why in OTHER_MODELS.items() if any(k.startswith(starts) for k in unknown)), None)
        kind = next((why for ends, why in OTHER_KINDS.items() if any(k.endswith(ends) for k in unknown)), None)
        lines = [f"{key} {tuple(tensors[key].shape)}" for key in unknown]
        remedy = hint or (f"{kind}, and {KINDS} are read." if kind else _other_width(known, unet))
        raise WeightsError(_message(path, "these names fit no layer of this model", lines, remedy))
    groups: dict[tuple[str, str], Group] = {}
    twice: list[str] = []
    for key, place in places.items():
        assert place is not None
        group = groups.setdefault((place.network, place.parameter), {})
        if place.role in group:
            twice.append(key)
        group[place.role] = tensors[key]
    if twice:
        raise WeightsError(_message(path, "these are there twice, in two spellings", twice, "Fetch the file again."))
    return groups


def _delta(group: Group, alpha: float | None) -> Delta:
    """The change that factors make.

    Raises:
        ValueError: if they are not those of one kind, all of them, or not finite numbers.
    """
    for role, tensor in group.items():
        if role in ("alpha", "on_input"):  # a number each, and looked at there
            continue
        if not tensor.is_floating_point():
            raise ValueError(f"{role} is {tensor.dtype}, and must be floating-point")
        if tensor.numel() == 0:
            raise ValueError(f"{role} is empty, {tuple(tensor.shape)}")
        if not bool(torch.stack(tensor.float().aminmax()).isfinite().all()):  # NaN if any value is
            raise ValueError(f"{role} has values that are not finite")
    lengths = {"dora_scale", "magnitude"}
    factors = {role: tensor for role, tensor in group.items() if role not in lengths | {"alpha"}}
    delta = _of_kind(factors, alpha)
    if delta is None:
        raise ValueError(f"{', '.join(sorted(group))} are no whole change: {WHOLE}")
    given = [role for role in group if role in lengths]
    if not given:
        return delta
    if len(given) > 1:
        raise ValueError("dora_scale and lora_magnitude_vector are both there")
    magnitude = group[given[0]]
    by_input = given[0] == "dora_scale" and magnitude.ndim > 1 and magnitude.shape[0] == 1 != magnitude.numel()
    return Decomposed(delta, magnitude, by_input)


def _of_kind(factors: Group, alpha: float | None) -> Delta | None:
    names = frozenset(factors)
    get = factors.get
    if names == {"diff"}:
        return Difference(factors["diff"])
    if names == {"scales", "on_input"}:
        return Scaled(factors["scales"], by_input=_number("on_input", _single(factors["on_input"])) != 0)
    if names - {"mid"} == {"down", "up"}:
        return LowRank(factors["down"], factors["up"], alpha, get("mid"))
    hadamard = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
    if names - {"hada_t1", "hada_t2"} == hadamard and ("hada_t1" in names) == ("hada_t2" in names):
        parts = {name.removeprefix("hada_"): factor for name, factor in factors.items()}
        return Hadamard(**parts, alpha=alpha)
    first = _pair_or_whole(factors, "lokr_w1")
    second = _pair_or_whole(factors, "lokr_w2")
    if first and second:
        used = len(first) + len(second) + ("lokr_t2" in names)
        if used == len(names) and ("lokr_t2" not in names or len(second) == 2):
            return Kronecker(first, second, alpha, get("lokr_t2"))
    return None


def _pair_or_whole(factors: Group, name: str) -> tuple[Tensor, ...]:
    """A matrix that a file has whole, or as two factors; empty if it has neither, or both."""
    pair = tuple(factors[part] for part in (f"{name}_a", f"{name}_b") if part in factors)
    whole = (factors[name],) if name in factors else ()
    return whole if not pair else pair if len(pair) == 2 and not whole else ()


@dataclass(frozen=True)
class _Settings:
    """What PEFT's LoraConfig says of ranks and alphas, by network: in the header, or in a file beside it."""

    by_network: Mapping[str, Mapping[str, Any]]
    exceptions: Mapping[str, _Exceptions]

    @classmethod
    def of(cls, path: Path, keys: Iterable[str], groups: Mapping[tuple[str, str], Group]) -> _Settings:
        text = read_header(path).metadata.get(METADATA_KEY)
        if text is not None:
            content = _json(text, f"{path}: {METADATA_KEY} in its header")
        elif any(WRAPPER in key for key in keys) and any("alpha" not in group for group in groups.values()):
            # So PEFT names layers, and it has no alphas in the file: without them the strength would be a guess.
            content = _beside(path)
        else:
            return cls({}, {})
        bare = {k: v for k, v in content.items() if not k.startswith((f"{UNET}.", f"{TEXT}."))}
        tables: dict[str, dict[str, Any]] = {}
        for network in (UNET, TEXT):
            start = f"{network}."
            own = {k.removeprefix(start): v for k, v in content.items() if k.startswith(start)}
            tables[network] = own or bare  # what was saved of one network alone has no prefixes
        return cls(tables, {network: _Exceptions.of(table, path) for network, table in tables.items()})

    def alpha(self, network: str, layer: str, group: Group) -> float | None:
        """a of a layer, for which the change is a / r times the product: the layer's own tensor, or the header's.

        Raises:
            ValueError: if it is no finite number.
        """
        if "alpha" in group:
            return _number("alpha", _single(group["alpha"]))
        table = self.by_network.get(network, {})
        if "down" not in group or table.get("lora_alpha") is None:
            return None
        alpha = _number("lora_alpha", self.exceptions[network].find(layer, table["lora_alpha"]))
        return alpha * math.sqrt(group["down"].shape[0]) if table.get("use_rslora") else alpha


def _single(tensor: Tensor) -> Any:
    return tensor.item() if tensor.numel() == 1 else None


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise ValueError(f"{name} is {str(value)[:40]}, and must be one finite number")
    return float(value)


@dataclass(frozen=True)
class _Exceptions:
    """PEFT's `alpha_pattern`: layers that have an alpha of their own, by name or the end of one. The first that fits counts.

    PEFT takes a pattern as a regular expression. One from a file could take forever, and those in use are plain names.

    Attributes:
        whole, ends: place and value by the name that a layer has, or ends with after a dot.
    """

    whole: Mapping[str, tuple[int, Any]]
    ends: Mapping[str, tuple[int, Any]]

    @classmethod
    def of(cls, table: Mapping[str, Any], path: Path) -> _Exceptions:
        patterns = table.get("alpha_pattern") or {}
        if not isinstance(patterns, dict) or len(patterns) > MOST_PATTERNS:
            raise WeightsError(f"{path}: its alpha_pattern is no table of layers. Fetch the file again.")
        whole: dict[str, tuple[int, Any]] = {}
        ends: dict[str, tuple[int, Any]] = {}
        for place, (pattern, value) in enumerate(patterns.items()):
            plain = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
            if len(pattern) > LONGEST_PATTERN or not all(c.isalnum() or c in "._-" for c in plain):
                raise WeightsError(
                    f"{path}: its alpha_pattern has {pattern[:60]!r}, which is no layer's name: only names are read."
                )
            (whole if pattern.startswith("^") else ends).setdefault(plain, (place, value))
        return cls(whole, ends)

    def find(self, layer: str, otherwise: Any) -> Any:
        """The value for a layer, by its name with and without `text_model.`."""
        names = (layer, TEXT_PREFIX + layer)
        parts = names[1].split(".")
        ends = [".".join(parts[k:]) for k in range(len(parts))]
        found = [self.whole[name] for name in names if name in self.whole]
        found += [self.ends[end] for end in ends if end in self.ends]
        return min(found, key=lambda one: one[0])[1] if found else otherwise


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{where} is no JSON. Fetch the file again.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{where} is no table. Fetch the file again.")
    return content


def _beside(path: Path) -> dict[str, Any]:
    """PEFT's own settings file.

    Raises:
        WeightsError: if it is missing, or of a kind whose strength PEFT reckons otherwise than the files say.
    """
    beside = path.parent / CONFIG
    if not beside.exists():
        raise WeightsError(
            f"{path} cannot be loaded: PEFT keeps the adapter's alpha in {CONFIG}, which is not beside it. Put it there: "
            "without it the strength is not known."
        )
    content = read_json(beside)
    if content.get("peft_type") != "LORA":
        raise WeightsError(
            f"{beside} is of the kind {str(content.get('peft_type'))[:40]}: of PEFT's own files, LORA is read."
        )
    if content.get("lora_alpha") is None or content.get("init_lora_weights") not in PLAIN_STARTS:
        said = {name: str(content.get(name))[:40] for name in ("lora_alpha", "init_lora_weights")}
        raise WeightsError(
            f"{beside} says {said}: without an alpha the strength is not known, and some starts (PiSSA, OLoRA and others) belong "
            "to a base model that was changed. Such adapters are not read."
        )
    return content


def _other_width(groups: Mapping[tuple[str, str], Group], unet: Mapping[str, Shape]) -> str:
    """What to do about a file that does not fit: for another base model it is told by the width of the texts."""
    for (network, name), group in groups.items():
        if network == UNET and name.endswith("attn2.to_k.weight") and name in unet and "down" in group:
            down, width = group["down"], unet[name][1]
            if down.ndim >= 2 and down.shape[1] != width:
                theirs, ours = (f"{w} ({TEXT_WIDTHS[w]})" if w in TEXT_WIDTHS else w for w in (down.shape[1], width))
                return (
                    f"It was made for a base model that attends to texts of width {theirs}, and this one attends to width "
                    f"{ours}: load it on the model it was made for."
                )
    return "It was made for another model, or is damaged: load it on the model it was made for, or fetch it again."


def _message(path: Path, what: str, lines: list[str], remedy: str) -> str:
    more = [f"  ... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    listed = [f"  {line}" for line in lines[:LISTED]] + more
    return "\n".join([f"{path} cannot be loaded: {what} ({len(lines)} of them). {remedy}", *listed])
