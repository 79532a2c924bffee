"""Tensors that are still in their files: what each is like is known, and its numbers are read when they are wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to be fetched.

    Attributes:
        like: one of the same shape and dtype on the meta device.
        fetch: reads the numbers: into memory of the caller's own, on the CPU.
    """

    like: Tensor
    fetch: Callable[[], Tensor]

    @staticmethod
    def of(tensor: Tensor) -> StoredTensor:
        """One that is in memory already."""
        return StoredTensor(tensor.detach().to("meta"), lambda: tensor)

    @property
    def shape(self) -> torch.Size:
        """As a tensor's."""
        return self.like.shape

    @property
    def dtype(self) -> torch.dtype:
        """As a tensor's."""
        return self.like.dtype

    @property
    def nbytes(self) -> int:
        """How much memory the fetched tensor takes."""
        return self.like.numel() * self.like.dtype.itemsize

    def then(self, change: Change) -> StoredTensor:
        """This tensor, changed once it is fetched; `change` is also shown tensors on the meta device."""
        return StoredTensor(change(self.like), lambda: change(self.fetch()))

    def split(self, *changes: Change) -> tuple[StoredTensor, ...]:
        """Parts of this tensor, which is fetched once for all of them and forgotten when each was fetched once."""
        held: list[Tensor] = []
        waiting = len(changes)
        lock = threading.Lock()

        def fetch() -> Tensor:
            nonlocal waiting
            with lock:
                if not held:
                    held.append(self.fetch())
                waiting -= 1
                return held.pop() if waiting % len(changes) == 0 else held[0]

        whole = StoredTensor(self.like, fetch)
        return tuple(whole.then(change) for change in changes)


def join(parts: Sequence[StoredTensor], change: Callable[[Sequence[Tensor]], Tensor]) -> StoredTensor:
    """One tensor made of several."""
    return StoredTensor(change([part.like for part in parts]), lambda: change([part.fetch() for part in parts]))
