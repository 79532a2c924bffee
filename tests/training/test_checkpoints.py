"""A checkpoint is whole or not there, and a run that goes on from one is the run that was never stopped."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import changed, metrics
from torch import nn

import latentgen.training.checkpoint
from latentgen.training import train_autoencoder, train_diffusion
from latentgen.training.autoencoder import AutoencoderStage
from latentgen.training.checkpoint import RunState, checkpoints, restore, save
from latentgen.training.diffusion import DiffusionStage
from latentgen.training.ema import EMA
from latentgen.training.folders import replacing_folder
from latentgen.training.muon import Muon
from latentgen.weights.errors import WeightsError
from latentgen.weights.safetensors_io import read_tensors

SHORT = {"steps": 12, "checkpoint_every": 3, "log_every": 4, "sample_every": 0, "keep_checkpoints": 2, "decay_steps": 4}
FILES = ("model.safetensors", "optimizer.safetensors", "ema.safetensors")


def assert_same_end(one, other):
    """Weights, optimiser and moving average of two finished runs are bitwise equal, and so is what they logged."""
    ends = [max(checkpoints(output / "checkpoints")) for output in (one, other)]
    assert ends[0][0] == ends[1][0]
    for name in FILES:
        first, second = (read_tensors(path / name) for _, path in ends)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert (ends[0][1] / "state.json").read_text() == (ends[1][1] / "state.json").read_text()
    logged = [[(line["step"], line["loss"], line["learning_rate"]) for line in metrics(o)] for o in (one, other)]
    assert logged[0] == logged[1]


class Stop(Exception):
    """Stands for whatever ends a run early."""


def stop_after(monkeypatch, batches, error=Stop, stage=AutoencoderStage):
    """Make a stage's loss raise once so many batches were computed."""
    loss, count = stage.loss, iter(range(10**6))

    def counted(self, module, batch):
        if next(count) >= batches:
            raise error
        return loss(self, module, batch)

    monkeypatch.setattr(stage, "loss", counted)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, autoencoder_config):
    """A run that nothing stops."""
    output = tmp_path_factory.mktemp("whole") / "run"
    train_autoencoder(changed(autoencoder_config, run={**SHORT, "output": output}))
    return output


