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
    {"__main__"},
    {"cli"},
    {"training", "evaluation"},
    {"pipelines"},
    {"models", "schedulers", "text"},
    {"nn", "diffusion", "weights", "runtime", "bundled"},
]
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> tuple[set[str], set[str]]:
    """The rooms of latentgen that a file imports, and what it takes from the package itself; inside functions too.

    `import latentgen`, and `import latentgen.nn` without `as`, bind the package, and with it every room: "latentgen".
    """
    rooms, whole = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, *inner = alias.name.split(".")
                if package == "latentgen":
                    rooms |= set(inner[:1])
                    whole |= {"latentgen"} if alias.asname is None or not inner else set()
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import, which this test does not follow"
            package, *inner = (node.module or "").split(".")
            if package == "latentgen":
                rooms |= set(inner[:1])
                whole |= set() if inner else {alias.name for alias in node.names}
    return rooms, whole


def violations() -> list[str]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        here = room(path)
        if here == "__init__":
            continue
        rooms, whole = imported(path)
        found += [
            f"{path.relative_to(SOURCE)} imports {there}"
            for there in sorted(rooms)
            if there != here and RANK[there] <= RANK[here]
        ]
        if here not in (
            "cli",
            "__main__",
        ):  # the package hands out names from every room: below the top, only its version may be taken
            found += [f"{path.relative_to(SOURCE)} takes {name} from the package" for name in whole - {"__version__"}]
    return found


def test_every_folder_has_its_row():
    rooms = {room(p) for p in SOURCE.rglob("*.py")} - {"__init__"}
    assert rooms <= set(RANK), f"say in ROWS where {rooms - set(RANK)} stand"


def test_imports_go_one_way():
    assert not violations()


@pytest.mark.parametrize(
    ("place", "source", "found"),
    [
        ("nn/bad.py", "def f():\n    from latentgen.models.unet import UNetConfig", ["imports models"]),
        ("nn/bad.py", "import latentgen.models.unet as unet", ["imports models"]),
        ("nn/bad.py", "import latentgen.nn.attention", ["takes latentgen from the package"]),
        ("nn/bad.py", "from latentgen import Text2ImagePipeline", ["takes Text2ImagePipeline from the package"]),
        ("training/bad.py", "from latentgen import models", ["takes models from the package"]),
        ("nn/bad.py", "from latentgen import *", ["takes * from the package"]),
        ("nn/bad.py", "import latentgen; latentgen.pipelines", ["takes latentgen from the package"]),
        ("nn/bad.py", "import latentgen as lg", ["takes latentgen from the package"]),
        ("schedulers/bad.py", "from latentgen.text import encode_prompts", ["imports text"]),
        ("nn/good.py", "from latentgen import __version__", []),
        ("nn/good.py", "import torch, latentgen.nn.attention as a\nfrom latentgen.nn.residual import B", []),
        ("models/good.py", "from latentgen.nn import attention", []),
        ("cli/__init__.py", "import latentgen\nfrom latentgen import Text2ImagePipeline, training", []),
    ],
)  # fmt: skip
def test_a_wrong_import_would_be_seen(tmp_path, monkeypatch, place, source, found):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(source + "\n")
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    assert violations() == [f"{place} {what}" for what in found]


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
