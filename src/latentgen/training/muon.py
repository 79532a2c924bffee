"""Muon: momentum whose matrices are made orthogonal before each step (Jordan et al. 2024)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from latentgen.runtime.device import cpu_has_native_bfloat16

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""a, b, c of x -> a x + b x^3 + c x^5: five times over it brings singular values in (0, 1] near 1 (Jordan et al. 2024)."""

FEWEST_CHANNELS = 16


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values end between 0.7 and 1.2.

    Those that are tiny beside the matrix's norm stay small: a step multiplies them by no more than `a`.

    Args:
        matrices: (N, rows, columns).
        iterations: Newton-Schulz steps.

    Returns:
        The same shape; bfloat16 where the device computes it natively, else float32.
    """
    x = matrices.to(torch.bfloat16 if _native_bfloat16(matrices.device) else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.float().norm(dim=(-2, -1), keepdim=True).clamp(min=1e-20).to(x.dtype)
    a, b, c = NEWTON_SCHULZ
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _native_bfloat16(device: torch.device) -> bool:
    return torch.cuda.is_bf16_supported(False) if device.type == "cuda" else cpu_has_native_bfloat16()


def matrices_and_rest(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained parameters that are matrices between hidden layers, and all others.

    Embeddings are not among the former, and no layer from or to few channels (a picture's, a latent's): their rows stand
    for things of different frequency and size, and are left to AdamW.
    """
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            hidden = parameter.ndim >= 2 and min(parameter.shape[:2]) >= FEWEST_CHANNELS and id(parameter) not in tables
            (matrices if hidden else rest).append(parameter)
    return matrices, rest


class Muon(torch.optim.Optimizer):
    """Muon for matrices, AdamW (Loshchilov and Hutter 2019) for every other parameter.

    A convolution counts as the matrix of its output channels by everything else. An orthogonal matrix is scaled by
    0.2 sqrt(max(rows, columns)), which makes its entries as large as AdamW's steps (Liu et al. 2025, eq. 4), so one
    learning rate and one weight decay serve both.

    Args:
        module: what is trained.
        lr: learning rate.
        betas: of AdamW, for the parameters that are no matrices.
        weight_decay: of all parameters.
        momentum: of the matrices; the gradient is looked up one step ahead (Nesterov).
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
    ) -> None:
        matrices, rest = matrices_and_rest(module)
        groups = [{"params": matrices, "matrices": True}, {"params": rest, "matrices": False}]
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "momentum": momentum, "eps": 1e-8}
        super().__init__([g for g in groups if g["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step along the gradients; parameters without one stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                (self._step_matrices if group["matrices"] else self._step_adamw)(parameters, group)
        return loss

    def _step_matrices(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        gradients: list[Tensor] = [p.grad for p in parameters]  # type: ignore[misc]
        momenta = self._states("momentum", parameters)
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        alike = defaultdict(list)
        for parameter, update in zip(parameters, ahead, strict=True):
            alike[update.flatten(1).shape].append((parameter, update))
        for shape, pairs in alike.items():
            orthogonal = orthogonalise(torch.stack([update.flatten(1) for _, update in pairs]))
            scale = group["lr"] * 0.2 * max(shape) ** 0.5
            for (parameter, _), update in zip(pairs, orthogonal, strict=True):
                parameter.sub_(update.view(parameter.shape).to(parameter.dtype), alpha=scale)

    def _step_adamw(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        gradients: list[Tensor] = [p.grad for p in parameters]  # type: ignore[misc]
        beta1, beta2 = group["betas"]
        first, second = self._states("exp_avg", parameters), self._states("exp_avg_sq", parameters)
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        for parameter, mean, square in zip(parameters, first, second, strict=True):
            count = self.state[parameter].setdefault("step", torch.zeros(())).add_(1).item()
            deviation = (square / (1 - beta2**count)).sqrt_().add_(group["eps"])
            parameter.addcdiv_(mean, deviation, value=-group["lr"] / (1 - beta1**count))

    def _states(self, name: str, parameters: list[nn.Parameter]) -> list[Tensor]:
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[p][name] for p in parameters]
