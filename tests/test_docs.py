"""Every Python snippet in README and docs runs, with the bundled model in place of a downloaded one."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from latentgen import bundled_model

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S), 1
    )
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippet_runs(code, tmp_path, monkeypatch):
    code = code.replace("path/to/stable-diffusion-v1-5", str(bundled_model()))
    code = code.replace("examples/", f"{ROOT}/examples/")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("page", [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert not [t for t in targets if not (page.parent / t).exists()]


def test_figures_are_those_that_were_measured():
    namespace = runpy.run_path(str(ROOT / "docs" / "figures.py"))
    for page in namespace["PAGES"]:
        text = page.read_text(encoding="utf-8")
        assert namespace["filled"](text) == text, f"run python docs/figures.py: {page} is not what docs/*.json say"
