"""Boxes with classes to the token ids that LDM's layout model reads, and back."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentgen.weights.checksums import recording
from latentgen.weights.config_files import read_json, write_json
from latentgen.weights.errors import WeightsError

Box = tuple[float, float, float, float]
"""Left, top, right and bottom as fractions of the picture's width and height, each in [0, 1]."""

CONFIG_NAME = "layout_tokenizer.json"


@dataclass(frozen=True)
class LayoutTokenizer:
    """The tokenisation of taming-transformers' bounding-box conditions, which LDM's layout model was trained with.

    Every object is three tokens: its class, the place of its upper left corner and that of its lower right one. A place is a cell
    of a square grid of g = floor(sqrt(tokens)) sections a side, 90 for 8192 tokens: `round(y (g - 1)) g + round(x (g - 1))`, so
    that a corner is kept to half a cell, 1 / (2 (g - 1)). Objects follow one another in the order given; the last token,
    `tokens - 1`, three times, fills what is left of `objects` places. Two more tokens, in the form of a box, say which part of
    the original picture is shown: the whole of it here. That makes 3 x 30 + 2 = 92 positions.

    Attributes:
        class_names: of the classes, in the order of their numbers.
        tokens: ids there are; 8192 in LDM's model.
        objects: most objects in a picture; 30 in LDM's model.
        crop: whether the two tokens of the shown part follow.
    """

    class_names: tuple[str, ...]
    tokens: int = 8192
    objects: int = 30
    crop: bool = True

    def __post_init__(self) -> None:
        names = tuple(self.class_names)
        object.__setattr__(self, "class_names", names)
        if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
            raise ValueError("class_names must be a list of texts, at least one, each another.")
        for name in ("tokens", "objects"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
        if type(self.crop) is not bool:
            raise ValueError(f"crop={self.crop!r} must be true or false.")
        if len(names) >= self.tokens:
            raise ValueError(
                f"there are {len(names)} classes and {self.tokens} tokens; the last token stands for no object."
            )

    @property
    def sections(self) -> int:
        """Cells along a side of the grid."""
        return math.isqrt(self.tokens)

    @property
    def length(self) -> int:
        """Tokens of a layout."""
        return 3 * self.objects + 2 * self.crop

    def encode(self, objects: Sequence[tuple[str | int, Sequence[float]]], where: str = "layout") -> Tensor:
        """Objects, each a class by name or number and a box, to token ids (length,) int64.

        Args:
            objects: at least one, at most `objects`.
            where: what errors call them.

        Raises:
            ValueError: naming the entry: for an unknown class, a box that leaves [0, 1] or is inverted, or a wrong number.
        """
        if isinstance(objects, str) or not isinstance(objects, Sequence):
            raise ValueError(f"{where}={objects!r} must be a list of objects, (class, (x0, y0, x1, y1)).")
        if not 1 <= len(objects) <= self.objects:
            raise ValueError(f"{where} has {len(objects)} objects; there must be 1 to {self.objects}.")
        ids = []
        for k, entry in enumerate(objects):
            if isinstance(entry, str) or not isinstance(entry, Sequence) or len(entry) != 2:
                raise ValueError(f"{where}[{k}]={entry!r} must be a class and a box, (class, (x0, y0, x1, y1)).")
            label, box = entry
            ids += [self._class(label, f"{where}[{k}]"), *self._corners(_checked(box, f"{where}[{k}]"))]
        ids += [self.tokens - 1] * (3 * (self.objects - len(objects)))
        if self.crop:
            ids += self._corners((0.0, 0.0, 1.0, 1.0))
        return torch.tensor(ids)

    def decode(self, ids: Tensor) -> list[tuple[str, Box]]:
        """Token ids (length,) to objects, their corners in the middle of the places that the tokens name."""
        found = []
        for label, first, second in ids[: 3 * self.objects].view(-1, 3).tolist():
            if label != self.tokens - 1:
                found.append((self.class_names[label], (*self._place(first), *self._place(second))))
        return found

    def _class(self, label: Any, where: str) -> int:
        if isinstance(label, str) and label in self.class_names:
            return self.class_names.index(label)
        if isinstance(label, str) and label.isdecimal() and len(label) < 10:
            label = int(label)
        if isinstance(label, Integral) and not isinstance(label, bool) and 0 <= int(label) < len(self.class_names):
            return int(label)
        names = ", ".join(self.class_names[:12]) + (" ..." if len(self.class_names) > 12 else "")
        raise ValueError(
            f"{where}: the class {label!r} is not known; use one of {names} (or 0 to {len(self.class_names) - 1})."
        )

    def _corners(self, box: Box) -> list[int]:
        last = self.sections - 1
        return [round(y * last) * self.sections + round(x * last) for x, y in (box[:2], box[2:])]

    def _place(self, token: int) -> tuple[float, float]:
        y, x = divmod(token, self.sections)
        return x / (self.sections - 1), y / (self.sections - 1)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `layout_tokenizer.json` into `folder`, which is made if it is missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        with recording(Path(folder), begin=False):
            write_json(Path(folder) / CONFIG_NAME, asdict(self))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> LayoutTokenizer:
        """Read what `save_pretrained` has written.

        Raises:
            WeightsError: if the file is missing, damaged or holds other keys.
        """
        path = Path(folder) / CONFIG_NAME
        settings = read_json(path)
        names = settings.pop("class_names", None)
        if not isinstance(names, list):
            raise WeightsError(f"{path}: class_names={names!r} must be a list of texts.")
        try:
            return cls(tuple(names), **settings)
        except (TypeError, ValueError) as error:
            raise WeightsError(f"{path}: {error}") from error


def _checked(box: Any, where: str) -> Box:
    """Four numbers in [0, 1], the second corner to the lower right of the first."""
    given: Any = box.tolist() if isinstance(box, np.ndarray | Tensor) else box
    values = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    if len(values) != 4 or not all(isinstance(v, Real) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{where}: the box {box!r} must be four numbers, (left, top, right, bottom).")
    x0, y0, x1, y1 = (math.inf if isinstance(v, int) and abs(v) > 1 else float(v) for v in values)
    if not (0 <= x0 <= 1 and 0 <= y0 <= 1 and 0 <= x1 <= 1 and 0 <= y1 <= 1):
        raise ValueError(
            f"{where}: the box {box!r} leaves [0, 1]; sides are fractions of the picture's width and height."
        )
    if not (x0 < x1 and y0 < y1):
        raise ValueError(
            f"{where}: the box {box!r} is inverted or empty; left must be below right, and top below bottom."
        )
    return x0, y0, x1, y1
