"""A folder of pictures with captions, as the Hugging Face Hub's image folders have them."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

METADATA = "metadata.jsonl"
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
OTHER_PICTURES = {".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".tif", ".tiff"}
"""Read only where a line of the metadata names them; without metadata they are counted and left out."""


@dataclass(frozen=True)
class Example:
    """A picture's file, its caption ("" where the folder has none) and its class (None where it has none)."""

    path: Path
    text: str
    label: str | None = None


def read_folder(folder: Path, *, captions: bool = False) -> list[Example]:
    """List the pictures of a folder.

    With a `metadata.jsonl` its lines (`file_name`, `text`, `label`) decide; without one every picture below the folder counts,
    with an empty caption, except for the samples that a run has written there.

    Args:
        folder: holds the pictures.
        captions: warn, once, where captions are missing.

    Raises:
        ValueError: naming the line or file: a caption whose picture is not there, a path that leaves the folder, bad JSON.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder of pictures.")
    if os.path.lexists(folder / METADATA):
        if not os.path.isfile(folder / METADATA):
            raise ValueError(f"{folder / METADATA} is no file: remove it, or bring the captions.")
        with (folder / METADATA).open("rb") as file:
            lines = [
                (f"{folder / METADATA}, line {number}", line) for number, line in enumerate(file, 1) if line.strip()
            ]
        entries = [(where, _entry(where, line)) for where, line in lines]
        examples = [_example(folder, where, entry) for where, entry in entries]
    else:
        entries = []
        examples = [Example(path, "") for path in _pictures_below(folder)]
    if not examples:
        raise ValueError(f"{folder} holds no pictures.")
    if captions:
        _warn_of_missing_captions(folder, examples, [(w, e) for w, e in entries if "text" not in e])
    return examples


def _entry(where: str, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line.decode("utf-8-sig"))
        name, text, label = entry["file_name"], entry.get("text", ""), entry.get("label", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f'{where}: expected {{"file_name": ..., "text": ...}}.') from None
    if not isinstance(name, str) or not isinstance(text, str):
        raise ValueError(f"{where}: file_name and text must be strings.")
    if type(label) not in (str, int) or ("label" in entry and label == ""):
        raise ValueError(f"{where}: label={label!r} must be a class: a text that is not empty, or a whole number.")
    try:
        (name + text + str(label)).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"{where}: {half} is half of a character; write the text in UTF-8, or both halves.") from None
    found: dict[str, Any] = entry
    return found


def _example(folder: Path, where: str, entry: dict[str, Any]) -> Example:
    name = entry["file_name"]
    there, elsewhere = Path(name), PureWindowsPath(name)  # a folder means the same on every system
    if there.is_absolute() or elsewhere.anchor or ".." in (*there.parts, *elsewhere.parts) or "\0" in name:
        raise ValueError(f"{where}: {name!r} leaves the folder; file names are relative to it.")
    if not os.path.isfile(folder / name):
        raise ValueError(f"{where}: {name!r} is not there; remove the line or bring the picture.")
    if len(there.parts) > 1 and not (folder / there.parent).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{where}: {name!r} lies in a link that leads out of the folder; copy the pictures there.")
    label = entry.get("label")
    return Example(folder / name, entry.get("text", ""), None if label is None else str(label))


def _pictures_below(folder: Path) -> list[Path]:
    known = PICTURES | OTHER_PICTURES
    found = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in known and p.is_file() and not _is_sample(p)]
    others = Counter(p.suffix.lower() for p in found if p.suffix.lower() in OTHER_PICTURES)
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        warnings.warn(
            f"{folder}: left out {others.total()} pictures in formats that are not read here ({kinds}); "
            f"convert them to PNG or JPEG, or list them in {METADATA}.",
            stacklevel=3,
        )
    return [p for p in found if p.suffix.lower() in PICTURES]


def _is_sample(path: Path) -> bool:
    """Was it drawn by a run whose output folder lies among the pictures?"""
    return path.parent.name == "samples" and (path.parents[1] / "metrics.jsonl").is_file()


def _warn_of_missing_captions(
    folder: Path, examples: Sequence[Example], without: Sequence[tuple[str, dict[str, Any]]]
) -> None:
    first = f"The first is {without[0][0]}, with the keys {', '.join(without[0][1])}." if without else ""
    if any(e.text for e in examples):
        if without:
            warnings.warn(
                f'{len(without)} of {len(examples)} lines have no "text": their pictures get an empty caption. {first}',
                stacklevel=3,
            )
        return
    elsewhere = sorted(str(p) for pattern in ("metadata.*", "*/metadata.*") for p in folder.glob(pattern))
    if without:
        remedy = f'{len(without)} lines have no "text", from which captions are read. {first}'
    elif elsewhere and not (folder / METADATA).exists():
        remedy = f"{', '.join(elsewhere)} is not read: captions are looked for in {folder / METADATA}."
    else:
        remedy = f'Give them in {folder / METADATA}, a line for each: {{"file_name": "cat.jpg", "text": "a cat"}}.'
    warnings.warn(f"{folder}: no picture has a caption: the model will not follow prompts. {remedy}", stacklevel=3)
