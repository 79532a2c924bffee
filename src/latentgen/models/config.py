"""Reading `config.json` of a network into its frozen dataclass, strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

C = TypeVar("C")

INERT_KEYS = frozenset({"_class_name", "_diffusers_version", "_name_or_path", "_use_default_values", "decay", "inv_gamma",
                        "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"})  # fmt: skip
"""Keys of any network's config that change nothing here: provenance, and an EMA's leftovers."""


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
    return cls(**{k: _freeze(v) for k, v in mapping.items() if k in known})


def write_config(config: Any, class_name: str) -> dict[str, Any]:
    """The dictionary that goes into `config.json`: every field, and the class name that readers look for."""
    return {"_class_name": class_name} | asdict(config)


def per_level(value: Any, levels: int, name: str) -> tuple[Any, ...]:
    """Repeat a single value for every level, or check that a tuple has one for each."""
    values = value if isinstance(value, tuple) else (value,) * levels
    if len(values) != levels:
        raise ValueError(f"{name}={values} has {len(values)} entries; the network has {levels} levels.")
    return values
