"""Writes measured figures from docs/*.json into the pages, between `<!-- figures: NAME -->` and `<!-- end -->`.

python docs/figures.py

A test holds the pages to the files, so no figure can be typed by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PAGES = [DOCS.parent / "README.md", DOCS.parent / "SECURITY.md", *sorted(DOCS.glob("*.md"))]


def read(name: str) -> Any:
    return json.loads((DOCS / name).read_text(encoding="utf-8"))


def bundled() -> str:
    """The shares of right pictures, a row for each attribute."""
    (result,) = read("bundled-model.json")
    sets = result["shares"]
    rows = [f"| right | {' | '.join(sets)} |", f"| --- |{' --- |' * len(sets)}"]
    for key in list(sets.values())[-1]:
        cells = (f"{100 * share[key]:.1f} %" if key in share else "" for share in sets.values())
        rows.append(f"| {'**all of it**' if key == 'all' else key} | {' | '.join(cells)} |")
    rows.append("")
    rows.append(f"{result['captions']} captions in each column, {result['steps']} DDIM steps, guidance scale "
                f"{result['guidance_scale']:g}, {result['dtype']}.")  # fmt: skip
    return "\n".join(rows)


def checker() -> str:
    """How often the checker is right about pictures whose truth is known."""
    rows = ["| what | pictures | share |", "| --- | --- | --- |"]
    rows += [f"| {row['what']} | {row['pictures']} | {100 * row['share']:.1f} % |" for row in read("checker.json")]
    return "\n".join(rows)


def tasks() -> str:
    """How well the bundled models do on pictures that they are given."""
    result = read("tasks.json")
    rows = ["| by | settings | what | share |", "| --- | --- | --- | --- |"]
    for name, run in result["runs"].items():
        for what, share in run["shares"].items():
            rows.append(f"| {name} | {_settings(run['settings'])} | {what} | {100 * share:.1f} % |")
    rows += ["", f"{result['cases']} cases of each, DDIM."]
    return "\n".join(rows)


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ').replace('num inference ', '')} {value:g}" for name, value in values.items()
    )


def classes() -> str:
    """How often the checker reads the class that a class model was asked for, by guidance scale."""
    result = read("classes.json")
    scales, shares = ([point[key] for point in result["curve"]] for key in ("guidance_scale", "share"))
    percents = [f"{100 * share:.1f}" for share in shares]
    return "\n".join(
        [
            "```mermaid",
            "xychart-beta",
            f'    x-axis "guidance scale" [{", ".join(f"{scale:g}" for scale in scales)}]',
            '    y-axis "class read, %" 0 --> 100',
            f"    line [{', '.join(percents)}]",
            "```",
            "",
            f"| guidance scale | {' | '.join(f'{scale:g}' for scale in scales)} |",
            f"| --- |{' --- |' * len(scales)}",
            f"| class read | {' | '.join(f'{percent} %' for percent in percents)} |",
            "",
            f"{result['pictures']} pictures at each scale, {result['steps']} DDIM steps, {result['dtype']}.",
        ]
    )


def superres() -> str:
    """What super-resolution makes of scenes that were made small."""
    result = read("superres.json")
    rows = ["| enlarged by | PSNR | colours and shapes read |", "| --- | --- | --- |"]
    for name, row in result["rows"].items():
        rows.append(f"| {name} | {row['psnr']:.2f} dB | {100 * row['colours and shapes read']:.1f} % |")
    rows += ["", f"{result['scenes']} scenes, {result['steps']} DDIM steps, {result['dtype']}."]
    return "\n".join(rows)


def large() -> str:
    """The step across the borders of tiles."""
    result = read("large.json")
    at, elsewhere = result["step at borders"], result["step elsewhere"]
    return "\n".join(
        [
            "| step between neighbouring pixels | of 255 |",
            "| --- | --- |",
            f"| where a tile begins or ends (pixels {', '.join(map(str, result['borders']))}) | {at:.2f} |",
            f"| elsewhere | {elsewhere:.2f} |",
            f"| **ratio** | {at / elsewhere:.2f} |",
            "",
            f"{result['count']} pictures of {result['side']} x {result['side']}, tiles of {result['tile']} with an overlap of at "
            f"least {result['overlap']}, {result['steps']} DDIM steps.",
        ]
    )


def parity() -> str:
    """What `pytest --record` measured."""
    return "\n".join(
        ["| what | largest difference |", "| --- | --- |"]
        + [f"| {k} | {v:.1e} |" for k, v in read("parity.json").items()]
    )


def summary() -> str:
    """The figures that the README shows."""
    sets = read("bundled-model.json")[0]["shares"]
    pictures = [v for k, v in read("parity.json").items() if k.startswith("picture")]
    networks = [v for k, v in read("parity.json").items() if k.startswith("full width")]
    rows = [
        "| what | measured |",
        "| --- | --- |",
        "| largest pixel difference from diffusers' pipeline, 20 steps, 0..1 scale, over "
        f"{len(pictures)} pairs of model and scheduler | {max(pictures):.1e} |",
        f"| relative difference from diffusers, UNet and VAE of SD 1.5 and 2.1, full width | {max(networks):.1e} |",
    ]
    rows += [
        f"| bundled model, every attribute right: {name} | {100 * share['all']:.1f} % |" for name, share in sets.items()
    ]
    return "\n".join(rows)


def benchmark(name: str) -> str:
    """The tables of a run of the benchmark, if there was one."""
    if not (DOCS / name).exists():
        return "Not measured yet."
    sys.path.insert(0, str(DOCS.parent))  # benchmarks/ is no installed package
    try:
        from benchmarks.report import Report
    finally:
        del sys.path[0]
    return Report.from_json((DOCS / name).read_text(encoding="utf-8")).to_markdown().rstrip()


def fuzz() -> str:
    """What hostile files were tried, and what became of it."""
    if not (DOCS / "fuzz.json").exists():
        return "Not measured yet."
    lines = ["| tried | how many | must not happen | happened |", "| --- | ---: | --- | ---: |"]
    for row in read("fuzz.json").values():
        wrong = [what for what in row["must_be_zero"] if row[what]]
        happened = ", ".join(f"{what.replace('_', ' ')} {row[what]}" for what in wrong) or "0"
        listed = ", ".join(what.replace("_", " ") for what in row["must_be_zero"])
        lines.append(f"| {row['what']} | {row['cases']} | {listed} | {happened} |")
    bombs = read("fuzz.json")["bombs"]
    malformed = read("fuzz.json")["malformed"]
    lines += [
        "",
        f"The slowest refusal of a malformed file took {malformed['slowest_ms'] / 1000:.2f} s (limit 2 s), that of a bomb "
        f"{bombs['slowest_ms'] / 1000:.2f} s (limit 0.2 s) and {bombs['largest_kb'] / 1024:.0f} MiB (limit 64 MiB).",
    ]
    return "\n".join(lines)


FIGURES: dict[str, Callable[[], str]] = {
    "bundled": bundled,
    "checker": checker,
    "parity": parity,
    "tasks": tasks,
    "superres": superres,
    "large": large,
    "classes": classes,
    "fuzz": fuzz,
    "summary": summary,
    "benchmark_cpu": lambda: benchmark("benchmarks.json"),
    "benchmark_tasks": lambda: benchmark("benchmarks-tasks.json"),
    "benchmark_cuda": lambda: benchmark("benchmarks-cuda.json"),
}


def filled(text: str) -> str:
    """The page with every block of figures made anew."""

    def block(match: re.Match[str]) -> str:
        return f"<!-- figures: {match[1]} -->\n{FIGURES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- figures: (\w+) -->\n.*?<!-- end -->", block, text, flags=re.S)


def main() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if filled(text) != text:
            page.write_text(filled(text), encoding="utf-8")
            print(page)


if __name__ == "__main__":
    main()
