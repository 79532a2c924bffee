"""The result as a table to read and as JSON to compute with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Self

from benchmarks.limits import Limit
from benchmarks.rows import Row

HEADER = "| what | latentgen | diffusers | ratio | pairs | share of matmul rate | difference |"
RULE = "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
SHARES = ("share_latentgen", "share_diffusers")


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a run found, or several that measured one part after another.

    Attributes:
        machine: see `machine.describe`.
        settings: sizes; whether they are tiny; the parts that were measured; the load average before.
        torch_import: seconds of `import torch` alone, in each process that was timed.
        rows: the measurements.
        limits: what is held to a limit.
        seconds: how long the run took.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    torch_import: Sequence[float]
    rows: Sequence[Row]
    seconds: float
    limits: list[Limit] = field(default_factory=list)

    def to_json(self) -> str:
        """Every field, and the shares with their rows."""
        content = asdict(self)
        for row, written in zip(self.rows, content["rows"], strict=True):
            written |= dict(zip(SHARES, row.shares or (None, None), strict=True))
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        content = json.loads(text)
        rows = [Row(**{k: v for k, v in row.items() if k not in SHARES}) for row in content["rows"]]
        limits = [Limit(**limit) for limit in content.get("limits", ())]
        return cls(**content | {"rows": rows, "limits": limits})

    def to_markdown(self) -> str:
        """A table for every device and format, and what it was measured on."""
        lines = [_machine_line(self.machine), "", _size_line(self.settings), "", self._rates_line()]
        for device, dtype in dict.fromkeys((row.device, row.dtype) for row in self.rows):
            title = "A fresh process" if dtype == "-" else f"{device.upper()}, {dtype}"
            chosen = [row for row in self.rows if (row.device, row.dtype) == (device, dtype)]
            lines += ["", f"**{title}**", "", HEADER, RULE, *map(_table_line, chosen)]
        if self.limits:
            lines += ["", "**Held to a limit**", "", "| what | measured | at most |", "| --- | ---: | ---: |"]
            lines += [
                f"| {x.name}, {x.device.upper()}, {x.dtype} | {_amount(x.value, x.unit)} | {_amount(x.most, x.unit)} |"
                for x in self.limits
            ]
        if self.torch_import:
            lines += [
                "",
                f"`import torch` alone took {_amount(median(self.torch_import), 's')} and is not in the import rows.",
            ]
        lines += ["", f"It took {self.seconds / 60:.1f} minutes in all."]
        return "\n".join(lines) + "\n"

    def _rates_line(self) -> str:
        """The rate that the shares are of; parts that were measured apart have each their own."""
        measured: dict[str, list[float]] = {}
        for row in self.rows:
            if row.rate is not None:
                measured.setdefault(f"{row.device} {row.dtype}", []).append(row.rate / 1e12)
        texts = [" to ".join(dict.fromkeys(f"{rate:.3g}" for rate in (min(r), max(r)))) for r in measured.values()]
        rates = [f"{text} TFLOP/s ({kind})" for text, kind in zip(texts, measured, strict=True)]
        return "Measured rate of a large square matrix product: " + ", ".join(rates) + "." if rates else ""


def _machine_line(machine: dict[str, Any]) -> str:
    place = f"{machine['cores']} cores of an {machine['cpu']}" if "gpu" not in machine else f"one {machine['gpu']}"
    libraries = ", ".join(f"{name} {number}" for name, number in machine["libraries"].items())
    return f"Measured on {place}, {machine['memory_gib']:g} GiB of memory, Python {machine['python']}, {libraries}."


def _size_line(settings: dict[str, Any]) -> str:
    side, latent, loaded = settings["pixels"], settings["pixels"] // 8, settings["load_average"]
    quick = " Tiny networks (`--quick`): these numbers say nothing about speed." if settings["quick"] else ""
    busy = f" Load average when it began: {loaded:.1f}." if loaded is not None else ""
    return (
        f"UNet: batch 2, {latent} x {latent} latents. VAE and picture: {side} x {side}, guidance "
        f"{settings['guidance_scale']:g}, DDIM.{busy}{quick}"
    )


def _amount(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:.2f} {unit}"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.1g}"


def _table_line(row: Row) -> str:
    ratio = _ratio(row.ratio) + (f" ({_ratio(row.lowest)} to {_ratio(row.highest)})" if row.pairs > 1 else "")
    shares = "" if row.shares is None else f"{row.shares[0]:.0%} / {row.shares[1]:.0%}"
    off = "" if row.difference is None else f"{row.difference:.1g}"
    amounts = f"{_amount(row.latentgen, row.unit)} | {_amount(row.diffusers, row.unit)}"
    return f"| {row.name} | {amounts} | {ratio} | {row.pairs} | {shares} | {off} |"
