"""PNG files that say how they were made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentgen.weights.atomic import replacing

KEY = "latentgen"


def save_png(picture: Image.Image, path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write a PNG in one step, with `record` as JSON in an international text chunk named "latentgen".

    Args:
        picture: the picture.
        path: where; its folder is made if it is missing.
        record: what is needed to make the picture again: prompt, seed, settings, model, version.
    """
    info = PngInfo()
    info.add_itxt(KEY, json.dumps(dict(record), ensure_ascii=False))
    with replacing(Path(path)) as fresh:
        picture.save(fresh, format="PNG", pnginfo=info)


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the record of a PNG that `save_png` wrote.

    Raises:
        ValueError: if the file has none.
    """
    with Image.open(path) as picture:
        text = picture.info.get(KEY)
    try:
        record = json.loads(text) if isinstance(text, str) else None
    except json.JSONDecodeError:
        record = None
    if not isinstance(record, dict):
        raise ValueError(f"{path} does not say how it was made: it has no {KEY!r} record, or a damaged one.")
    return record
