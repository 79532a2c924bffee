"""Reading `config.json` of a network into its frozen dataclass, strictly."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

C = TypeVar("C")

INERT_KEYS = frozenset({"_class_name", "_diffusers_version", "_name_or_path", "_use_default_values", "decay", "inv_gamma",
                        "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"})  # fmt: skip
"""Keys of any network's config that change nothing here: provenance, and an EMA's leftovers."""


MOST_OF_ANY = 2**16
MOST = {"layers_per_block": 64, "encoder_layers": 64, "n_stages": 8, "transformer_layers_per_block": 64}
MOST_LEVELS = 16
LONGEST = {"class_names": MOST_OF_ANY}
MOST_LAYERS = 1024
"""The most that is believed of a file: a count, a count of layers, a list's length (others by name), and the layers of a whole
network."""

ABOVE_ZERO = {"norm_eps", "scaling_factor"}
"""Numbers that something is divided by."""

_WORDS = {
    int: "a whole number from 1 to MOST",
    float: "a finite number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
}


def _freeze(value: Any) -> Any:
    return tuple(_freeze(v) for v in value) if isinstance(value, list | tuple) else value


def read_config(cls: type[C], mapping: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> C:
    """Build the config dataclass `cls` from a `config.json`.

    Args:
        cls: the dataclass; what `mapping` leaves out takes its default, as the folder format has it.
        mapping: the file's content.
        neutral: keys of the format that this network knows but does not implement, each with the values at which
            they change nothing.

    Raises:
        ValueError: naming keys that are unknown, or whose value asks for what is not implemented.
    """
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(k for k in mapping if k not in known and k not in neutral and k not in INERT_KEYS)
    if unknown:
        raise ValueError(
            f"{cls.__name__} does not know {', '.join(unknown)}. Known keys: {', '.join(sorted(known))}. "
            "Remove the keys if they change nothing, or use a release of latentgen that knows them."
        )
    for key, allowed in neutral.items():
        if key in mapping and _freeze(mapping[key]) not in allowed:
            raise ValueError(
                f"{cls.__name__}: {key}={mapping[key]!r} is not supported; only {' or '.join(map(repr, allowed))} is."
            )
    hints = get_type_hints(cls)
    levels = mapping.get("block_out_channels")
    count = len(levels) if isinstance(levels, list | tuple) else None
    return cls(**{k: _as_meant(_freeze(v), hints[k], count) for k, v in mapping.items() if k in known})


def _as_meant(value: Any, hint: Any, levels: int | None) -> Any:
    """A value in the form that its field has, where files in use have another form of the same meaning.

    null for true or false is false, as every reader of the format takes it; the same count for each level is that count.
    """
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and bool in kinds and type(None) not in kinds:
        return False
    if hint is int and isinstance(value, tuple) and len(value) == levels and len(set(value)) == 1:
        return value[0]
    return value


def check_fields(config: Any) -> None:
    """Hold every field of a config to its annotation: a file can say anything, and is not trusted.

    Raises:
        ValueError: naming the field, its value and the rule.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        most = MOST.get(name, MOST_OF_ANY)
        positive = name not in ABOVE_ZERO or (isinstance(value, int | float) and value > 0)
        if not positive or not any(_is_a(value, kind, most, LONGEST.get(name, MOST_LEVELS)) for kind in kinds):
            words = " or ".join(_WORDS.get(kind) or _words_of_a_list(kind) for kind in kinds)
            words = words.replace("MOST", str(most)) + (" above 0" if name in ABOVE_ZERO else "")
            raise ValueError(f"{name}={value!r} does not fit; it must be {words}.")


def _words_of_a_list(kind: Any) -> str:
    each, *others = get_args(kind)
    count = f" {1 + len(others)}, each" if others != [...] else ""
    return f"a list of{count} {_WORDS[each]}"


def _is_a(value: Any, kind: Any, most: int, longest: int = MOST_LEVELS) -> bool:
    if get_origin(kind) is tuple:
        each, *others = get_args(kind)
        lengths = range(1, longest + 1) if others == [...] else [1 + len(others)]
        return isinstance(value, tuple) and len(value) in lengths and all(_is_a(v, each, most) for v in value)
    if kind is int:
        return type(value) is int and 1 <= value <= most
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max  # a whole number may be larger
    return isinstance(value, kind)


def check_depth(levels: int, layers: int, transformer_layers: int | None = None) -> None:
    """Refuse a network of more layers than any has: each number may be small, and building their product take minutes.

    Args:
        levels: resolutions.
        layers: `layers_per_block`, on the way down; there is one more on the way up.
        transformer_layers: `transformer_layers_per_block`, after each of these; None for a network without.

    Raises:
        ValueError: naming the numbers.
    """
    count = levels * (2 * layers + 1) * (1 + (transformer_layers or 0))
    if count > MOST_LAYERS:
        attending = "" if transformer_layers is None else f", transformer_layers_per_block={transformer_layers}"
        raise ValueError(
            f"layers_per_block={layers}{attending} and {levels} levels make a network of {count} layers; at most "
            f"{MOST_LAYERS} are believed. Correct the file, or use a smaller network."
        )


def write_config(config: Any, class_name: str) -> dict[str, Any]:
    """The dictionary that goes into `config.json`: every field, and the class name that readers look for."""
    return {"_class_name": class_name} | asdict(config)


def per_level(value: Any, levels: int, name: str) -> tuple[Any, ...]:
    """Repeat a single value for every level, or check that a tuple has one for each."""
    values = value if isinstance(value, tuple) else (value,) * levels
    if len(values) != levels:
        raise ValueError(f"{name}={values} has {len(values)} entries; the network has {levels} levels.")
    return values
