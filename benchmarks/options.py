"""The command line, and what it comes to: what is measured, where, and where the result goes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.settings import DTYPES, EFFORTS, FULL, PARTS, QUICK, Effort, Settings, effort

DOCS = Path(__file__).resolve().parents[1] / "docs"
WHOLE = {"cpu": DOCS / "benchmarks.json", "cuda": DOCS / "benchmarks-cuda.json"}
"""Where the result of a whole run, or of parts that are put together, goes where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done.

    Attributes:
        kinds: devices and formats.
        repeats: pairs of everything; None leaves it to the table.
        folder: where the model is or is written and kept; None is a temporary one.
        result: file to write; None writes none.
        merge: whether to add to what `result` holds.
    """

    quick: bool
    parts: list[str]
    kinds: list[tuple[str, str]]
    repeats: int | None
    folder: Path | None
    result: Path | None
    merge: bool

    @property
    def sizes(self) -> Settings:
        """Those of the models."""
        return QUICK if self.quick else FULL

    @property
    def device(self) -> str:
        """The first device: the one that the result is named after."""
        return self.kinds[0][0]

    @property
    def variants(self) -> dict[str, str | None]:
        """Which files each device loads."""
        return {device: "fp16" if device == "cuda" else None for device, _ in self.kinds}

    def effort(self, device: str, dtype: str, kind: str) -> Effort:
        """How often to measure "life" or a part."""
        return effort(device, dtype, kind, quick=self.quick, repeats=self.repeats)

    def settings(self, load_average: float | None) -> dict[str, Any]:
        """What the report says of them."""
        return asdict(self.sizes) | {"quick": self.quick, "parts": self.parts, "load_average": load_average}


def choose(arguments: Sequence[str] | None, *, cuda: Callable[[], bool]) -> Job:
    """Read the command line; `cuda()` says whether PyTorch finds a GPU.

    Raises:
        ValueError: for what cannot be measured.
        SystemExit: for what argparse refuses, and for --help.
    """
    options = _parser().parse_args(arguments)
    if options.repeats is not None and options.repeats < 1:
        raise ValueError(f"--repeats {options.repeats}: give at least 1.")
    there = cuda()
    if options.device == "cuda" and not there:
        raise ValueError(
            "--device cuda: PyTorch finds no GPU here. Leave it out to measure the CPU, or see `nvidia-smi` and whether "
            "this PyTorch is built with CUDA."
        )
    if options.quick and options.merge and options.json is None:
        raise ValueError("--quick --merge: say with --json what to add to; the docs hold no tiny networks.")
    devices = [options.device or ("cuda" if there else "cpu")]
    if options.cpu and devices == ["cuda"]:
        devices.append("cpu")
    chosen = {device: options.dtype or _dtypes(device, options.quick) for device in devices}
    kinds = list(dict.fromkeys((device, dtype) for device, dtypes in chosen.items() for dtype in dtypes))
    for device, dtype in kinds:
        if (device, dtype) not in EFFORTS:
            raise ValueError(
                f"--dtype {dtype} is not measured on a CPU: CPUs have no such arithmetic and take about a thousand times "
                "as long as in float32, so nobody draws so. Use float32 or bfloat16, or a GPU without --cpu."
            )
    whole = not options.quick and options.only == list(PARTS) and options.repeats is None and options.dtype is None
    return Job(
        quick=options.quick,
        parts=[part for part in PARTS if part in options.only],
        kinds=kinds,
        repeats=options.repeats,
        folder=options.folder,
        result=options.json or (WHOLE[devices[0]] if whole or options.merge else None),
        merge=options.merge,
    )


def _dtypes(device: str, quick: bool) -> tuple[str, ...]:
    return DTYPES[device][:1] if quick else DTYPES[device]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="latentgen beside diffusers.")
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny networks: does it run? (no speed to speak of)")
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    add("--merge", action="store_true", help="add to the result that is there, replacing what is measured again")
    add("--repeats", type=int, help="pairs of every measurement, instead of each one's own number and time")
    add("--device", choices=["cpu", "cuda"], help="instead of CUDA where there is one, else the CPU")
    add("--cpu", action="store_true", help="measure the CPU too where there is CUDA")
    add("--dtype", nargs="+", choices=["float32", "bfloat16", "float16"], help="instead of the device's")
    add("--folder", type=Path, help="where the model is, or is written and kept; else a temporary one")
    add("--json", type=Path, help="result; else a whole run, and --merge, write into docs/")
    return parser
