"""Parts that were measured one after another, on one machine at one size, put together as one report."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from benchmarks.report import Report
from benchmarks.rows import Row
from benchmarks.settings import PARTS

OF_A_RUN = ("parts", "load_average")
"""Settings that may differ between runs that are put together."""

KINDS = [("cpu", "-"), *((device, dtype) for device in ("cuda", "cpu") for dtype in ("float16", "float32", "bfloat16"))]
"""Devices and formats in the order of the tables."""


def check_same(old: Report, machine: dict[str, Any], settings: dict[str, Any]) -> None:
    """See to it that what is about to be measured may stand beside `old`.

    Raises:
        ValueError: if the machine, a version or a size is another; it names them. Sizes that `old` does not know are of parts
            that came later.
    """
    machines, settings_of_both = (
        tuple(json.loads(json.dumps(side)) for side in pair)
        for pair in ((old.machine, machine), (old.settings, settings))
    )
    beyond = settings_of_both[1].keys() - settings_of_both[0].keys()  # of parts that came later: `old` has none of them
    differences = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for (before, now), unasked in ((machines, set()), (settings_of_both, beyond | set(OF_A_RUN)))
        for key in sorted({*before, *now} - unasked)
        if before.get(key) != now.get(key)
    ]
    if differences:
        raise ValueError(
            f"the result that is there cannot be added to: {'; '.join(differences)}. Leave --merge out to begin anew, or "
            "give --json another file."
        )


def merge(old: Report, new: Report) -> Report:
    """`old` with the rows that `new` has measured again replaced, and those that it has beyond them added.

    The load average is the higher of the two, the time that of both.
    """
    measured = {(row.part, row.device, row.dtype) for row in new.rows}
    kept = [row for row in old.rows if (row.part, row.device, row.dtype) not in measured]
    parts = {*old.settings["parts"], *new.settings["parts"]}
    loads = [x for x in (old.settings["load_average"], new.settings["load_average"]) if x is not None]
    return replace(
        new,
        settings=new.settings
        | {"parts": [part for part in PARTS if part in parts], "load_average": max(loads, default=None)},
        torch_import=[*old.torch_import, *new.torch_import],
        rows=sorted([*kept, *new.rows], key=_place),
        limits=[*(limit for limit in old.limits if limit.name not in {x.name for x in new.limits}), *new.limits],
        seconds=old.seconds + new.seconds,
    )


def _place(row: Row) -> tuple[int, int]:
    return KINDS.index((row.device, row.dtype)), PARTS.index(row.part)
