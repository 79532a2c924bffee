"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Follows a module's parameters: `shadow <- d * shadow + (1 - d) * weight`, with `d = min(decay, (1 + n) / (10 + n))`.

    Attributes:
        shadow: name to averaged float32 tensor, for each parameter that is trained.
        updates: n.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow: dict[str, Tensor] = {
            name: p.detach().float().clone() for name, p in module.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take one step towards the weights of `module`."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = dict(module.named_parameters())
        names = list(self.shadow)
        torch._foreach_lerp_([self.shadow[n] for n in names], [weights[n].detach().float() for n in names], 1 - decay)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Within the block `module` holds the averaged weights."""
        weights = {n: p for n, p in module.named_parameters() if n in self.shadow}
        kept = {n: p.detach().clone() for n, p in weights.items()}
        try:
            with torch.no_grad():
                for name, parameter in weights.items():
                    parameter.copy_(self.shadow[name])
            yield
        finally:
            with torch.no_grad():
                for name, parameter in weights.items():
                    parameter.copy_(kept[name])
