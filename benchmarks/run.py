"""The benchmark from its command line to its result."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

from benchmarks.options import DOCS, Job, choose  # noqa: E402
from benchmarks.progress import say  # noqa: E402
from benchmarks.report import Report  # noqa: E402
from benchmarks.settings import OF_TASKS  # noqa: E402
from benchmarks.stamp import read_variants  # noqa: E402

if TYPE_CHECKING:
    from benchmarks.networks import Bench
    from benchmarks.rows import Row


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what was asked for; the exit code: 0, or 2 for what cannot be measured or would mix two machines."""
    try:
        job = choose(arguments, cuda=_finds_cuda)
        from benchmarks.machine import describe  # imports torch: not before the command line is read
        from benchmarks.merging import check_same, merge

        machine = describe(job.device)
        before = _read_result(job)
        if before is not None:
            check_same(before, machine, job.settings(None))
        if job.folder is not None:
            read_variants(job.folder, job.sizes)
    except ValueError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="latentgen-bench-") as temporary:
        report = measure(job, job.folder or Path(temporary), machine)
    print("\n" + report.to_markdown())
    if job.result is not None:
        report = report if before is None else merge(before, report)
        job.result.parent.mkdir(parents=True, exist_ok=True)
        job.result.write_text(report.to_json(), encoding="utf-8")
        then = "; python docs/figures.py brings the page up to date" if job.result.parent == DOCS else ""
        print(f"wrote {job.result}{then}")
    return 0


def _read_result(job: Job) -> Report | None:
    """What is there to be added to."""
    if not job.merge or job.result is None or not job.result.is_file():
        return None
    return Report.from_json(job.result.read_text(encoding="utf-8"))


def _finds_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def measure(job: Job, folder: Path, machine: dict[str, Any]) -> Report:
    """Measure everything, the fresh processes first, while this one is small."""
    from benchmarks.limits import decode_limit, file_limits
    from benchmarks.model_folder import (
        UPSCALER,
        ensure_model_folder,
        ensure_upscaler_folder,
        hide_progress_bars,
        read_through,
    )
    from benchmarks.processes import life_rows, run_lives, torch_import

    start, load_average = time.perf_counter(), os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    hide_progress_bars()
    ensure_model_folder(folder, job.sizes, list(dict.fromkeys(job.variants.values())))
    if "upscale" in job.parts:
        ensure_upscaler_folder(folder / UPSCALER, job.sizes)
    read_through(folder)
    lives = []
    for device, dtype in job.kinds:
        count = job.effort(device, dtype, "life").pairs
        lives += run_lives(folder, job.sizes, device, dtype, job.variants[device], count, job.parts)
    rows = life_rows(lives, job.parts)
    for device, dtype in job.kinds:
        for row in _network_rows(partial(_load, job, folder, device, dtype), job.parts):
            say(f"  {row.name}: ratio {row.ratio:.2f}")
            rows.append(row)
    limits = [decode_limit(folder, job.sizes, job.device, job.variants[job.device])] if "decode" in job.parts else []
    if "file" in job.parts:
        pairs = job.effort(*job.kinds[0], "file").pairs
        limits += file_limits(folder, job.sizes, job.device, job.variants[job.device], pairs)
    return Report(
        machine=machine,
        settings=job.settings(load_average),
        torch_import=torch_import(lives),
        rows=rows,
        limits=limits,
        seconds=time.perf_counter() - start,
    )


def _network_rows(load: Callable[[], Bench], parts: Iterable[str]) -> Iterator[Row]:
    """The rows of `parts`, one after the other; nothing is loaded if none of them is here."""
    import torch

    from benchmarks import networks, tasks

    wanted = [measure for part, measure in (networks.MEASURE | tasks.MEASURE).items() if part in parts]
    if not wanted:
        return
    bench = load()
    for measure in wanted:
        yield from measure(bench)
        gc.collect()
    del bench
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _load(job: Job, folder: Path, device: str, dtype: str) -> Bench:
    """Both libraries' pipelines, and what they are measured by."""
    import torch

    from benchmarks.machine import matmul_rate
    from benchmarks.networks import load_both

    kind = getattr(torch, dtype)
    say(f"matrix product and loading, {device} {dtype}")
    rate = matmul_rate(device, kind, job.sizes.matmul[device])
    efforts = {part: job.effort(device, dtype, part) for part in ("unet", "vae", "picture", *OF_TASKS)}
    return load_both(folder, job.sizes, device, kind, job.variants[device], rate, efforts)


if __name__ == "__main__":
    raise SystemExit(main())
