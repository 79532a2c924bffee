"""What needs a fresh process: import time, load time and peak memory, the libraries taking turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.life import STAGES
from benchmarks.pairing import in_turn
from benchmarks.progress import say
from benchmarks.rows import Row, make_row
from benchmarks.settings import Settings

LIFE = Path(__file__).with_name("life.py")
SOURCE = Path(__file__).resolve().parents[1] / "src"
GIB = 2**30
LIBRARIES = ("latentgen", "diffusers")

ROWS = (
    ("import", "import_library", "import the library", "s", 1.0),
    ("import", "import_pipeline", "import the pipeline class", "s", 1.0),
    ("load", "import_and_load", "import and load", "s", 1.0),
    ("load", "load", "load again", "s", 1.0),
    ("memory", "peak", "peak memory", "GiB", 1.0 / GIB),
)
"""Part, key in a life's result, name of the row, unit, and what to multiply with."""


@dataclass(frozen=True)
class Life:
    """What one pair of processes told: the same keys for both."""

    device: str
    dtype: str
    latentgen: dict[str, float]
    diffusers: dict[str, float]


def run_lives(
    folder: Path, settings: Settings, device: str, dtype: str, variant: str | None, pairs: int, parts: Iterable[str]
) -> list[Life]:
    """Let both libraries live `pairs` times, as far as the furthest of `parts`."""
    wanted = [stage for stage in STAGES if stage in parts]
    if not wanted:
        return []
    job: dict[str, object] = {
        "folder": str(folder), "device": device, "dtype": dtype, "variant": variant, "prompt": "a red square",
        "height": settings.pixels, "width": settings.pixels, "num_inference_steps": 1,
        "guidance_scale": settings.guidance_scale,
    }  # fmt: skip
    lives = []
    for k in range(pairs):
        told = {}
        for library in in_turn(LIBRARIES, k):
            say(f"fresh process, {device} {dtype}, up to {wanted[-1]}: pair {k + 1} of {pairs}, {library}")
            told[library] = run_life(library, wanted[-1], job)
        lives.append(Life(device, dtype, **told))
    return lives


def run_life(library: str, stage: str, job: dict[str, object]) -> dict[str, float]:
    """What a process tells in which a library lives as far as `stage`."""
    paths = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(LIFE), library, stage, json.dumps(job)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{library} failed at {stage}:\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def life_rows(lives: list[Life], parts: Iterable[str]) -> list[Row]:
    """The rows of `parts`: imports over all lives, the rest by device and format."""
    rows = []
    kinds = list(dict.fromkeys((life.device, life.dtype) for life in lives))
    for part, key, name, unit, factor in ROWS:
        if part not in parts:
            continue
        for device, dtype in [("cpu", "-")] if part == "import" else kinds:
            chosen = [
                x for x in lives if key in x.latentgen and (part == "import" or (x.device, x.dtype) == (device, dtype))
            ]
            if chosen:
                ours = [life.latentgen[key] * factor for life in chosen]
                theirs = [life.diffusers[key] * factor for life in chosen]
                rows.append(make_row(part, name, device, dtype, ours, theirs, unit=unit))
    return rows


def torch_import(lives: list[Life]) -> list[float]:
    """Seconds of `import torch` alone, in every process."""
    return [side["import_torch"] for life in lives for side in (life.latentgen, life.diffusers)]
