"""Command line of the benchmark: choose, measure, report."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # python benchmarks/run.py
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}.items():
    os.environ.setdefault(name, value)

from benchmarks.report import Report, replace_section  # noqa: E402
from benchmarks.rows import Row  # noqa: E402
from benchmarks.settings import DTYPES, FULL, PARTS, QUICK, pairs  # noqa: E402

DOCS = ROOT / "docs"
WHOLE = {"cpu": DOCS / "benchmarks.json", "cuda": DOCS / "benchmarks-cuda.json"}
"""Where a whole run's result goes; other runs write one only where they are told to."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit code."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(prefix="latentgen-bench-") as temporary:
        report = measure(options, Path(options.folder or temporary))
    print("\n" + report.to_markdown())
    device = "cuda" if "gpu" in report.machine else "cpu"
    path = options.json or (WHOLE[device] if _is_whole(options) else None)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report.to_json(), encoding="utf-8")
        print(f"wrote {path}")
    if options.markdown is not None:
        replace_section(options.markdown, f"generated {device}", report.to_markdown())
        print(f"wrote {options.markdown}")
    return 0


def measure(options: argparse.Namespace, folder: Path) -> Report:
    """Measure everything, the fresh processes first, while this one is small."""
    import torch  # not at the top: --help answers at once

    from benchmarks import machine
    from benchmarks.model_folder import hide_progress_bars, make_model_folder, read_through
    from benchmarks.networks import load_both, network_rows
    from benchmarks.processes import life_rows, run_lives, torch_import

    start, load_average = time.perf_counter(), os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    hide_progress_bars()
    settings = QUICK if options.quick else FULL
    devices = _devices(options)
    variants = {device: "fp16" if device == "cuda" else None for device in devices}
    kinds = [(device, dtype) for device in devices for dtype in options.dtype or _dtypes(device, options.quick)]
    if not (folder / "model_index.json").is_file():
        _say(f"writing the model to {folder}")
        make_model_folder(folder, settings, variants=list(variants.values()))
    read_through(folder)

    def count(device: str, dtype: str, kind: str) -> int:
        return pairs(device, dtype, kind, quick=options.quick, repeats=options.repeats)

    lives = []
    for device, dtype in kinds:
        lives += run_lives(
            folder, settings, device, dtype, variants[device], count(device, dtype, "life"), options.only
        )
    rows: list[Row] = life_rows(lives, options.only)
    rates: dict[str, float] = {}
    for device, dtype in kinds:
        _say(f"networks, {device} {dtype}")
        kind = getattr(torch, dtype)
        rate = rates[f"{device} {dtype}"] = machine.matmul_rate(device, kind, settings.matmul[device])
        counts = {part: count(device, dtype, part) for part in ("unet", "vae", "picture")}
        bench = (folder, settings, device, kind, variants[device], rate, counts)
        for row in network_rows(lambda bench=bench: load_both(*bench), options.only):  # type: ignore[misc]
            _say(f"  {row.name}: ratio {row.ratio:.2f}")
            rows.append(row)
    return Report(
        machine=machine.describe(devices[0]),
        settings=asdict(settings) | {"quick": options.quick, "parts": list(options.only), "load_average": load_average},
        rates=rates,
        torch_import=torch_import(lives),
        rows=rows,
        seconds=time.perf_counter() - start,
    )


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _devices(options: argparse.Namespace) -> list[str]:
    import torch

    if options.device is not None:
        return [options.device]
    if not torch.cuda.is_available():
        return ["cpu"]
    return ["cuda", "cpu"] if options.cpu else ["cuda"]


def _dtypes(device: str, quick: bool) -> tuple[str, ...]:
    return DTYPES[device][:1] if quick else DTYPES[device]


def _is_whole(options: argparse.Namespace) -> bool:
    return not options.quick and options.only == list(PARTS) and options.repeats is None and options.dtype is None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="latentgen beside diffusers.")
    parser.add_argument("--quick", action="store_true", help="tiny networks: does it run? (no speed to speak of)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--repeats", type=int, help="pairs of every measurement, instead of each one's own number")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="instead of CUDA where there is one, else the CPU")
    parser.add_argument("--cpu", action="store_true", help="measure the CPU too where there is CUDA")
    parser.add_argument(
        "--dtype", nargs="+", choices=["float32", "bfloat16", "float16"], help="instead of the device's"
    )
    parser.add_argument("--folder", type=Path, help="where the model is, or is written and kept; else a temporary one")
    parser.add_argument("--json", type=Path, help="result; else a whole run writes into docs/")
    parser.add_argument(
        "--markdown", type=Path, nargs="?", const=DOCS / "benchmarks.md", help="page to bring up to date"
    )
    options = parser.parse_args(arguments)
    if options.repeats is not None and options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: give at least 1")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
