"""What adapters add to a layer's weight: each kind is its factors and one formula, computed in float32.

Letters: W (O, I, *K) the weight, K the kernel of a convolution (empty for a linear layer), r the rank, a the adapter's alpha.
A linear layer and a 1 x 1 convolution are the same thing: what is made for one fits the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Delta(Protocol):
    """A change of one parameter, a layer's weight for most."""

    def misfit(self, shape: Shape) -> str | None:
        """Why it cannot change a weight of this shape; None if it can. Looks at shapes only."""
        ...

    def change(self, weight: Tensor) -> Tensor:
        """The change at scale 1: float32, of the weight's shape and on its device, a tensor of its own.

        `weight` is the layer's own, float32.
        """
        ...


@dataclass(frozen=True, eq=False)
class LowRank:
    """LoRA: (a / r) up down (Hu et al. 2021, section 4.1), for convolutions too, and in LyCORIS's Tucker form.

    Attributes:
        down: (r, I), or (r, I, *K) for a convolution.
        up: (O, r), or (O, r, 1, 1).
        alpha: a; None is r, a factor of 1.
        mid: (r, r, *K): then `down` is (r, I, 1, 1), and the change is sum_pq up[:, p] mid[p, q] down[q] (LyCORIS,
            Yeh et al. 2023, appendix on Tucker decomposition).
    """

    down: Tensor
    up: Tensor
    alpha: float | None = None
    mid: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def factor(self) -> float:
        """a / r."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def misfit(self, shape: Shape) -> str | None:
        down, up = _kernel_last(self.down), _kernel_last(self.up)
        if down is None or up is None or math.prod(up[2:]) != 1:
            return f"down {_of(self.down)} and up {_of(self.up)} are no two matrices"
        if self.mid is None:
            if up[1] != down[0]:
                return f"down {_of(self.down)} has rank {down[0]} and up {_of(self.up)} rank {up[1]}"
            return _compare((up[0], *down[1:]), shape)
        if math.prod(down[2:]) != 1 or self.mid.ndim != 4 or tuple(self.mid.shape[:2]) != (up[1], down[0]):
            return f"down {_of(self.down)}, mid {_of(self.mid)} and up {_of(self.up)} are not of Tucker's form"
        return _compare((up[0], down[1], *self.mid.shape[2:]), shape)

    def change(self, weight: Tensor) -> Tensor:
        down, up = (part.to(weight.device, torch.float32).flatten(1) for part in (self.down, self.up))
        up = up * self.factor  # the smaller side
        if self.mid is None:
            return (up @ down).reshape(weight.shape)
        product = torch.einsum("op,pqkl,qi->oikl", up, self.mid.to(weight.device, torch.float32), down)
        return product.reshape(weight.shape)


@dataclass(frozen=True, eq=False)
class Hadamard:
    """LoHa: (a / r) (w1_a w1_b) * (w2_a w2_b), entry by entry (Hyeon-Woo et al. 2021, proposition 1).

    Attributes:
        w1_a, w2_a: (O, r); with t1 and t2 (r, O).
        w1_b, w2_b: (r, I * prod(K)); with t1 and t2 (r, I).
        alpha: a; None is r.
        t1, t2: (r, r, *K): each matrix is sum_pq t[p, q] w_a[p] w_b[q] then (the same, proposition 3).
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float | None = None
    t1: Tensor | None = None
    t2: Tensor | None = None

    def misfit(self, shape: Shape) -> str | None:
        first = _product_shape(self.w1_a, self.w1_b, self.t1)
        second = _product_shape(self.w2_a, self.w2_b, self.t2)
        if first is None or second is None or first != second:
            parts = {
                "w1_a": self.w1_a,
                "w1_b": self.w1_b,
                "w2_a": self.w2_a,
                "w2_b": self.w2_b,
                "t1": self.t1,
                "t2": self.t2,
            }
            shapes = ", ".join(f"{name} {_of(part)}" for name, part in parts.items() if part is not None)
            return f"{shapes} do not multiply"
        return _compare(first, shape)

    def change(self, weight: Tensor) -> Tensor:
        first = _product(self.w1_a, self.w1_b, self.t1, weight.device)
        second = _product(self.w2_a, self.w2_b, self.t2, weight.device)
        factor = 1.0 if self.alpha is None else self.alpha / self.w1_b.shape[0]
        return (first * second).reshape(weight.shape) * factor


@dataclass(frozen=True, eq=False)
class Kronecker:
    """LoKr: (a / r) w1 (x) w2, the Kronecker product (Yeh et al. 2023, section 3.2).

    Attributes:
        w1: (O1, I1), or two matrices (O1, r) and (r, I1) whose product it is.
        w2: (O2, I2, *K), or two matrices (O2, r) and (r, I2 * prod(K)).
        alpha: a; has no effect where both are whole, for there is no rank then; None is r.
        t2: (r, r, *K): w2 is two matrices (r, O2) and (r, I2) then, and sum_pq t2[p, q] a[p] b[q] their product.
    """

    w1: tuple[Tensor, ...]
    w2: tuple[Tensor, ...]
    alpha: float | None = None
    t2: Tensor | None = None

    def misfit(self, shape: Shape) -> str | None:
        first = _whole_shape(self.w1, None)
        second = _whole_shape(self.w2, self.t2)
        if first is None or len(first) != 2 or second is None:
            parts = ", ".join(_of(part) for part in (*self.w1, *self.w2, *([] if self.t2 is None else [self.t2])))
            return f"{parts} do not multiply"
        return _compare((first[0] * second[0], first[1] * second[1], *second[2:]), shape)

    def change(self, weight: Tensor) -> Tensor:
        first = _whole(self.w1, None, weight.device)
        second = _whole(self.w2, self.t2, weight.device).flatten(1)
        # Input channels come before the kernel in a row of both: flat rows have the entries in the weight's order.
        return torch.kron(first, second).reshape(weight.shape) * self.factor

    @property
    def factor(self) -> float:
        """a / r, with the rank of the second pair where both are factored, as LyCORIS has it."""
        pair = self.w2 if len(self.w2) == 2 else self.w1
        return 1.0 if self.alpha is None or len(pair) < 2 else self.alpha / pair[1].shape[0]


