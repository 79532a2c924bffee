"""The one direction of imports, and what `import latentgen` costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "latentgen"

# Each folder may import from the rows below its own, and from itself; those on one row do not know each other.
ROWS = [
    {"cli"},
    {"training", "evaluation"},
    {"pipelines"},
    {"models", "schedulers", "text"},
    {"nn", "diffusion", "weights", "runtime", "bundled"},
]
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The rooms of latentgen that a file imports, inside functions too."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import, which this test does not follow"
            names = [node.module or ""]
        rooms |= {parts[1] for name in names if (parts := name.split("."))[0] == "latentgen" and len(parts) > 1}
    return rooms


def violations() -> list[str]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        here = room(path)
        if here == "__init__":
            continue
        found += [
            f"{path.relative_to(SOURCE)} imports {there}"
            for there in imported(path)
            if there != here and RANK[there] <= RANK[here]
        ]
    return found


def test_every_folder_has_its_row():
    rooms = {room(p) for p in SOURCE.rglob("*.py")} - {"__init__"}
    assert rooms <= set(RANK), f"say in ROWS where {rooms - set(RANK)} stand"


def test_imports_go_one_way():
    assert not violations()


def test_a_wrong_import_would_be_seen(tmp_path, monkeypatch):
    (tmp_path / "nn").mkdir()
    (tmp_path / "nn" / "bad.py").write_text("def f():\n    from latentgen.models.unet import UNetConfig\n")
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    assert violations() == ["nn/bad.py imports models"]


def test_no_drawer_for_odds_and_ends():
    assert not [p for p in SOURCE.rglob("*.py") if p.stem in {"utils", "helpers", "common", "misc"}]


HEAVY = ("transformers", "accelerate", "huggingface_hub", "diffusers", "PIL")


def test_import_brings_no_heavy_package():
    code = f"import sys, torch, latentgen; print([m for m in {HEAVY!r} if m in sys.modules])"
    plain = f"import sys, torch; print([m for m in {HEAVY!r} if m in sys.modules])"
    run = [subprocess.run([sys.executable, "-c", c], capture_output=True, text=True, check=True) for c in (code, plain)]
    assert run[0].stdout == run[1].stdout


def test_import_adds_little_time():
    code = "import torch, time; t = time.perf_counter(); import latentgen; print(time.perf_counter() - t)"
    times = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
             for _ in range(3)]  # fmt: skip
    assert min(times) < 0.3


def test_public_names_resolve():
    import latentgen

    assert all(getattr(latentgen, name) is not None for name in latentgen.__all__)
    assert set(latentgen.__all__) <= set(dir(latentgen))
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = latentgen.Nonsense
