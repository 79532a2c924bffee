"""What a run was made with: kept in every checkpoint, and held against what the run is resumed with."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from latentgen import __version__
from latentgen.schedulers.config import TRAINED
from latentgen.training.checkpoint import read_facts

Record = dict[str, Any]

FIXED = (
    "task",
    "[model] ",
    "[unet] ",
    "[text] ",
    "[class_embedder] ",
    "[loss] ",
    "tokenizer",
    "first stage ",
    "[run] optimizer",
)
FIXED_NAMES = {f"[scheduler] {name}" for name in TRAINED}
"""What the weights were trained for, by the starts of names and by names: with another one they mean nothing."""

FOLLOWING = {"[model] sample_size", "[model] scaling_factor", "[unet] sample_size", "first stage decoder"}
"""Names among these that training does not look at."""

FREE = {"[data] folder", "autoencoder", "[run] init_from", "[run] steps", "[run] decay_steps",
        "[run] log_every", "[run] sample_every", "[run] checkpoint_every", "[run] keep_checkpoints"}  # fmt: skip
"""May change without a word: how long and how watched a run is, and paths (what lies there has a fingerprint)."""


def settings_of(config: Any) -> dict[str, Any]:
    """A config's values by the names that errors give them: "[run] steps", or "autoencoder" outside of any section.

    Where the run lies is not among them: it may be moved.
    """
    found: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        found |= section(field.name, value) if isinstance(value, dict) else {field.name: value}
    found.pop("[run] output", None)
    return found


def section(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of one section, with its name before theirs."""
    return {f"[{name}] {key}": value for key, value in values.items()}


def new_record(settings: Mapping[str, Any]) -> Record:
    """The record of a run that starts now, as JSON has it."""
    plain = json.loads(json.dumps(dict(settings), default=str))
    return {"latentgen": __version__, "settings": plain, "changes": []}


def resumed_record(checkpoint: Path, record: Record, *, warn: bool = True) -> Record:
    """Hold `record` against the one in `checkpoint`, and return it with the changes so far.

    Nothing is compared for a checkpoint without a record, nor for settings that only one of the two has.

    Raises:
        ValueError: if the networks, the scheduler's training facts, the text, the first stage, the loss or the optimiser
            are not what they were, naming each.

    Warns of other changes, in one warning, if `warn` says so.
    """
    facts = read_facts(checkpoint)
    before = facts.get("made_by")
    if before is None:
        return record
    was, now = before["settings"], record["settings"]
    changed = {name: (was[name], now[name]) for name in was.keys() & now.keys() if was[name] != now[name]}
    if wrong := {name: pair for name, pair in changed.items() if _is_fixed(name)}:
        raise ValueError(
            f"{checkpoint} was trained with other settings: {_list(wrong)}. Set them back to resume, or choose another output."
        )
    if warn and (told := {name: pair for name, pair in changed.items() if name not in FREE}):
        warnings.warn(f"resumed with changed settings: {_list(told)}.", stacklevel=2)
    changes = [{"step": facts["step"], "from": dict(sorted((n, pair[0]) for n, pair in changed.items()))}]
    return {**record, "changes": before["changes"] + (changes if changed else [])}


def _is_fixed(name: str) -> bool:
    return name in FIXED_NAMES or (name.startswith(FIXED) and name not in FOLLOWING)


def _list(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{name} was {was!r}, is {now!r}" for name, (was, now) in sorted(changed.items()))
