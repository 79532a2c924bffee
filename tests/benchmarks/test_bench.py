"""The benchmark: its arithmetic, its page, and that it runs."""

import json
import math
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from benchmarks import pairing
from benchmarks.pairing import Pairing, take_turns
from benchmarks.report import Report, replace_section
from benchmarks.rows import make_row
from benchmarks.settings import DTYPES, PAIRS, pairs

ROOT = Path(__file__).parents[2]
ROWS = {
    "import": ("import the library", "import the pipeline class"),
    "load": ("import and load", "load again"),
    "memory": ("peak memory",),
    "unet": ("UNet step, as pipelines run it", "UNet forward, nothing prepared"),
    "vae": ("VAE decode",),
    "picture": ("picture, 5 steps",),
}


def test_ratio_is_the_median_of_the_pairs_and_not_the_ratio_of_medians():
    # The machine is ten times slower in the middle pair; our share of it is the same.
    pairing = Pairing([1.0, 20.0, 6.0], [2.0, 40.0, 3.0])
    assert pairing.ratios == [0.5, 0.5, 2.0]
    assert pairing.ratio == 0.5


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [1.0, 2.0]), ([], [])])
def test_what_is_not_paired_is_refused(ours, theirs):
    with pytest.raises(ValueError, match="pairs"):
        Pairing(ours, theirs)


def test_contenders_take_turns_and_are_waited_for(monkeypatch):
    seen = []
    clock = count()
    monkeypatch.setattr(pairing.time, "perf_counter", lambda: float(next(clock)))
    turns = take_turns(
        {"a": lambda: seen.append("a") or 1, "b": lambda: seen.append("b") or 2},
        2,
        calls=2,
        synchronize=lambda: seen.append("|"),
    )
    assert "".join(seen) == "|aa||bb|" * 2
    assert turns.outputs == {"a": 1, "b": 2}
    assert turns.seconds == {"a": [0.5, 0.5], "b": [0.5, 0.5]}  # one tick, two calls


def test_share_of_the_matrix_product_rate():
    row = make_row("unet", "step", "cpu", "float32", [2.0], [4.0], flops=8 * 10**9, rate=8e9)
    assert row.shares == (0.5, 0.25)
    assert make_row("load", "load", "cpu", "float32", [2.0], [4.0]).shares is None


def test_every_measurement_of_a_default_run_has_a_number_of_pairs():
    for device, dtypes in DTYPES.items():
        for dtype in dtypes:
            assert all(n >= 1 for n in PAIRS[device, dtype].values())
            assert pairs(device, dtype, "unet", quick=False, repeats=3) == 3
            assert pairs(device, dtype, "life", quick=True, repeats=None) == 1


def report(**changes):
    machine = {"cpu": "X", "cores": 2, "memory_gib": 8.0, "python": "3", "libraries": {"torch": "2"}}
    settings = {"pixels": 512, "guidance_scale": 7.5, "quick": False, "load_average": None}
    rows = [
        make_row("load", "load again", "cpu", "float32", [0.002, 0.004], [1.0, 1.0]),
        make_row("memory", "peak memory", "cpu", "float32", [3.0], [6.0], unit="GiB"),
    ]
    fields = {"machine": machine, "settings": settings, "rates": {}, "torch_import": [], "rows": rows, "seconds": 1.0}
    return Report(**fields | changes)


def test_table():
    text = report(rates={"cpu float32": 1.8e11}).to_markdown()
    assert "| load again | 3 ms | 1.00 s | 0.003 (0.002 to 0.004) | 2 |  |  |" in text
    assert "| peak memory | 3.00 GiB | 6.00 GiB | 0.50 | 1 |  |  |" in text
    assert "0.18 TFLOP/s (cpu float32)" in text
    assert "2 cores of an X" in text


def test_section_of_a_page_is_replaced_and_the_rest_kept(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("top\n<!-- generated cpu: begin -->\nold\n<!-- generated cpu: end -->\nbottom\n")
    for text in ("new\n", "newer\n"):
        replace_section(page, "generated cpu", text)
    expected = "top\n<!-- generated cpu: begin -->\n\nnewer\n\n<!-- generated cpu: end -->\nbottom\n"
    assert page.read_text() == expected
    with pytest.raises(ValueError, match="generated cuda"):
        replace_section(page, "generated cuda", "x")


def test_the_page_in_the_docs_has_both_sections(tmp_path):
    page = tmp_path / "benchmarks.md"
    page.write_text((ROOT / "docs" / "benchmarks.md").read_text())
    for device in ("cpu", "cuda"):
        replace_section(page, f"generated {device}", report().to_markdown())


@pytest.mark.slow
def test_quick_run_gives_every_row(tmp_path):
    result = tmp_path / "result.json"
    command = [sys.executable, "benchmarks/run.py", "--quick", "--device", "cpu", "--json", str(result)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    content = json.loads(result.read_text())
    assert [(row["part"], row["name"]) for row in content["rows"]] == [
        (p, n) for p, names in ROWS.items() for n in names
    ]
    for row in content["rows"]:
        for key in ("latentgen", "diffusers", "ratio", "lowest", "highest", "pairs"):
            assert math.isfinite(row[key]), (row["name"], key)
            assert row[key] > 0, (row["name"], key)
        if row["part"] in ("unet", "vae"):
            assert row["flops"] > 0
            assert 0 < row["share_latentgen"] < 1.5
        if row["part"] in ("unet", "vae", "picture"):
            assert row["difference"] <= 1e-4, row["name"]  # the same weights give the same result
    assert all(rate > 0 for rate in content["rates"].values())
    assert {"cpu", "cores", "libraries"} <= content["machine"].keys()
