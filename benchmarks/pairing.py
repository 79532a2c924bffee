"""Taking turns: A B, B A, so that whatever else the machine does meets both alike, and a ratio for every pair of turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import median
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Turns:
    """What came of it, by contender: seconds of each round, and what the last call returned."""

    seconds: dict[str, list[float]]
    outputs: dict[str, Any]


@dataclass(frozen=True)
class Pairing:
    """Two series of which the k-th numbers were measured next to each other."""

    latentgen: Sequence[float]
    diffusers: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.latentgen) != len(self.diffusers) or not self.latentgen:
            raise ValueError(f"{len(self.latentgen)} and {len(self.diffusers)} numbers do not make pairs.")

    @property
    def ratios(self) -> list[float]:
        """latentgen / diffusers, pair by pair."""
        return [ours / theirs for ours, theirs in zip(self.latentgen, self.diffusers, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios; below 1, latentgen takes less."""
        return median(self.ratios)


def in_turn(contenders: Sequence[T], k: int) -> list[T]:
    """The order of round k, counted from 0: every other round goes backwards, so that nobody is always first."""
    return list(contenders) if k % 2 == 0 else list(reversed(contenders))


def take_turns(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    seconds: float = inf,
    calls: int = 1,
    synchronize: Callable[[], None] = lambda: None,
    on_round: Callable[[int], None] = lambda k: None,
) -> Turns:
    """Call each contender in turn, `rounds` times round.

    Args:
        contenders: by name.
        rounds: at least 1.
        seconds: no round is begun that would end later than this if it took as long as those before it; the first is.
        calls: how often one turn calls its contender; the turn's time is divided by it.
        synchronize: waits until the device has done all that it was given.
        on_round: is told the number of a round, from 0, before it begins.
    """
    turns = Turns({name: [] for name in contenders}, {})
    begin = time.perf_counter()
    for k in range(rounds):
        if k and (time.perf_counter() - begin) * (k + 1) / k > seconds:
            break
        on_round(k)
        for name in in_turn(list(contenders), k):
            synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                turns.outputs[name] = contenders[name]()
            synchronize()
            turns.seconds[name].append((time.perf_counter() - start) / calls)
    return turns
