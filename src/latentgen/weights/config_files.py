"""JSON files of a model folder, and paths that stay inside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from latentgen.weights.atomic import write_text
from latentgen.weights.errors import WeightsError
from latentgen.weights.regular_file import RegularFile

MAX_JSON_BYTES = 16 * 2**20  # the largest file in use, a tokenizer.json, has 4 MB


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        WeightsError: if it is missing, larger than 16 MiB, not JSON in UTF-8, or not an object.
    """
    path = Path(path)
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise WeightsError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}. Fetch the file again."
        ) from error
    except RecursionError as error:
        raise WeightsError(f"{path} is nested too deeply to be a model's file. Fetch the file again.") from error
    except ValueError as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path} is not JSON ({error}). Fetch the file again.") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds a {type(value).__name__}, not an object in braces. Fetch the file again.")
    return value


def read_text(path: Path) -> str:
    """Read a small text file in UTF-8, with or without a byte order mark.

    Raises:
        WeightsError: if it is missing, no ordinary file, larger than 16 MiB, or not UTF-8.
    """
    file = RegularFile(path, settled=False)
    if file.size > MAX_JSON_BYTES:
        raise WeightsError(f"{path} is larger than {MAX_JSON_BYTES} bytes, too large for a model's settings.")
    data = file.read(0, file.size)
    file.close()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}).") from error


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a JSON file in one step, keys in the order given; its folder is made if it is missing."""
    text = json.dumps(dict(content), indent=2, ensure_ascii=False) + "\n"
    write_text(Path(path), text)


def component_path(root: str | os.PathLike[str], *names: str) -> Path:
    """Join names that a file gave (`model_index.json`, an index of shards) to a folder, and never leave it.

    A folder that turns out to be a link must lead to somewhere inside `root`. Links to single files are followed: that is
    how the Hub's cache is built (each file is a link to the repository's `blobs`), and how large files are shared.

    Args:
        root: the folder.
        names: one plain file or folder name per level.

    Raises:
        WeightsError: for a name with a separator or a drive, "." or "..", or nothing at all; for a folder that leads out.
    """
    for name in names:
        plain = (
            isinstance(name, str)
            and name not in {"", ".", ".."}
            and "\0" not in name
            and name == PurePosixPath(name).name == PureWindowsPath(name).name
        )
        if not plain:
            raise WeightsError(
                f"{name!r} is not a plain name inside {root}: a model's files must lie in its own folder. Do not use "
                "this model unless you trust where it comes from."
            )
    path = Path(root, *names)
    if os.path.isdir(path) and not path.resolve().is_relative_to(Path(root).resolve()):
        raise WeightsError(
            f"{path} is a link that leads out of {root}, to {path.resolve()}: a model's files must lie in its own folder. "
            "Copy the folder to its place, if you trust it."
        )
    return path
