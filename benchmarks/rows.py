"""One row of the result: one quantity, on one device in one format, for both libraries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.pairing import Pairing


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        part: what `--only` calls it.
        latentgen, diffusers: medians, in `unit`.
        ratio: the median of the pairs' ratios latentgen / diffusers; `lowest` and `highest` are their range.
        pairs: how many there were.
        flops: floating-point operations of one call, where they were counted.
        rate: FLOP/s of a large matrix product here, in the same format.
        difference: largest difference of the results, as a share of diffusers' largest magnitude.
    """

    part: str
    name: str
    device: str
    dtype: str
    unit: str
    latentgen: float
    diffusers: float
    ratio: float
    lowest: float
    highest: float
    pairs: int
    flops: int | None = None
    rate: float | None = None
    difference: float | None = None

    @property
    def shares(self) -> tuple[float, float] | None:
        """What part of the matrix-product rate latentgen and diffusers reach; None where FLOPs were not counted."""
        if self.flops is None or self.rate is None:
            return None
        return self.flops / self.latentgen / self.rate, self.flops / self.diffusers / self.rate


def make_row(
    part: str,
    name: str,
    device: str,
    dtype: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    unit: str = "s",
    flops: int | None = None,
    rate: float | None = None,
    difference: float | None = None,
) -> Row:
    """Medians and ratios of paired measurements."""
    pairing = Pairing(ours, theirs)
    return Row(
        part=part,
        name=name,
        device=device,
        dtype=dtype,
        unit=unit,
        latentgen=median(ours),
        diffusers=median(theirs),
        ratio=pairing.ratio,
        lowest=min(pairing.ratios),
        highest=max(pairing.ratios),
        pairs=len(pairing.ratios),
        flops=flops,
        rate=rate,
        difference=difference,
    )
