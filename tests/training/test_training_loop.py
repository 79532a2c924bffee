"""The loop: accumulation, clipping, averages, what it logs and when it stops."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import metrics
from toy_stage import ToyStage

from latentgen.training.checkpoint import checkpoints
from latentgen.training.config import RunConfig
from latentgen.training.log import Log
from latentgen.training.loop import train
from latentgen.weights.safetensors_io import read_tensors


def make_config(output, **settings):
    defaults = {"steps": 8, "batch_size": 8, "learning_rate": 0.05, "warmup_steps": 0, "precision": "no",
                "log_every": 2, "sample_every": 0, "checkpoint_every": 4, "ema_decay": 0.5}  # fmt: skip
    return RunConfig(output=output, **(defaults | settings))


def final(output, name="model.safetensors"):
    return read_tensors(max(checkpoints(output / "checkpoints"))[1] / name)


def test_accumulating_two_halves_equals_the_whole_batch(tmp_path):
    """16 rows in one batch, or in two of 8: the gradient of the mean is the mean of the gradients."""

    class Whole(ToyStage):
        def batch(self, index, process, processes):
            halves = [ToyStage.batch(self, 2 * index + i, 0, 1) for i in range(2)]
            return {"x": torch.cat([h["x"] for h in halves]), "y": torch.cat([h["y"] for h in halves]),
                    "index": torch.tensor(index)}  # fmt: skip

    train(Whole, make_config(tmp_path / "whole"))
    train(ToyStage, make_config(tmp_path / "halves", accumulate=2))
    for name, tensor in final(tmp_path / "whole").items():
        assert torch.allclose(tensor, final(tmp_path / "halves")[name], atol=1e-6)
    for whole, halves in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "halves"), strict=True):
        assert whole["loss"] == pytest.approx(halves["loss"], rel=1e-5)
        assert whole["grad_norm"] == pytest.approx(halves["grad_norm"], rel=1e-5)


def test_launcher_settings_do_not_change_the_accumulation(tmp_path, monkeypatch):
    train(ToyStage, make_config(tmp_path / "plain"))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    train(ToyStage, make_config(tmp_path / "launched"))
    assert all(torch.equal(t, final(tmp_path / "plain")[n]) for n, t in final(tmp_path / "launched").items())


def test_first_step_is_that_of_adamw(tmp_path):
    """The loop against the same step by hand."""
    config = make_config(tmp_path / "run", steps=1, learning_rate=0.1, weight_decay=0.2, clip_norm=0.5, ema_decay=False)
    train(ToyStage, config)
    torch.manual_seed(config.seed)
    stage = ToyStage()
    optimizer = torch.optim.AdamW(stage.module.parameters(), 0.1, weight_decay=0.2)
    sum(stage.loss(stage.module, stage.batch(0, 0, 1)).values()).backward()
    norm = torch.nn.utils.clip_grad_norm_(stage.module.parameters(), 0.5)
    optimizer.step()
    assert all(torch.equal(t, stage.module.state_dict()[n]) for n, t in final(tmp_path / "run").items())
    assert metrics(tmp_path / "run")[0]["grad_norm"] == pytest.approx(float(norm))


def test_optimizer_of_the_config_is_used(tmp_path):
    train(ToyStage, make_config(tmp_path, steps=1, checkpoint_every=1, optimizer="muon"))
    assert json.loads((checkpoints(tmp_path / "checkpoints")[0][1] / "state.json").read_text())["optimizer"] == "Muon"
    with pytest.raises(ValueError, match=r"\[run\] optimizer='sgd' must be adamw or muon"):
        make_config(tmp_path, optimizer="sgd")


def test_average_follows_every_optimiser_step(tmp_path):
    train(ToyStage, make_config(tmp_path, steps=4, accumulate=3, checkpoint_every=1, keep_checkpoints=4))
    found = checkpoints(tmp_path / "checkpoints")
    shadows = [read_tensors(path / "ema.safetensors")["weight"] for _, path in found]
    weights = [read_tensors(path / "model.safetensors")["weight"] for _, path in found]
    assert [json.loads((path / "state.json").read_text())["ema_updates"] for _, path in found] == [1, 2, 3, 4]
    for step in (2, 3, 4):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * shadows[step - 2] + (1 - decay) * weights[step - 1]
        assert torch.allclose(shadows[step - 1], expected, atol=1e-6)


def test_what_is_logged(tmp_path):
    train(ToyStage, make_config(tmp_path, steps=7, log_every=3, checkpoint_every=5))
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [3, 5, 6, 7]  # and before each checkpoint: see `Log`
    for line in lines:
        assert line["loss"] == pytest.approx(line["near"] + line["far"])
        assert line["far"] == pytest.approx(3 * line["near"], rel=1e-5)
        assert line["learning_rate"] == 0.05
        assert line["images_per_second"] > 0


def test_batches_are_fetched_in_order_and_once(tmp_path):
    made = []
    train(lambda a: made.append(ToyStage()) or made[-1], make_config(tmp_path, steps=4, accumulate=2))
    assert made[0].fetched in ([*range(8)], [*range(9)])  # the one ahead may have been begun


def test_samples_are_drawn_when_due(tmp_path):
    made = []
    train(lambda a: made.append(ToyStage()) or made[-1], make_config(tmp_path, sample_every=3))
    assert made[0].drawn == ["00000003.png", "00000006.png"]
    assert made[0].module.training


def test_sample_that_cannot_be_drawn_does_not_end_the_run(tmp_path):
    """The checkpoint of the same step is there before; afterwards training goes on with the weights that it had."""
    kept = []

    class Failing(ToyStage):
        def draw(self, path):
            kept.append([step for step, _ in checkpoints(tmp_path / "run" / "checkpoints")])
            raise OSError(28, "No space left on device")

    config = make_config(tmp_path / "run", sample_every=4)
    with pytest.warns(
        UserWarning, match=r"00000004\.png could not be drawn .*No space left on device.*; training goes on"
    ):
        train(Failing, config)
    assert kept == [[4], [4, 8]]
    train(ToyStage, make_config(tmp_path / "whole"))
    assert all(torch.equal(t, final(tmp_path / "whole")[n]) for n, t in final(tmp_path / "run").items())


def test_speed_is_that_of_training(tmp_path, monkeypatch):
    """10 seconds of sampling between two steps of one second each do not count."""
    now = [0.0]
    monkeypatch.setattr("latentgen.training.log.time.perf_counter", lambda: now[0])
    config = make_config(tmp_path, log_every=2)
    with Log(config, 0, SimpleNamespace(is_main_process=True, num_processes=1, scaler=None)) as log:
        for step in (1, 2):
            now[0] += 1
            log.step(step, {"mse": torch.tensor(0.5)}, torch.tensor(1.0))
            with log.paused():
                now[0] += 10
        now[0] += 1
        log.step(3, {"mse": torch.tensor(0.5)}, torch.tensor(1.0), look=True)
    assert [line["images_per_second"] for line in metrics(tmp_path)] == [8.0, 8.0]


def test_without_a_moving_average(tmp_path):
    train(ToyStage, make_config(tmp_path, ema_decay=False))
    newest = max(checkpoints(tmp_path / "checkpoints"))[1]
    assert not (newest / "ema.safetensors").exists()
    exported = read_tensors(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(t, exported[n]) for n, t in final(tmp_path).items())


def test_progress_bar_can_be_left_out(tmp_path, capsys):
    train(ToyStage, make_config(tmp_path / "a", steps=1))
    assert "step/s" in capsys.readouterr().err
    train(ToyStage, make_config(tmp_path / "b", steps=1), show_progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_before_the_next_checkpoint(tmp_path, value):
    """Though it is looked at only every 100 steps, no checkpoint with spoilt weights takes a good one's place."""
    config = make_config(tmp_path, steps=20, log_every=100, checkpoint_every=4, keep_checkpoints=1)
    spoil = lambda step, loss: loss * value if step == 5 else loss  # noqa: E731
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) .* between steps 4 and 8: lower learning_rate"):
        train(lambda a: ToyStage(spoil=spoil), config)
    assert [step for step, _ in checkpoints(tmp_path / "checkpoints")] == [4]
    train(ToyStage, config, resume=True)
    assert all(t.isfinite().all() for t in final(tmp_path).values())


