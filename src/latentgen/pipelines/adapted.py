"""Networks with adapters on them, made beside those without: no base weight is ever written."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from latentgen.models.unet import UNet2DConditionModel
from latentgen.runtime.shell import with_weights
from latentgen.text import Runs
from latentgen.weights.adapters import Delta, Shape
from latentgen.weights.adapters.names import TEXT_PREFIX

KEPT = 2
"""Adapted networks that a pipeline keeps of each component: those of the last calls with different scales."""

LAYERS = nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm
"""Those that adapters can change."""

T = TypeVar("T")
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Parts:
    """What a call of a text pipeline draws with: its components, or such with adapters on them.

    Attributes:
        unet, text_encoder, tokenizer: as the pipeline's; the last two are None in forms without texts.
        runs: of tokens with several vectors, see `latentgen.text.with_tokens`.
    """

    unet: UNet2DConditionModel
    text_encoder: Any
    tokenizer: Any
    runs: Runs

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype


Term = tuple[str, Delta, float]
"""An adapter's name, what it does to a parameter, and how much of it."""


def changeable(network: nn.Module | None) -> dict[str, tuple[str, Tensor]]:
    """The parameters that adapters can change, as these name them (without `text_model.`): the network's name, and the tensor."""
    modules = [] if network is None else network.named_modules()
    return {
        f"{name}.{own}".removeprefix(TEXT_PREFIX): (f"{name}.{own}", parameter.detach())
        for name, module in modules
        if isinstance(module, LAYERS)
        for own, parameter in module.named_parameters(recurse=False)
    }


def changeable_shapes(network: nn.Module | None) -> dict[str, Shape]:
    """The shapes of the parameters that adapters can change, by name; of no network there are none."""
    return {name: tuple(parameter.shape) for name, (_, parameter) in changeable(network).items()}


@torch.no_grad()
def with_deltas(network: N, changes: Iterable[tuple[str, Mapping[str, Delta], float]], component: str) -> N:
    """The network with each changed parameter W + sum_i s_i d_i(W), added in float32 and cast once.

    Args:
        network: stays as it is.
        changes: adapters: name, deltas by parameter, and scale s.
        component: what the network is called in errors.

    Raises:
        ValueError: if a parameter is not there any more, or of another shape.
        FloatingPointError: if a weight is not finite in the network's dtype then.
    """
    terms: dict[str, list[Term]] = {}
    for name, deltas, scale in changes:
        for parameter, delta in deltas.items():
            terms.setdefault(parameter, []).append((name, delta, scale))
    found = changeable(network)
    weights: dict[str, Tensor] = {}
    for parameter, summands in terms.items():
        where = f"{component}.{parameter}"
        if parameter not in found:
            raise ValueError(f"{where}, which the LoRA {summands[0][0]!r} changes, is gone: unload_lora() first.")
        name, weight = found[parameter]
        weights[name] = _changed(weight, summands, where)
    if not weights:
        return network
    # The extremes are NaN if any value is; looking at them together waits for a GPU once.
    fine = torch.stack([torch.stack(weight.aminmax()).isfinite().all() for weight in weights.values()])
    if not bool(fine.all()):
        bad = next(name for name, good in zip(weights, fine.tolist(), strict=True) if not good)
        used = ", ".join(repr(name) for name, _, _ in terms[bad.removeprefix(TEXT_PREFIX)])
        dtype = weights[bad].dtype
        raise FloatingPointError(
            f"{component}.{bad} is not finite in {dtype} with the LoRA {used}: lower its scale"
            + ("." if dtype == torch.float32 else ", or load the pipeline with dtype='float32'.")
        )
    return with_weights(network, weights)


def _changed(weight: Tensor, terms: Sequence[Term], where: str) -> Tensor:
    exact = weight.float()
    total: Tensor | None = None  # changes first, in place: a whole model is a few copies of all its weights
    with torch.autocast(weight.device.type, enabled=False):
        for name, delta, scale in terms:
            if reason := delta.misfit(tuple(weight.shape)):
                raise ValueError(f"{where} does not fit the LoRA {name!r} any more ({reason}): unload_lora() first.")
            change = delta.change(exact)
            total = change.mul_(scale) if total is None else total.add_(change, alpha=scale)
    return weight if total is None else total.add_(exact).to(weight.dtype)


class Shells:
    """The adapted networks of the last calls, so that the next with the same scales does not make them again.

    One is used again only while the network that it was made from holds the same tensors, unchanged.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[_State, Any]] = OrderedDict()
        self._lock = threading.Lock()
        self._making = (
            threading.Lock()
        )  # for as long as one is made: only those wait who need another that is not there

    def of(self, network: nn.Module, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes of the network, or has made for this key."""
        state = _State(network)
        if (kept := self._find(key, state)) is not None:
            found: T = kept
            return found
        with self._making:
            if (kept := self._find(key, state)) is not None:  # somebody else needed it too
                found = kept
                return found
            made = make()
            with self._lock:
                self._kept[key] = (state, made)
                self._kept.move_to_end(key)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return made

    def _find(self, key: Hashable, state: _State) -> Any:
        with self._lock:
            if key not in self._kept or not self._kept[key][0].same(state):
                return None
            self._kept.move_to_end(key)
            return self._kept[key][1]

    def clear(self) -> None:
        """Keep none."""
        with self._lock:
            self._kept.clear()

    def __reduce__(self) -> tuple[type[Shells], tuple[()]]:
        return Shells, ()  # a pipeline's copy begins with none


class _State:
    """Which tensors a network holds, and in which state they are."""

    def __init__(self, network: nn.Module) -> None:
        self.tensors = [*network.parameters(), *network.buffers()]
        # The reference to the storage is weak: memory that a cast let go stays free, and its name is not given again.
        self.marks = [
            (t.dtype, StorageWeakRef(t.untyped_storage()), t.data_ptr(), 0 if t.is_inference() else t._version)
            for t in self.tensors
        ]

    def same(self, other: _State) -> bool:
        return (
            len(self.tensors) == len(other.tensors)
            and all(one is two for one, two in zip(self.tensors, other.tensors, strict=True))
            and self.marks == other.marks
        )
