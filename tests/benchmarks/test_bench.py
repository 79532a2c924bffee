"""The benchmark: its arithmetic, its table, and that it runs."""

import json
import math
import runpy
import subprocess
import sys
from dataclasses import replace
from itertools import count
from math import inf
from pathlib import Path

import pytest
import torch

from benchmarks import machine, pairing, processes
from benchmarks.limits import Limit, decode_limit, file_limits
from benchmarks.merging import check_same, merge
from benchmarks.model_folder import make_model_folder
from benchmarks.pairing import Pairing, take_turns
from benchmarks.processes import run_lives
from benchmarks.report import Report
from benchmarks.rows import make_row
from benchmarks.settings import DTYPES, EFFORTS, OF_TASKS, QUICK, effort

ROOT = Path(__file__).parents[2]
ROWS = {
    "import": ("import the library", "import the pipeline class"),
    "load": ("import and load", "load again"),
    "memory": ("peak memory",),
    "unet": ("UNet step, as pipelines run it", "UNet forward, nothing prepared"),
    "vae": ("VAE decode",),
    "picture": ("picture, 5 steps",),
    "img2img": ("image to image, 2 steps",),
    "inpaint": ("inpainting, 9 channels, 2 steps",),
    "upscale": ("x4 upscaler, 16 to 64, 2 steps",),
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


def test_contenders_take_turns_at_being_first_and_are_waited_for(monkeypatch):
    seen = []
    clock = count()
    monkeypatch.setattr(pairing.time, "perf_counter", lambda: float(next(clock)))
    turns = take_turns(
        {"a": lambda: seen.append("a") or 1, "b": lambda: seen.append("b") or 2},
        2,
        calls=2,
        synchronize=lambda: seen.append("|"),
    )
    assert "".join(seen) == "|aa||bb||bb||aa|"
    assert turns.outputs == {"a": 1, "b": 2}
    assert turns.seconds == {"a": [0.5, 0.5], "b": [0.5, 0.5]}  # one tick, two calls


@pytest.mark.parametrize(("seconds", "rounds"), [(0, 1), (9, 1), (20, 2), (29, 2), (30, 3), (inf, 5)])
def test_no_round_is_begun_that_would_end_too_late(monkeypatch, seconds, rounds):
    now = [0.0]

    def call():
        now[0] += 10

    monkeypatch.setattr(pairing.time, "perf_counter", lambda: now[0])
    told = []
    turns = take_turns({"a": call}, 5, seconds=seconds, on_round=told.append)
    assert turns.seconds == {"a": [10] * rounds}
    assert told == list(range(rounds))


def test_matmul_rate_is_that_of_the_fastest_way_to_multiply(monkeypatch):
    seen = []

    def take_turns(ways, rounds, **_):
        seen.append({name: way() for name, way in ways.items()})
        return pairing.Turns({"product": [4.0, 4.0], "linear": [2.0, 1.0, 9.0], "convolution": [3.0]}, {})

    monkeypatch.setattr(machine, "take_turns", take_turns)
    assert machine.matmul_rate("cpu", torch.float32, 16) == 2 * 16**3 / 2.0
    product, linear, convolution = seen[-1].values()
    a, b = (torch.randn(16, 16, generator=generator) for generator in [torch.Generator().manual_seed(0)] for _ in "ab")
    assert torch.allclose(product, a @ b, atol=1e-5)
    assert torch.allclose(linear, a @ b.T, atol=1e-5)
    assert torch.allclose(convolution[0, :, 0].T, linear, atol=1e-5)


def test_fresh_processes_take_turns_at_being_first_and_all_tell_their_memory(monkeypatch):
    seen = []
    monkeypatch.setattr(
        processes, "run_life", lambda library, stage, job: seen.append((library, stage)) or {"x": library}
    )
    lives = run_lives(Path("x"), QUICK, "cpu", "float32", None, 3, ["load", "memory"])
    order = ["latentgen", "diffusers", "diffusers", "latentgen", "latentgen", "diffusers"]
    assert seen == [(library, "memory") for library in order]
    assert [(life.latentgen["x"], life.diffusers["x"]) for life in lives] == [("latentgen", "diffusers")] * 3


def test_share_of_the_matrix_product_rate():
    row = make_row("unet", "step", "cpu", "float32", [2.0], [4.0], flops=8 * 10**9, rate=8e9)
    assert row.shares == (0.5, 0.25)
    assert make_row("load", "load", "cpu", "float32", [2.0], [4.0]).shares is None


def test_every_measurement_of_a_default_run_has_its_effort():
    for device, dtypes in DTYPES.items():
        for dtype in dtypes:
            assert all(e.pairs >= 1 for e in EFFORTS[device, dtype].values())
            assert effort(device, dtype, "unet", quick=False, repeats=3).pairs == 3
            assert effort(device, dtype, "unet", quick=False, repeats=3).seconds == inf
            assert effort(device, dtype, "life", quick=True, repeats=None).pairs == 1


def report(**changes):
    machine = {"cpu": "X", "cores": 2, "memory_gib": 8.0, "python": "3", "libraries": {"torch": "2"}}
    settings = {"pixels": 512, "guidance_scale": 7.5, "quick": False, "parts": ["load"], "load_average": None}
    rows = [
        make_row("load", "load again", "cpu", "float32", [0.002, 0.004], [1.0, 1.0]),
        make_row("memory", "peak memory", "cpu", "float32", [3.0], [6.0], unit="GiB"),
    ]
    fields = {"machine": machine, "settings": settings, "torch_import": [], "rows": rows, "seconds": 1.0}
    return Report(**fields | changes)


LIMIT = Limit(name="decode", device="cpu", dtype="float32", unit="GiB", value=1.5, most=4.0)


def step(rate, ours=2.0):
    return make_row("unet", "step", "cpu", "float32", [ours], [4.0], flops=8 * 10**9, rate=rate)


def test_table():
    text = report(rows=[*report().rows, step(1.8e11)], limits=[LIMIT]).to_markdown()
    assert "| decode, CPU, float32 | 1.50 GiB | 4.00 GiB |" in text
    assert "| load again | 3 ms | 1.00 s | 0.003 (0.002 to 0.004) | 2 |  |  |" in text
    assert "| peak memory | 3.00 GiB | 6.00 GiB | 0.50 | 1 |  |  |" in text
    assert "| step | 2.00 s | 4.00 s | 0.50 | 1 | 2% / 1% |  |" in text
    assert "0.18 TFLOP/s (cpu float32)" in text
    assert "2 cores of an X" in text


def test_the_page_gets_its_table_from_the_file(tmp_path):
    figures = runpy.run_path(str(ROOT / "docs" / "figures.py"))
    figures["benchmark"].__globals__["DOCS"] = tmp_path
    page = "top\n<!-- figures: benchmark_cpu -->\nold\n<!-- end -->\nbottom\n"
    assert figures["filled"](page) == page.replace("old", "Not measured yet.")
    (tmp_path / "benchmarks.json").write_text(report().to_json())
    assert figures["filled"](page) == page.replace("old", report().to_markdown().rstrip())


def test_parts_that_were_measured_apart_name_each_rate():
    text = report(rows=[step(1.8e11), step(2e11)]).to_markdown()
    assert "0.18 to 0.2 TFLOP/s (cpu float32)" in text


def test_json_keeps_everything():
    before = report(rows=[*report().rows, step(1.8e11)], torch_import=[1.0], limits=[LIMIT])
    after = Report.from_json(before.to_json())
    assert after == before
    assert json.loads(before.to_json())["rows"][2]["share_diffusers"] == pytest.approx(1 / 90)


def test_parts_measured_one_after_another_make_one_report():
    settings = report().settings
    first = report(
        rows=[*report().rows, step(2e11)], settings=settings | {"parts": ["load", "unet"], "load_average": 0.5},
        torch_import=[1.0],
    )  # fmt: skip
    imports = make_row("import", "import the library", "cpu", "-", [1.0], [2.0])
    second = report(
        rows=[step(2e11, ours=1.0), imports], settings=settings | {"parts": ["import", "unet"]}, torch_import=[2.0],
        seconds=2.0,
    )  # fmt: skip
    both = merge(first, second)
    assert merge(replace(first, limits=[LIMIT]), second).limits == [LIMIT]
    assert both.rows == [imports, *report().rows, step(2e11, ours=1.0)]  # measured again: the new one stands
    assert both.settings["parts"] == ["import", "load", "unet"]
    assert both.settings["load_average"] == 0.5
    assert (both.torch_import, both.seconds) == ([1.0, 2.0], 3.0)


def test_what_was_measured_elsewhere_is_not_mixed_in():
    old = Report.from_json(report().to_json())
    check_same(old, report().machine, report().settings | {"parts": ["vae"], "load_average": 1.0})
    with pytest.raises(ValueError, match=r"cpu was 'X' and is 'Y'.*Leave --merge out"):
        check_same(old, report().machine | {"cpu": "Y"}, report().settings)
    with pytest.raises(ValueError, match="quick was False and is True"):
        check_same(old, report().machine, report().settings | {"quick": True})


def test_flops_of_a_picture_are_those_of_its_steps():
    import torch

    from benchmarks.networks import count_flops, picture_flops

    once, step = torch.ones(3, 3), torch.ones(5, 5)

    def draw(steps, on_step=lambda *_: None):
        _ = once @ once
        for _ in range(steps):
            _ = step @ step
            on_step("pipe", 0, 0.0, {})
        _ = once @ once

    assert picture_flops(draw, 7) == count_flops(lambda: draw(7)) == 2 * (2 * 27 + 7 * 125)


def test_a_decode_tells_the_memory_above_its_weights(tmp_path):
    """Pixels are among it, and no limit is passed: what the loader has mapped is not counted."""
    make_model_folder(tmp_path, QUICK, variants=[None])
    pixels = 3 * QUICK.large**2 * 4 / 2**30
    limit = decode_limit(tmp_path, QUICK, "cpu", None)
    assert pixels < limit.value < 0.5
    assert limit.most == pytest.approx(4e9 / 2**30)


def test_a_file_is_loaded_beside_reading_it(tmp_path):
    make_model_folder(tmp_path, QUICK, variants=[None])
    time, memory = file_limits(tmp_path, QUICK, "cpu", None, pairs=2)
    assert time.value > 0
    assert memory.value > 0
    assert (time.most, memory.most) == (1.3, 1.1)


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
        if row["part"] in OF_TASKS:
            assert row["difference"] <= 1e-4, row["name"]
        if row["part"] in ("unet", "vae", "picture"):
            assert row["flops"] > 0
            assert row["rate"] > 0
            assert 0 < row["share_latentgen"] < 1.5
            assert row["difference"] <= 1e-4, row["name"]  # the same weights give the same result
    decode, *of_files = content["limits"]
    assert 0 < decode["value"] < decode["most"]
    assert [limit["unit"] for limit in of_files] == ["x", "x"]
    assert {"cpu", "cores", "libraries"} <= content["machine"].keys()
