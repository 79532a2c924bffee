"""Tables between two spellings of a network's tensors: total, injective and reversible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentgen.weights.errors import WeightsError
from latentgen.weights.stored import StoredTensor, join

Shapes = Mapping[str, tuple[int, ...]]
"""Names and shapes, as a file's header has them."""


@dataclass(frozen=True)
class Change:
    """How one tensor there becomes one or several here, and back: no number is altered.

    Attributes:
        split: the parts, each a function of the whole.
        join: the whole, of all parts.
    """

    split: tuple[Callable[[Tensor], Tensor], ...]
    join: Callable[[Sequence[Tensor]], Tensor]


def _same(tensor: Tensor) -> Tensor:
    return tensor


SAME = Change((_same,), lambda parts: parts[0])


def matrix(dimensions: int) -> Change:
    """A convolution of width 1 over so many dimensions there, (C', C, 1, ...), is a matrix (C', C) here."""
    return Change(
        (lambda t: t.reshape(t.shape[:2]),), lambda parts: parts[0].reshape(*parts[0].shape, *(1,) * dimensions)
    )


def fused(heads: int, dimensions: int) -> Change:
    """Queries, keys and values in one there: for each head its C / heads rows of all three, one after the other.

    Args:
        heads: 1 puts all queries first, then all keys, then all values.
        dimensions: of the whole; the parts are matrices, or biases.
    """

    def part(number: int) -> Callable[[Tensor], Tensor]:
        def change(whole: Tensor) -> Tensor:
            rows = whole.unflatten(0, (heads, 3, -1))[:, number]
            return rows.reshape(-1, *whole.shape[1:2])

        return change

    def whole(parts: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack([t.unflatten(0, (heads, -1)) for t in parts], dim=1).flatten(0, 2)
        return stacked.reshape(*stacked.shape, *(1,) * (dimensions - stacked.ndim))

    return Change(tuple(part(number) for number in range(3)), whole)


@dataclass(frozen=True)
class Row:
    """One tensor there, what it is called here, and how it changes on the way."""

    theirs: str
    ours: tuple[str, ...]
    change: Change = SAME


class Table:
    """Rows, found by their name and by ours. A row may stand there for a tensor that a network does not have.

    `apply` and `revert` are each other's inverse, bit for bit.
    """

    def __init__(self, rows: Iterator[Row] | Sequence[Row]) -> None:
        """Raises ValueError for a name that stands there twice, theirs or ours: a mistake in the table."""
        self.rows: dict[str, Row] = {}
        self._by_ours: dict[str, Row] = {}
        for row in rows:
            for names, name in ((self.rows, row.theirs), *((self._by_ours, ours) for ours in row.ours)):
                if name in names:
                    raise ValueError(f"{name} stands in the table twice.")
                names[name] = row

    def apply(self, tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
        """Their names to ours; second, the tensors that no row is for, as they are.

        Raises:
            WeightsError: for a tensor of a shape that its layer never has.
        """
        ours: dict[str, StoredTensor] = {}
        rest: dict[str, StoredTensor] = {}
        for name, tensor in tensors.items():
            row = self.rows.get(name)
            if row is None:
                rest[name] = tensor
            elif row.change is SAME:
                ours[row.ours[0]] = tensor
            else:
                try:
                    ours |= zip(row.ours, tensor.split(*row.change.split), strict=True)
                except (RuntimeError, IndexError, ValueError) as error:
                    raise WeightsError(
                        f"{name} is {tuple(tensor.shape)} in the file, which no such layer has."
                    ) from error
        return ours, rest

    def revert(self, tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
        """Our names to theirs; second, the tensors that no row is for, as they are."""
        theirs: dict[str, StoredTensor] = {}
        rest: dict[str, StoredTensor] = {}
        for name, tensor in tensors.items():
            row = self._by_ours.get(name)
            if row is None or any(part not in tensors for part in row.ours):
                rest[name] = tensor
            elif row.change is SAME:
                theirs[row.theirs] = tensor
            elif name == row.ours[0]:
                theirs[row.theirs] = join([tensors[part] for part in row.ours], row.change.join)
        return theirs, rest


def layers(theirs: str, ours: str, names: Mapping[str, str]) -> Iterator[Row]:
    """Rows for the weights and biases of a module's layers, by their names in both spellings; "" is the module itself."""
    for there, here in names.items():
        for kind in ("weight", "bias"):
            yield Row(".".join(filter(None, (theirs, there, kind))), (".".join(filter(None, (ours, here, kind))),))
