"""Ctrl-C: the step in hand is finished and kept, and the run says where it can go on."""

import contextlib
import os
import signal

import pytest
import torch
from test_training_loop import final, make_config
from tiny_runs import metrics
from toy_stage import ToyStage

import latentgen.training.autoencoder
from latentgen.cli import main
from latentgen.training.checkpoint import checkpoints
from latentgen.training.loop import train

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")


@pytest.fixture(autouse=True)
def usual_handler():
    """A shell may start tests in the background with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pressing(times, at):
    """A stage during whose step number `at` Ctrl-C is pressed."""

    class Pressed(ToyStage):
        def loss(self, module, batch):
            for _ in range(times if int(batch["index"]) == at - 1 else 0):
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(module, batch)

    return lambda accelerator: Pressed()


def test_first_press_finishes_the_step_and_the_resumed_run_is_the_whole_one(tmp_path, capfd):
    config = make_config(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt, match=r"stopped; --resume goes on from step 6 of .*run"):
        train(pressing(1, 6), config)
    assert "stopping after this step; press Ctrl-C again" in capfd.readouterr().err
    assert [step for step, _ in checkpoints(tmp_path / "run" / "checkpoints")] == [4, 6]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (tmp_path / "run" / "model").exists()
    train(ToyStage, config, resume=True)
    train(ToyStage, make_config(tmp_path / "whole"))
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        whole = final(tmp_path / "whole", name)
        assert all(torch.equal(tensor, whole[key]) for key, tensor in final(tmp_path / "run", name).items())
    assert [line["step"] for line in metrics(tmp_path / "run")] == [2, 4, 6, 8]


def test_what_was_logged_ends_with_the_step_that_is_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(pressing(1, 5), make_config(tmp_path))
    assert [line["step"] for line in metrics(tmp_path)] == [2, 4, 5]


def test_second_press_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt, match="goes on from step 4"):
        train(pressing(2, 6), make_config(tmp_path))
    assert [step for step, _ in checkpoints(tmp_path / "checkpoints")] == [4]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_is_kept_before_the_first_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r"stopped before the first checkpoint of .* nothing to resume"):
        train(pressing(2, 2), make_config(tmp_path))


def test_handler_of_someone_else_is_left_alone(tmp_path):
    pressed = []
    signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
    with contextlib.suppress(KeyboardInterrupt):  # which would end the test run
        train(pressing(1, 6), make_config(tmp_path))
    assert pressed == [1]


def test_command_says_what_is_kept(workplace, monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt("stopped; --resume goes on from step 6")

    monkeypatch.setattr(latentgen.training.autoencoder, "train_autoencoder", stopped)
    assert main(["train", "autoencoder", str(workplace / "autoencoder.toml")]) == 130
    assert "latentgen: stopped; --resume goes on from step 6\n" in capsys.readouterr().err


def test_command_without_progress_bars(workplace, tmp_path, capsys):
    text = (workplace / "autoencoder.toml").read_text().replace("warmup_steps = 5", "").replace("decay_steps = 20", "")
    text = text.replace("\nsteps = 60", "\nsteps = 1").replace('"pictures"', f'"{workplace / "pictures"}"')
    (tmp_path / "run.toml").write_text(text)
    assert main(["train", "autoencoder", str(tmp_path / "run.toml"), "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out == f"{tmp_path / 'autoencoder' / 'model'}\n"
