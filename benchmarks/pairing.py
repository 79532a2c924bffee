"""Taking turns: A B A B, so that whatever else the machine does meets both alike, and a ratio for every pair of turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


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


def take_turns(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    calls: int = 1,
    synchronize: Callable[[], None] = lambda: None,
) -> Turns:
    """Call each contender in turn, `rounds` times round.

    Args:
        contenders: by name.
        rounds: at least 1.
        calls: how often one turn calls its contender; the turn's time is divided by it.
        synchronize: waits until the device has done all that it was given.
    """
    turns = Turns({name: [] for name in contenders}, {})
    for _ in range(rounds):
        for name, contender in contenders.items():
            synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                turns.outputs[name] = contender()
            synchronize()
            turns.seconds[name].append((time.perf_counter() - start) / calls)
    return turns
