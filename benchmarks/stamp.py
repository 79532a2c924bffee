"""Which model a folder holds: a file beside it says so, and a folder that holds another is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.settings import Settings

STAMP = "benchmark.json"
REMEDY = "Give --folder another place, or delete this one: it is then written anew."


def write_stamp(folder: Path, settings: Settings, variants: Sequence[str | None]) -> None:
    """Say what was written; the last thing to be written, so that half a model has no stamp."""
    content = {"model": settings.model, "variants": list(variants)}
    (folder / STAMP).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_variants(folder: Path, settings: Settings) -> list[str | None]:
    """The variants of the model of `settings` that are in `folder`; none in a folder that is empty or not there.

    Raises:
        ValueError: if the folder holds anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return []
    path = folder / STAMP
    if not path.is_file():
        raise ValueError(
            f"{folder} holds something, and no {STAMP} that says it is a whole model of this benchmark. {REMEDY}"
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    there, wanted = content["model"], _as_json(settings.model)
    if there != wanted:
        keys = [key for key in sorted({*there, *wanted}) if there.get(key) != wanted.get(key)]
        differences = ", ".join(f"{key} is {there.get(key)} there and {wanted.get(key)} here" for key in keys)
        raise ValueError(f"{folder} holds a model of other settings: {differences}. {REMEDY}")
    return list(content["variants"])


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