def test_gradient_that_is_not_finite_stops_too(tmp_path):
    """The loss of the last step before a checkpoint is finite; its gradient, and so the weights, are not."""

    class Spoilt(ToyStage):
        def loss(self, module, batch):
            losses = super().loss(module, batch)
            if int(batch["index"]) == 3:
                zero = (module.weight * 0).sum()
                losses["near"] = losses["near"] + torch.where(zero > 1, zero.sqrt(), 0.0)  # 0 * infinity backwards
            return losses

    with pytest.raises(ValueError, match="its gradient nan between steps"):
        train(Spoilt, make_config(tmp_path))
    assert checkpoints(tmp_path / "checkpoints") == []


def test_accelerates_settings_are_given_back(tmp_path):
    from accelerate.state import AcceleratorState

    assert not AcceleratorState._shared_state
    with pytest.raises(ZeroDivisionError):
        train(lambda a: 1 / 0, make_config(tmp_path))
    assert not AcceleratorState._shared_state
    train(ToyStage, make_config(tmp_path / "a", precision="bf16", steps=1))
    train(ToyStage, make_config(tmp_path / "b", precision="no", steps=1))


def test_overflow_under_loss_scaling_is_no_error(tmp_path):
    """float16's loss scaling finds its scale by overflowing: such a step is skipped, not fatal."""

    class Accelerator:
        is_main_process, num_processes, scaler = True, 1, object()

    config = make_config(tmp_path, log_every=1)
    with Log(config, 0, Accelerator()) as log:
        log.step(1, {"mse": torch.tensor(0.5)}, torch.tensor(float("inf")))
        with pytest.raises(ValueError, match="the loss is nan"):
            log.step(2, {"mse": torch.tensor(float("nan"))}, torch.tensor(1.0))
    assert metrics(tmp_path)[0]["grad_norm"] is None


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_training_loop import make_config
from toy_stage import ToyStage
from latentgen.training.loop import train
config = make_config(Path(sys.argv[2]), steps=4, accumulate=2, checkpoint_every=4)
train(ToyStage, config)
train(ToyStage, make_config(Path(sys.argv[2]), steps=8, accumulate=2, checkpoint_every=4), resume=True)
"""


def test_two_processes_are_one_with_twice_the_accumulation(tmp_path):
    """Gradients are exchanged, weights stay equal, one process alone writes, and the run is resumed by both."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path / "two")]
    environments = [{**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    processes = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for env in environments]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    train(ToyStage, make_config(tmp_path / "one", accumulate=4))
    for name in ("model.safetensors", "ema.safetensors"):
        one, two = final(tmp_path / "one", name), final(tmp_path / "two", name)
        assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
    assert [line["step"] for line in metrics(tmp_path / "two")] == [2, 4, 6, 8]