@dataclass(frozen=True, eq=False)
class Decomposed:
    """DoRA: m V / |V| - W with V = W + inner (Liu et al. 2024, eq. 5): direction and length of each row, apart.

    Attributes:
        inner: the change of the direction.
        magnitude: m, in any shape: a number for each output channel, or for each input channel (and "row" is column then).
        by_input: which of them.
    """

    inner: Delta
    magnitude: Tensor
    by_input: bool = False

    def misfit(self, shape: Shape) -> str | None:
        if len(shape) < 2:
            return "it has directions, and the parameter is no matrix"
        wanted = shape[1] if self.by_input else shape[0]
        if self.magnitude.numel() != wanted:
            return f"its magnitude {_of(self.magnitude)} is not one number for each of the layer's {wanted} channels"
        return self.inner.misfit(shape)

    def change(self, weight: Tensor) -> Tensor:
        kept = 1 if self.by_input else 0
        others = [axis for axis in range(weight.ndim) if axis != kept]
        changed = weight + self.inner.change(weight)
        length = torch.linalg.vector_norm(changed, dim=others, keepdim=True)
        magnitude = self.magnitude.to(weight.device, torch.float32).reshape(length.shape)
        return (
            changed * (magnitude / length.clamp_min(torch.finfo(torch.float32).tiny)) - weight
        )  # a row of zeros stays


@dataclass(frozen=True, eq=False)
class Difference:
    """A change that is written down in full (LyCORIS' `diff`, and what it calls norms), of a weight or a bias.

    Attributes:
        difference: of the parameter's shape.
    """

    difference: Tensor

    def misfit(self, shape: Shape) -> str | None:
        return _compare(tuple(self.difference.shape), shape)

    def change(self, weight: Tensor) -> Tensor:
        return self.difference.to(weight.device, torch.float32, copy=True).reshape(weight.shape)


@dataclass(frozen=True, eq=False)
class Scaled:
    """IA3: each row of the weight times a number of its own (Liu et al. 2022, section 3.3), which LyCORIS has less one.

    Attributes:
        scales: in any shape, a number for each output channel, or for each input channel.
        by_input: which of them.
    """

    scales: Tensor
    by_input: bool = False

    def misfit(self, shape: Shape) -> str | None:
        if len(shape) < 2:
            return "it has rows to scale, and the parameter is no matrix"
        wanted = shape[1] if self.by_input else shape[0]
        if self.scales.numel() == wanted:
            return None
        return f"its scales {_of(self.scales)} are not one number for each of the layer's {wanted} channels"

    def change(self, weight: Tensor) -> Tensor:
        axis = 1 if self.by_input else 0
        shape = [-1 if k == axis else 1 for k in range(weight.ndim)]
        return weight * self.scales.to(weight.device, torch.float32).reshape(shape)


def _kernel_last(part: Tensor) -> Shape | None:
    """The shape of a matrix or of a convolution's weight, None for anything else."""
    return tuple(part.shape) if part.ndim in (2, 4) else None


def _of(part: Tensor) -> str:
    return str(tuple(part.shape))


def _product_shape(a: Tensor, b: Tensor, t: Tensor | None) -> Shape | None:
    """The shape of `_product`, None if there is none."""
    if a.ndim != 2 or b.ndim != 2:
        return None
    if t is None:
        return (a.shape[0], b.shape[1]) if a.shape[1] == b.shape[0] else None
    if t.ndim != 4 or (t.shape[0], t.shape[1]) != (a.shape[0], b.shape[0]):
        return None
    return (a.shape[1], b.shape[1], *t.shape[2:])


def _product(a: Tensor, b: Tensor, t: Tensor | None, device: torch.device) -> Tensor:
    a, b = a.to(device, torch.float32), b.to(device, torch.float32)
    return a @ b if t is None else torch.einsum("pqkl,po,qi->oikl", t.to(device, torch.float32), a, b)


def _whole_shape(parts: tuple[Tensor, ...], t: Tensor | None) -> Shape | None:
    if len(parts) == 1:
        return _kernel_last(parts[0])
    a, b = parts
    return _product_shape(a, b, t)


def _whole(parts: tuple[Tensor, ...], t: Tensor | None, device: torch.device) -> Tensor:
    if len(parts) == 1:
        return parts[0].to(device, torch.float32)
    a, b = parts
    return _product(a, b, t, device)


def _compare(made: Shape, layer: Shape) -> str | None:
    """None if a change of shape `made` is one of a weight of shape `layer`, be it flat or with a kernel of 1 x 1."""
    same_rows = (made[:1], math.prod(made[1:])) == (layer[:1], math.prod(layer[1:]))
    point = len(made) == 2 or made[2:] == (1, 1)
    if made == layer or (len(made) != len(layer) > 1 and same_rows and point):
        return None
    return f"it makes {made} and the parameter is {layer}"
