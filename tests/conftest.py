"""Fixtures that several folders of tests share."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.append(str(Path(__file__).parent / "text"))  # where tiny_clip is

import pytest
import torch


def pytest_collection_modifyitems(items):
    """Tests marked `cuda` run wherever a GPU is, without being asked for."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="PyTorch finds no CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny networks run no faster on several cores, and tests may share the machine with each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def reference():
    """Published model folders (settings and tokenizers, no weights) beside the project."""
    from tiny_sd import REFERENCE

    if not REFERENCE.is_dir():
        pytest.skip("shared/reference/folders, with the settings of published models, is not beside this checkout")
    return REFERENCE


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny Stable Diffusion 1 with a tiny tokenizer, 32 x 32 pixels. Copy it before changing it."""
    from tiny_sd import make_model_folder

    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny-sd")


@pytest.fixture(scope="session")
def sd1_folder(reference, tmp_path_factory):
    """A tiny Stable Diffusion 1 with the published tokenizer."""
    from tiny_sd import make_model_folder

    tokenizer = reference / "stable-diffusion-v1-5" / "tokenizer"
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny-sd1", tokenizer=tokenizer)


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help="write measured parity figures to docs/parity.json")


@pytest.fixture
def record(request):
    """`record(name, value)` keeps a measured figure for docs/parity.md, where pytest runs with --record."""

    def keep(name, value):
        if request.config.getoption("--record"):
            path = Path(__file__).resolve().parents[1] / "docs" / "parity.json"
            figures = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(dict(sorted({**figures, name: float(f"{value:.2g}")}.items())), indent=2) + "\n")

    return keep
