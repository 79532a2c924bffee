"""A network with some weights replaced, beside the one as it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

N = TypeVar("N", bound=nn.Module)


def with_weights(network: N, weights: Mapping[str, Tensor]) -> N:
    """The network with other tensors for some parameters; it shares every other parameter and buffer with the one given.

    The network stays as it is. What is made costs the memory of `weights` alone, and runs as fast.

    Args:
        network: any.
        weights: by the name of the parameter.
    """
    shared = {id(part): part for part in (*network.parameters(), *network.buffers())}
    if (config := getattr(network, "config", None)) is not None:
        shared[id(config)] = config
    shell = copy.deepcopy(network, shared)
    for name, tensor in weights.items():
        layer, _, own = name.rpartition(".")
        setattr(shell.get_submodule(layer), own, nn.Parameter(tensor, requires_grad=False))
    return shell
