"""`make fuzz`: every row at its full number, each in a process of its own; the figures go to docs/fuzz.json.

    python fuzz/run.py [--quick] [--only ROW ...] [--seed N] [--json FILE]

Ends with 1 if anything happened that should not have.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # python fuzz/run.py
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]


class Row(NamedTuple):
    """A module of this folder, how often it is tried, how many at most in one process, and what it says in the table."""

    module: str
    count: int
    at_once: int
    what: str


ROWS = (
    Row("malformed", 10_000, 1000, "malformed safetensors files"),
    Row("bombs", 21, 21, "headers that would take memory or time"),
    Row("pickled", 60, 60, "pickles under names of weights and beside them"),
    Row("hooks", 500, 500, "classes, modules and switches that name code"),
    Row("paths", 200, 200, "names that lead out of their folder"),
    Row("state_dicts", 200, 100, "weights that do not fit their network"),
    Row("settings", 2000, 1000, "settings, vocabularies and records with values of all kinds"),
    Row("single_files", 500, 250, "single files whose tensors are of other names, shapes and kinds"),
    Row("adapters", 2000, 500, "adapters and embeddings, likewise"),
    Row("round_trips", 300, 150, "saved and loaded again"),
    Row("races", 200, 50, "rounds of eight readers and a writer"),
    Row("bits", 1000, 250, "flipped bits, with verify=True"),
)
LIMIT = 900
"""Seconds that one process may take before it counts as hanging."""


def run_row(row: Row, count: int, seed: int) -> dict[str, Any]:
    """All of a row, in as many processes as it takes; a process that dies or hangs is counted."""
    counts: Counter[str] = Counter(cases=0, crashed=0, hung=0)
    examples: dict[str, list[str]] = {}
    start = time.perf_counter()
    for number, begun in enumerate(range(0, count, row.at_once)):
        code = f"from fuzz.run import alone; alone({row.module!r}, {min(row.at_once, count - begun)}, {seed * 1000 + number})"
        try:
            done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            counts["hung"] += 1
            continue
        if done.returncode:
            counts["crashed"] += 1
            examples.setdefault("crashed", []).append(f"{done.returncode}: {done.stderr[-500:]}")
            continue
        told = json.loads(done.stdout.splitlines()[-1])
        for what, cases in told.pop("examples").items():
            examples.setdefault(what, []).extend(cases[:5])
        for key, value in told.items():
            largest = key.startswith(("slowest", "largest"))
            counts[key] = max(counts[key], value) if largest else counts[key] + value
    return {"what": row.what, **counts, "examples": examples, "seconds": round(time.perf_counter() - start, 1)}


def alone(module: str, count: int, seed: int) -> None:
    """One process of a row: prints what it counted."""
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="latentgen-fuzz-") as folder:
        print(json.dumps(import_module(f"fuzz.{module}").run(count, seed, Path(folder))))


def zeros(row: Row) -> tuple[str, ...]:
    """What must not have happened."""
    return ("crashed", "hung", *import_module(f"fuzz.{row.module}").ZEROS)


def main() -> int:
    """Run the rows; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a fiftieth of everything")
    parser.add_argument("--only", nargs="+", choices=[row.module for row in ROWS], help="these rows alone")
    parser.add_argument("--seed", type=int, default=0, help="other cases")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where the figures go; those of other rows stay (default: docs/fuzz.json)",
    )
    options = parser.parse_args()
    rows = [row for row in ROWS if not options.only or row.module in options.only]
    result, bad = {}, 0
    for row in rows:
        count = max(10, row.count // 50) if options.quick else row.count
        found = run_row(row, count, options.seed)
        wrong = {what: found[what] for what in zeros(row) if found.get(what)}
        bad += len(wrong)
        print(f"{row.what}: {found['cases']} tried, {wrong or 'nothing wrong'}, {found['seconds']} s", flush=True)
        for what in wrong:
            print("\n".join(f"    {what}: {case}" for case in found["examples"].get(what, [])), flush=True)
        result[row.module] = {**found, "must_be_zero": zeros(row)}
    target = options.json or (None if options.quick else ROOT / "docs" / "fuzz.json")
    if target:
        kept = json.loads(target.read_text(encoding="utf-8")) if options.only and target.is_file() else {}
        ordered = {row.module: (kept | result)[row.module] for row in ROWS if row.module in kept | result}
        target.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
