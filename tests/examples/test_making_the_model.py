"""Tests of the way from nothing to the bundled model: what a killed run leaves, and what train.sh starts."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import evaluate
import make_dataset
import numpy as np
import pytest
from scenes import sample_scene

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny_scenes"

PYTHON = """#!/bin/sh
echo "$@" >> calls
case "$*" in
*make_dataset*) mkdir -p runs/tiny_scenes/data/train && touch runs/tiny_scenes/data/train/metadata.jsonl ;;
*"train autoencoder"*) mkdir -p runs/tiny_scenes/autoencoder/model ;;
esac
"""
DATA = "examples/tiny_scenes/make_dataset.py runs/tiny_scenes/data --count 75000"
STAGE_1 = "-m latentgen.cli train autoencoder examples/tiny_scenes/autoencoder.toml --resume"
END = [
    "examples/tiny_scenes/bundle.py runs/tiny_scenes/{} src/latentgen/bundled/tiny_scenes",
    "examples/tiny_scenes/evaluate.py --json docs/bundled-model.json --grid docs/bundled-model.png",
    "docs/figures.py",
]


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs train.sh in an empty checkout, with a python that only notes what it is called with."""
    folder = tmp_path / "examples" / "tiny_scenes"
    folder.mkdir(parents=True)
    for name in ("train.sh", "diffusion.toml", "autoencoder.toml"):
        shutil.copy(EXAMPLE / name, folder)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    monkeypatch.delenv("PYTHON", raising=False)

    def run(*options: str) -> list[str]:
        (tmp_path / "calls").write_text("")
        done = subprocess.run(["bash", str(folder / "train.sh"), *options], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return (tmp_path / "calls").read_text().splitlines()

    return run


def test_train_starts_from_the_trained_first_stage(train):
    stage_2 = "-m latentgen.cli train diffusion examples/tiny_scenes/diffusion.toml --resume"
    end = [END[0].format("diffusion/model"), *END[1:]]
    assert train() == [DATA, stage_2, *end]
    assert train() == [stage_2, *end]


def test_train_from_scratch_uses_its_own_first_stage(train, tmp_path):
    stage_2 = "-m latentgen.cli train diffusion runs/tiny_scenes/from_scratch.toml --resume"
    end = [END[0].format("diffusion_from_scratch/model"), *END[1:]]
    assert train("--from-scratch") == [DATA, STAGE_1, stage_2, *end]
    assert train("--from-scratch") == [stage_2, *end]

    runs = tmp_path / "runs" / "tiny_scenes"
    written = tomllib.loads((runs / "from_scratch.toml").read_text())
    settings = tomllib.loads((EXAMPLE / "diffusion.toml").read_text())
    stage_1 = tomllib.loads((EXAMPLE / "autoencoder.toml").read_text())

    def place(folder: Path, path: str) -> Path:
        return (folder / path).resolve()

    here = tmp_path / "examples" / "tiny_scenes"
    assert place(runs, written.pop("autoencoder")) == place(here, stage_1["run"]["output"]) / "model"
    assert place(runs, written["data"].pop("folder")) == place(here, settings["data"].pop("folder"))
    assert place(runs, written["run"].pop("output")) == runs / "diffusion_from_scratch"
    assert settings.pop("autoencoder") == "first_stage"
    del settings["run"]["output"]
    assert written == settings


def test_train_begins_data_anew_that_are_not_whole(train, tmp_path):
    (tmp_path / "runs" / "tiny_scenes" / "data" / "train").mkdir(parents=True)
    assert train()[0] == DATA


def test_train_refuses_other_options(train):
    with pytest.raises(RuntimeError, match=r"^usage: bash .*train.sh \[--from-scratch\]\n$"):
        train("--scratch")


def test_data_that_are_not_whole_have_no_metadata(tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    class Pool:
        """Two folders of pictures are asked for; the second never comes."""

        def __init__(self, workers):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def imap(self, work, starts):
            yield work(starts[0])
            raise Killed

    metadata = tmp_path / "train" / "metadata.jsonl"
    settings = {"count": 3, "size": 8, "seed": 0, "workers": 1}
    make_dataset.make_dataset(tmp_path, **settings)
    assert len(metadata.read_text().splitlines()) == 3
    monkeypatch.setattr(make_dataset, "PER_FOLDER", 2)
    monkeypatch.setattr(make_dataset, "Pool", Pool)
    with pytest.raises(Killed):
        make_dataset.make_dataset(tmp_path, **settings)
    assert not metadata.exists()


@pytest.mark.parametrize("things", [1, 2])
def test_evaluation_asks_for_other_scenes_than_training(things):
    (scene, _), *_ = evaluate.captions(things, "any", 1, seed=0)
    assert scene != sample_scene(np.random.default_rng((0, things)), things=things, pairs="any")
    assert scene == evaluate.captions(things, "any", 1, seed=0)[0][0]
    assert scene != evaluate.captions(things, "any", 1, seed=1)[0][0]
