"""How much memory a piece of work takes, told without doing it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


def peak_bytes(work: Callable[[], Any], known: Iterable[Tensor] = ()) -> int:
    """The most bytes that the tensors which `work` makes have together, at any one time.

    Meant for the meta device, whose tensors have sizes and no values: a large network tells within a second what it would take.
    Attention counts as fused: its table of weights is not made. What kernels need for themselves is not counted.

    Args:
        work: what is to be done.
        known: tensors that are there anyway, as weights.
    """
    tally = _Tally(known)
    with torch.no_grad(), _FusedAttention(), tally:
        result = work()
    del result
    return tally.peak


class _Tally(TorchDispatchMode):
    """Adds up the storages that operations return, until they are released."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.total = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.total)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        name = storage._cdata
        if name not in self.alive:
            self.alive[name] = storage.nbytes()
            self.total += storage.nbytes()
            weakref.finalize(storage, self._release, name)

    def _release(self, name: int) -> None:
        self.total -= self.alive.pop(name)


class _FusedAttention(TorchFunctionMode):
    """Attention as its fused kernels do it: nothing but the result is made."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, _, value = args[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))
