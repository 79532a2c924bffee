"""Weights bent at random: tensors gone, added, renamed, of other shapes and kinds, without numbers or not finite."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

DTYPES = (torch.int64, torch.int8, torch.bool, torch.float16, torch.float8_e4m3fn)
SHAPES = ((), (1,), (5, 5), (1, 1, 1, 1), (3, 7, 1, 1), (100_000,), (2, 0), (0, 0, 0, 0), (1,) * 6)


def bend(r: random.Random, good: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """One to four changes.

    Args:
        r: chooses.
        good: is left as it is.
        names: under which a tensor may turn up, where it does not belong.
    """
    tensors = dict(good)
    for _ in range(r.choice([1, 1, 2, 4])):
        if not tensors:
            break
        name = r.choice(list(tensors))
        tensor, change = tensors[name], r.randrange(14)
        if change == 0:
            del tensors[name]
        elif change == 1:
            tensors[name] = tensor.unsqueeze(0)
        elif change == 2:
            tensors[name] = tensor.reshape(-1)
        elif change == 3:
            tensors[name] = tensor[..., :0] if tensor.ndim else torch.zeros(3)
        elif change == 4:
            tensors[name] = torch.full(tensor.shape, r.choice([float("nan"), float("inf"), 1e38, 0.0]))
        elif change == 5:
            tensors[name] = tensor.to(r.choice(DTYPES))
        elif change == 6:
            tensors[r.choice([*names, name + "x", name.upper(), name + "\0", name.replace("_", "."), ""])] = tensor
        elif change == 7:
            tensors[name] = tensor.transpose(0, -1).contiguous() if tensor.ndim else tensor
        elif change == 8:
            tensors[name] = torch.ones(r.choice(SHAPES))
        elif change == 9:
            tensors[r.choice(list(good))] = tensor
        elif change == 10:
            tensors[name] = torch.cat([tensor, tensor]) if tensor.ndim else tensor
        elif change == 11:
            tensors[name] = tensor[:1] if tensor.ndim else tensor
        elif change == 12:
            tensors[r.choice([*names, name.rpartition(".")[0] + ".0.weight"])] = tensors.pop(name)
        else:
            start = name.rsplit(".", r.randrange(1, 4))[0]
            tensors = {other: t for other, t in tensors.items() if not other.startswith(start)}
    return tensors


def same(good: Mapping[str, Tensor], bent: Mapping[str, Tensor]) -> bool:
    """Whether nothing came of it."""
    return good.keys() == bent.keys() and all(
        tensor.dtype == bent[name].dtype and torch.equal(tensor, bent[name]) for name, tensor in good.items()
    )
