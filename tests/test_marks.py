"""Which tests an ordinary run leaves out."""

import shutil
from pathlib import Path

import pytest
import torch

pytest_plugins = ["pytester"]

TESTS = Path(__file__).parent
SOURCE = """
import pytest

def test_plain(): pass

@pytest.mark.cuda
def test_cuda(): pass

@pytest.mark.slow
def test_slow(): pass
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """`run(gpu, *arguments)`: outcomes of an ordinary, a `cuda` and a `slow` test under this project's settings."""
    shutil.copy(TESTS.parent / "pyproject.toml", pytester.path)
    tests = pytester.mkdir("tests")
    shutil.copy(TESTS / "conftest.py", tests)
    (tests / "test_three.py").write_text(SOURCE)

    def outcomes(gpu, *arguments):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        result = pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)
        return result, result.parseoutcomes()

    return outcomes


def test_tests_for_a_gpu_run_where_there_is_one(run):
    _, outcomes = run(True)
    assert (outcomes["passed"], outcomes["deselected"], "skipped" in outcomes) == (2, 1, False)


def test_tests_for_a_gpu_are_skipped_with_a_reason_elsewhere(run):
    result, outcomes = run(False)
    assert (outcomes["passed"], outcomes["deselected"], outcomes["skipped"]) == (1, 1, 1)
    result.stdout.fnmatch_lines(["SKIPPED*PyTorch finds no CUDA device"])


@pytest.mark.parametrize("mark", ["slow", "cuda"])
def test_each_kind_can_be_run_alone(run, mark):
    _, outcomes = run(True, "-m", mark)
    assert (outcomes["passed"], outcomes["deselected"]) == (1, 2)