@pytest.fixture
def config(tmp_path, autoencoder_config):
    return changed(autoencoder_config, run={**SHORT, "output": tmp_path / "run"})


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_resumed_run_is_bitwise_the_whole_one(monkeypatch, config, whole_run, error):
    with monkeypatch.context() as patch:
        stop_after(patch, 8, error)
        with pytest.raises(error):
            train_autoencoder(config)
    output = config.run.output
    assert [step for step, _ in checkpoints(output / "checkpoints")] == [3, 6]
    with (output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "loss": 1}\n{"step": 9, "lo')  # after the checkpoint, and cut short by the kill
    train_autoencoder(config, resume=True)
    assert_same_end(output, whole_run)
    assert [line["step"] for line in metrics(output)] == [3, 4, 6, 8, 9, 12]
    assert (output / "model" / "config.json").exists()


def test_resume_in_bfloat16_and_with_accumulation(monkeypatch, config, tmp_path):
    runs = [
        changed(config, run={"output": tmp_path / name, "precision": "bf16", "accumulate": 2, "batch_size": 4})
        for name in ("whole", "stopped")
    ]
    train_autoencoder(runs[0])
    with monkeypatch.context() as patch:
        stop_after(patch, 15)
        with pytest.raises(Stop):
            train_autoencoder(runs[1])
    train_autoencoder(runs[1], resume=True)
    assert_same_end(runs[1].run.output, runs[0].run.output)


def test_diffusion_resumes_exactly(diffusion_config, tmp_path, monkeypatch):
    run = {**SHORT, "steps": 9}
    whole, parts = (changed(diffusion_config, run={**run, "output": tmp_path / n}) for n in ("whole", "parts"))
    train_diffusion(whole)
    with monkeypatch.context() as patch:
        stop_after(patch, 5, stage=DiffusionStage)
        with pytest.raises(Stop):
            train_diffusion(parts)
    train_diffusion(parts, resume=True)
    assert_same_end(parts.run.output, whole.run.output)


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from dataclasses import replace
from pathlib import Path
from latentgen.training import AutoencoderTraining, load_config, train_autoencoder
config = load_config(AutoencoderTraining, sys.argv[1])
run = replace(config.run, output=Path(sys.argv[2]), steps=40, checkpoint_every=2, sample_every=0, log_every=4)
train_autoencoder(replace(config, run=run), resume=len(sys.argv) > 3)
"""


def test_kill_9_while_it_runs(workplace, autoencoder_config, tmp_path):
    """A process of its own is killed without notice, and another goes on; the end is that of a run without a kill."""
    run = {"steps": 40, "checkpoint_every": 2, "sample_every": 0, "log_every": 4}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(workplace / "autoencoder.toml"), str(killed)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not [s for s, _ in checkpoints(killed / "checkpoints") if s >= 6]:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.003)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = max(checkpoints(killed / "checkpoints"))[0]
    assert 6 <= reached < 40
    train_autoencoder(changed(autoencoder_config, run={**run, "output": killed}), resume=True)
    train_autoencoder(changed(autoencoder_config, run={**run, "output": whole}))
    assert_same_end(killed, whole)
    assert not list((killed / "checkpoints").glob(".*"))


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failing", ["write_tensors", "write_json", "rename"])
def test_failed_write_leaves_the_checkpoint_before_it(monkeypatch, config, whole_run, failing):
    """The disk fills up while the second checkpoint is written."""
    target = latentgen.training.folders.os if failing == "rename" else latentgen.training.checkpoint
    real, calls = getattr(target, failing), []

    def fail_later(*args, **kwargs):
        calls.append(args)
        if any("step-00000006" in str(argument) for argument in args):
            if failing == "write_tensors" and "optimizer" not in str(args[0]):
                return real(*args, **kwargs)  # the first file still fits
            return no_space()
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(target, failing, fail_later)
        with pytest.raises(OSError, match="No space left"):
            train_autoencoder(config)
    assert calls
    folder = config.run.output / "checkpoints"
    assert [p.name for p in folder.iterdir()] == ["step-00000003"]
    train_autoencoder(config, resume=True)
    assert_same_end(config.run.output, whole_run)


def make_state(seed=0, optimizer="adamw"):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Linear(4, 2)).to(memory_format=torch.channels_last)
    module.register_parameter("scalar", nn.Parameter(torch.randn(())))
    optimizer = Muon(module, 0.1) if optimizer == "muon" else torch.optim.AdamW(module.parameters(), 0.1)
    ema = EMA(module, 0.9)
    for _ in range(3):
        sum(p.square().sum() for p in module.parameters()).backward()
        optimizer.step()
        ema.update(module)
    return RunState(module, optimizer, ema)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_restored_state_is_that_which_was_saved(tmp_path, optimizer):
    saved, other = make_state(0, optimizer), make_state(1, optimizer)
    path = save(tmp_path, 3, saved, keep=1)
    assert restore(path, other) == 3
    for a, b in zip(saved.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(a, b)
        for key, value in saved.optimizer.state[a].items():
            restored = other.optimizer.state[b][key]
            assert torch.equal(value, restored)
            # Strides too: an optimiser step over mixed ones is slower and rounds in another way.
            assert value.stride() == restored.stride()
            assert value.device == restored.device
    assert all(torch.equal(t, other.ema.shadow[n]) for n, t in saved.ema.shadow.items())
    assert other.ema.updates == saved.ema.updates


def test_half_written_folders_are_ignored_and_cleaned(tmp_path):
    state = make_state()
    save(tmp_path, 3, state, keep=2)
    for name in (".step-00000004.tmp", ".step-00000009.old", "step-00000005", "step-7", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    assert [step for step, _ in checkpoints(tmp_path)] == [3]
    save(tmp_path, 5, state, keep=2)  # takes the place of the folder without a state.json
    assert [step for step, _ in checkpoints(tmp_path)] == [3, 5]
    assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "notes").exists()


def test_only_the_newest_are_kept(tmp_path):
    state = make_state()
    for step in (1, 2, 3, 4):
        save(tmp_path, step, state, keep=2)
    assert [step for step, _ in checkpoints(tmp_path)] == [3, 4]


def test_checkpoint_of_another_network(tmp_path):
    path = save(tmp_path, 3, make_state(), keep=1)
    module = nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"is of another network .* resume with the config"):
        restore(path, RunState(module, torch.optim.AdamW(module.parameters()), None))


def test_checkpoint_of_another_optimiser(tmp_path):
    path = save(tmp_path, 3, make_state(), keep=1)
    other = make_state(1, "muon")
    before = other.module.state_dict()["0.weight"].clone()
    with pytest.raises(ValueError, match="is of a run with AdamW, not Muon: resume with"):
        restore(path, other)
    assert torch.equal(other.module.state_dict()["0.weight"], before)


def test_checkpoint_without_a_moving_average(tmp_path):
    state = make_state()
    path = save(tmp_path, 3, RunState(state.module, state.optimizer, None), keep=1)
    with pytest.raises(ValueError, match="without a moving average: set ema_decay = false"):
        restore(path, state)


def test_damaged_checkpoint_is_named(tmp_path):
    path = save(tmp_path, 3, make_state(), keep=1)
    (path / "optimizer.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(WeightsError, match=r"optimizer\.safetensors is damaged or missing.*start anew"):
        restore(path, make_state())


@pytest.mark.parametrize("name", ["state.json", *FILES])
def test_damaged_newest_checkpoint_says_how_to_go_on(tmp_path, name):
    save(tmp_path, 3, make_state(), keep=2)
    path = save(tmp_path, 6, make_state(), keep=2)
    (path / name).write_bytes(b"")
    other = make_state(1)
    before = other.module.state_dict()["0.weight"].clone()
    with pytest.raises(
        WeightsError, match=rf"{name} is damaged.* Remove the folder .*step-00000006 to go on from step 3"
    ):
        restore(path, other)
    assert torch.equal(other.module.state_dict()["0.weight"], before)


def test_loss_scale_of_float16_is_kept(tmp_path):
    class Scaler:
        scale = 1.0

        def state_dict(self):
            return {"scale": self.scale}

        def load_state_dict(self, state):
            self.scale = state["scale"]

    saved, other = make_state(), make_state()
    saved.scaler, other.scaler = Scaler(), Scaler()
    saved.scaler.scale = 1024.0
    path = save(tmp_path, 3, saved, keep=1)
    assert json.loads((path / "state.json").read_text())["scaler"] == {"scale": 1024.0}
    restore(path, other)
    assert other.scaler.scale == 1024.0
    restore(save(tmp_path, 4, make_state(), keep=1), other)  # of a run in float32: the scale starts anew


def test_existing_run_is_not_overwritten(whole_run, config):
    started = changed(config, run={"output": whole_run})
    before = (whole_run / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="holds a run of 12 steps: resume it, or choose another output"):
        train_autoencoder(changed(started, data={"folder": Path("not even looked at")}))
    with pytest.raises(ValueError, match=r"holds a run of 12 steps, more than steps=9"):
        train_autoencoder(changed(started, run={"steps": 9}), resume=True)
    assert (whole_run / "metrics.jsonl").read_text() == before


def test_resuming_a_finished_run_exports_it_again(whole_run, config):
    (whole_run / "model" / "config.json").unlink()
    train_autoencoder(changed(config, run={"output": whole_run}), resume=True)
    assert (whole_run / "model" / "config.json").exists()
    assert metrics(whole_run)[-1]["step"] == 12


def test_finished_model_without_checkpoints_is_not_replaced(config):
    model = config.run.output / "model"
    model.mkdir(parents=True)
    for resume in (False, True):
        with pytest.raises(ValueError, match="holds a finished run without checkpoints: choose another output"):
            train_autoencoder(config, resume=resume)
    assert [p.name for p in config.run.output.iterdir()] == ["model"]


def test_resume_without_a_run_starts_one(config):
    assert train_autoencoder(
        changed(config, run={"steps": 1, "warmup_steps": 0, "decay_steps": 0}), resume=True
    ).is_dir()


def write_newer(path, error=None):
    with replacing_folder(path) as folder:
        (folder / "newer").write_text("content")
        if error is not None:
            raise error


def test_replacing_a_folder(tmp_path, monkeypatch):
    path = tmp_path / "model"
    for content in ("old", "new"):
        with replacing_folder(path) as folder:
            (folder / content).write_text(content)
    assert [p.name for p in path.iterdir()] == ["new"]
    with pytest.raises(Stop):
        write_newer(path, Stop)
    assert [p.name for p in path.iterdir()] == ["new"]
    real = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: no_space() if str(a).endswith(".tmp") else real(a, b))
    with pytest.raises(OSError, match="No space left"):
        write_newer(path)
    assert [p.name for p in path.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
