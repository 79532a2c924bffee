"""Tests of the way from nothing to the bundled model: what a killed run leaves, and what train.sh starts."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import bundle
import evaluate
import make_dataset
import numpy as np
import pytest
import torch
from scenes import sample_scene
from start_f4 import start

from latentgen import AutoencoderKL
from latentgen.training import AutoencoderTraining, DiffusionTraining, load_config

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny_scenes"

PYTHON = """#!/bin/sh
echo "$@" >> calls
case "$*" in
*make_dataset*) mkdir -p runs/tiny_scenes/data/train && touch runs/tiny_scenes/data/train/metadata.jsonl ;;
*autoencoder_f4.toml*) mkdir -p runs/tiny_scenes/autoencoder_f4/model ;;
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
    for name in ("train.sh", "train_tasks.sh", "diffusion.toml", "autoencoder.toml"):
        shutil.copy(EXAMPLE / name, folder)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    monkeypatch.delenv("PYTHON", raising=False)

    def run(*options: str, script: str = "train.sh") -> list[str]:
        (tmp_path / "calls").write_text("")
        done = subprocess.run(["bash", str(folder / script), *options], capture_output=True, text=True)
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


def test_the_other_tasks_are_trained_from_data_to_figures(train):
    example, runs, package = "examples/tiny_scenes", "runs/tiny_scenes", "src/latentgen/bundled"
    end = [
        f"{example}/bundle.py {runs}/superres_whole/model {package}/tiny_scenes_x4",
        f"{example}/evaluate_superres.py --json docs/superres.json --grid docs/superres.png",
        "docs/figures.py",
    ]
    stage_2 = [f"-m latentgen.cli train diffusion {example}/superres{end}.toml --resume" for end in ("", "_whole")]
    assert train("superres", script="train_tasks.sh") == [
        f"{example}/make_dataset.py {runs}/data --count 12000",
        f"{example}/start_f4.py {runs}/autoencoder_f4_start",
        f"-m latentgen.cli train autoencoder {example}/autoencoder_f4.toml --resume",
        *stage_2,
        *end,
    ]
    assert train("superres", script="train_tasks.sh")[-5:] == [*stage_2, *end]
    assert train("classes", script="train_tasks.sh") == [
        f"{example}/make_dataset.py {runs}/classes --count 32000 --things 1 --seed 3",
        f"-m latentgen.cli train diffusion {example}/classes.toml --resume",
        f"{example}/evaluate_classes.py {runs}/classes_diffusion/model --json docs/classes.json --grid docs/classes.png",
        "docs/figures.py",
    ]
    assert train("inpainting", script="train_tasks.sh") == [
        f"-m latentgen.cli train diffusion {example}/inpainting.toml --resume",
        f"{example}/bundle.py {runs}/inpainting/model {package}/tiny_scenes_inpaint",
        f"{example}/evaluate_tasks.py --json docs/tasks.json --grid docs/tasks.png",
        "docs/figures.py",
    ]
    with pytest.raises(RuntimeError, match=r"^usage: bash .*train_tasks.sh superres\|inpainting\|classes\n$"):
        train(script="train_tasks.sh")


@pytest.mark.parametrize(
    "name", ["autoencoder", "autoencoder_f4", "diffusion", "superres", "superres_whole", "inpainting", "classes"]
)
def test_settings_can_be_read(name):
    kind = AutoencoderTraining if name.startswith("autoencoder") else DiffusionTraining
    assert load_config(kind, EXAMPLE / f"{name}.toml").run.steps > 100


def test_the_smaller_autoencoder_starts_with_layers_of_the_larger():
    larger = AutoencoderKL.from_pretrained(EXAMPLE / "first_stage", device="cpu", dtype=torch.float32)
    settings = tomllib.loads((EXAMPLE / "autoencoder_f4.toml").read_text())["model"]
    smaller = start(larger, settings)
    pictures = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = (vae.encoder.down_blocks[0](vae.encoder.conv_in(pictures)) for vae in (smaller, larger))
        assert torch.equal(ours, theirs)
        features = torch.rand(1, 64, 8, 8)
        ours, theirs = (vae.decoder.up_blocks[k](features[:, :w]) for vae, k, w in ((smaller, 1, 64), (larger, 2, 64)))
        assert torch.equal(ours, theirs)
    assert smaller.config.factor == 4


def test_a_scale_is_folded_into_the_first_stage():
    """The same pictures from latents of unit variance, and the same posteriors but for the scale."""
    torch.manual_seed(0)
    settings = {"block_out_channels": [8, 8], "norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"] * 2}
    settings |= {"up_block_types": ["UpDecoderBlock2D"] * 2, "scaling_factor": 0.3}
    before, after = (AutoencoderKL.from_config(settings) for _ in range(2))
    after.load_state_dict(before.state_dict())
    bundle.fold_scale(after)
    assert after.config.scaling_factor == 1
    pictures, latents = torch.rand(1, 3, 8, 8), torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        assert torch.allclose(after.decode(latents), before.decode(latents / 0.3), atol=1e-5)
        ours, theirs = after.encode(pictures), before.encode(pictures)
    assert torch.allclose(ours.mean, 0.3 * theirs.mean, atol=1e-5)
    assert torch.allclose(ours.logvar.exp().sqrt(), 0.3 * theirs.logvar.exp().sqrt(), atol=1e-5)


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
