"""What stage 2 shows the network, and what it asks of it."""

import os
import shutil
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from tiny_runs import SIZE, changed, make_pictures, write_metadata

from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.nn.attention import Transformer2D
from latentgen.nn.resnet import ResnetBlock
from latentgen.training import train_diffusion
from latentgen.training.data import load_picture, to_tensor
from latentgen.training.diffusion import DiffusionStage, shifted_timesteps
from latentgen.training.image_folder import read_folder
from latentgen.training.latents import encode_pictures


@pytest.fixture(scope="module")
def accelerator():
    yield Accelerator(mixed_precision="no")
    AcceleratorState._reset_state()


ONE_STEP = {"steps": 1, "warmup_steps": 0}


def ready(stage):
    stage.prepare()
    return stage


@pytest.fixture(scope="module")
def stage(diffusion_config, accelerator, tmp_path_factory):
    output = tmp_path_factory.mktemp("stage") / "run"
    torch.manual_seed(0)
    return ready(DiffusionStage(changed(diffusion_config, run={"output": output}), accelerator))


def test_latents_have_unit_variance(stage):
    x0 = torch.cat([stage.batch(i, 0, 1)["x0"] for i in range(60)])
    assert float(x0.var()) == pytest.approx(1.0, rel=0.03)


def test_batches_are_a_pure_function_of_seed_index_and_process(stage, diffusion_config, accelerator):
    one = stage.batch(5, 1, 2)
    torch.manual_seed(99)
    np.random.seed(99)
    for name, tensor in stage.batch(5, 1, 2).items():
        assert torch.equal(tensor, one[name])
    for other in (stage.batch(6, 1, 2), stage.batch(5, 0, 2)):
        assert not torch.equal(other["eps"], one["eps"])
        assert not torch.equal(other["timesteps"], one["timesteps"])
    output = stage.config.run.output
    reseeded = ready(DiffusionStage(changed(diffusion_config, run={"output": output, "seed": 1}), accelerator))
    assert not torch.equal(reseeded.batch(5, 1, 2)["eps"], one["eps"])


def test_noise_and_timesteps_are_what_they_should_be(stage):
    batches = [stage.batch(i, 0, 1) for i in range(100)]
    timesteps = torch.cat([b["timesteps"] for b in batches])
    assert 0 <= int(timesteps.min()) < 20
    assert 980 < int(timesteps.max()) < 1000
    eps = torch.cat([b["eps"] for b in batches])
    assert float(eps.mean()) == pytest.approx(0, abs=0.01)
    assert float(eps.std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0, 3.0])
def test_timesteps_are_shifted_towards_noise_as_the_formula_says(shift):
    """Solved for u, t = s u / (1 + (s - 1) u) says which share of the timesteps lies above any t."""
    timesteps = shifted_timesteps(torch.arange(100_000, dtype=torch.float64) / 100_000, shift, 1000)
    assert timesteps.dtype == torch.int64
    assert (int(timesteps[0]), int(timesteps[-1])) == (0, 999)
    assert len(timesteps.unique()) == 1000  # none is left out
    for t in (0.1, 0.5, 0.7):
        above = float((timesteps >= 1000 * t).double().mean())
        assert above == pytest.approx(1 - t / (shift - (shift - 1) * t), abs=1e-4)


def test_batches_are_drawn_with_the_shift_of_the_settings(stage, diffusion_config, accelerator):
    config = changed(diffusion_config, run={"output": stage.config.run.output}, timestep_shift=4.0)
    shifted = ready(DiffusionStage(config, accelerator))
    for index in range(20):
        before, after = (s.batch(index, 0, 1)["timesteps"].double() / 1000 for s in (stage, shifted))
        assert torch.allclose(after, 4 * before / (1 + 3 * before), atol=4e-3)


def test_share_of_dropped_conditions(stage):
    ids = torch.cat([stage.batch(i, 0, 1)["ids"] for i in range(500)])
    dropped = (ids == stage.task.empty).all(dim=1).float().mean()
    assert float(dropped) == pytest.approx(0.25, abs=0.03)  # 4000 draws: 0.03 is more than four standard deviations
    assert not (stage.task.ids == stage.task.empty).all(dim=1).any()  # the captions themselves are untouched


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_perfect_network_has_no_loss(stage, kind, diffusion_config, accelerator):
    """Given the clean latents and the noise, the formulas of the three prediction types are written out here."""
    settings = {**diffusion_config.scheduler, "prediction_type": kind, "rescale_betas_zero_snr": False}
    config = replace(changed(diffusion_config, run={"output": stage.config.run.output}), scheduler=settings)
    stage = ready(DiffusionStage(config, accelerator))
    batch = stage.batch(0, 0, 1)
    squared = stage.scheduler.schedule.alphas_cumprod[batch["timesteps"]].view(-1, 1, 1, 1)
    x0, eps, alpha, sigma = batch["x0"], batch["eps"], squared.sqrt(), (1 - squared).sqrt()
    answer = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[kind]

    def perfect(noisy, timesteps, ids):
        assert torch.allclose(noisy, alpha * x0 + sigma * eps)
        assert torch.equal(timesteps, batch["timesteps"])
        assert torch.equal(ids, batch["ids"])
        return answer

    assert float(stage.loss(perfect, batch)["mse"]) == 0
    wrong = stage.loss(lambda *_, ids: answer + 0.5, batch)["mse"]
    assert float(wrong) == pytest.approx(0.25, rel=1e-5)


def test_residual_branches_start_at_zero(stage):
    unet = stage.task.unet
    branches = [m.conv2 for m in unet.modules() if isinstance(m, ResnetBlock)]
    branches += [m.proj_out for m in unet.modules() if isinstance(m, Transformer2D)]
    assert len(branches) > 5
    assert all(not p.any() for layer in [*branches, unet.conv_out] for p in layer.parameters())
    batch = stage.batch(0, 0, 1)
    with torch.no_grad():
        assert not stage.module(batch["x0"], batch["timesteps"], batch["ids"]).any()


def test_everything_is_trained(stage):
    """Two steps from the zero start every weight has a gradient: nothing is cut off."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in stage.module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    stage.module.zero_grad()
    stage.loss(stage.module, stage.batch(0, 0, 1))["mse"].backward()
    assert [name for name, p in stage.module.named_parameters() if p.grad is None or not p.grad.any()] in (
        [],
        [name for name, _ in stage.module.named_parameters() if name.endswith("k_proj.bias")],  # softmax ignores them
    )
    assert all(p.grad is None for p in stage.autoencoder.parameters())


def test_latents_are_those_of_the_autoencoder_and_kept(stage, tmp_path, monkeypatch):
    examples = read_folder(stage.config.data.folder)
    posterior = stage.autoencoder.encode(to_tensor([load_picture(e.path, SIZE) for e in examples]))
    mean, std = encode_pictures(stage.autoencoder, examples, SIZE, cache=tmp_path, show=False)
    assert mean.dtype == std.dtype == torch.float16
    assert torch.allclose(mean.float(), posterior.mean, rtol=1e-3, atol=1e-3)
    assert torch.allclose(std.float(), (0.5 * posterior.logvar).exp(), rtol=1e-3, atol=1e-3)

    def forbidden(*_):
        raise AssertionError("read again")

    monkeypatch.setattr("latentgen.training.latents.load_picture", forbidden)
    again, _ = encode_pictures(stage.autoencoder, examples, SIZE, cache=tmp_path, show=False)
    assert torch.equal(mean, again)


def test_cache_is_not_used_for_anything_else(stage, tmp_path):
    """Another order, other pictures, another size, other weights: each is encoded anew."""
    folder = make_pictures(tmp_path / "pictures", 6)
    examples = read_folder(folder)
    cache = tmp_path / "cache"

    def encode(examples=examples, size=SIZE, autoencoder=stage.autoencoder):
        return encode_pictures(autoencoder, examples, size, cache=cache, show=False)[0]

    first = encode()
    assert torch.equal(encode(examples[::-1]), first.flip(0))
    assert encode(examples[:3]).shape[0] == 3
    assert encode(size=8).shape[-1] == first.shape[-1] // 2
    torch.manual_seed(0)
    assert not torch.equal(encode(autoencoder=AutoencoderKL(stage.autoencoder.config)), first)
    shutil.copy(folder / "001.png", folder / "000.png")
    assert torch.equal(encode()[0], first[1])
    assert len(list(cache.iterdir())) == 6
    moved = folder.rename(tmp_path / "moved")
    encode(read_folder(moved))
    assert len(list(cache.iterdir())) == 6  # the same pictures in another place


def test_cache_knows_pictures_by_name_too(stage, tmp_path):
    """Two files of the same size and time, in another order."""
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (SIZE, SIZE), colour).save(tmp_path / f"{name}.bmp")
        os.utime(tmp_path / f"{name}.bmp", (0, 0))
    examples = read_folder(tmp_path)
    cache = tmp_path / "cache"
    first, second = (encode_pictures(stage.autoencoder, e, SIZE, cache=cache)[0] for e in (examples, examples[::-1]))
    assert torch.equal(first, second.flip(0))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        ("data", {"size": 15}, r"\[data\] size=15 must be a multiple of 2"),
        ("unet", {"cross_attention_dim": 32}, "width 16 and the UNet attends to width 32"),
        ("unet", {"in_channels": 8}, "UNet takes 8 channels"),
        ("unet", {"out_channels": 8}, "UNet takes 4 channels and gives 8, and the VAE's latents have 4"),
    ],
)
def test_settings_that_do_not_fit_stop_before_the_long_work(
    diffusion_config, tmp_path, monkeypatch, section, settings, message
):
    monkeypatch.setattr("latentgen.training.diffusion.check_pictures", lambda *_, **__: pytest.fail("too late"))
    config = changed(diffusion_config, run={"output": tmp_path / "run"})
    if section == "data":
        config = changed(config, data=settings)
    else:
        config = replace(config, unet=config.unet | settings)
    with pytest.raises(ValueError, match=message):
        train_diffusion(config)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_broken_pictures_stop_before_training_or_are_left_out(diffusion_config, tmp_path):
    folder = make_pictures(tmp_path / "pictures", 8)
    (folder / "003.png").write_bytes(b"broken")
    config = changed(diffusion_config, data={"folder": folder}, run={"output": tmp_path / "run", **ONE_STEP})
    with pytest.raises(ValueError, match=r"1 of 8 pictures are broken(.|\n)*003\.png"):
        train_diffusion(config)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    with pytest.warns(UserWarning, match=r"003\.png"):
        train_diffusion(changed(config, data={"skip_broken": True}))
    with pytest.raises(ValueError, match="holds a run"):
        train_diffusion(config)


def test_tokenizer_of_a_run_is_kept_once_there_are_checkpoints(diffusion_config, accelerator, tmp_path):
    folder = make_pictures(tmp_path / "pictures", 8)
    config = changed(diffusion_config, data={"folder": folder}, run={"output": tmp_path / "run", **ONE_STEP})
    first = DiffusionStage(config, accelerator).task.tokenizer.get_vocab()
    write_metadata(folder, [{"file_name": f"{i:03d}.png", "text": "zebra zebra zebra"} for i in range(8)])
    second = DiffusionStage(config, accelerator).task.tokenizer.get_vocab()  # nothing was trained yet: learnt anew
    assert second != first
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step-00000001" / "state.json").write_text("{}")
    write_metadata(folder, [{"file_name": f"{i:03d}.png", "text": "a horse a horse"} for i in range(8)])
    assert DiffusionStage(config, accelerator).task.tokenizer.get_vocab() == second


def test_captions_are_looked_at_before_the_long_work(diffusion_config, accelerator, tmp_path, monkeypatch):
    folder = make_pictures(tmp_path / "pictures", 4)
    write_metadata(folder, [{"file_name": f"{i:03d}.png", "text": f"{i} word" * 20} for i in range(4)])
    monkeypatch.setattr("latentgen.training.diffusion.check_pictures", lambda *_, **__: pytest.fail("too late"))
    config = changed(diffusion_config, data={"folder": folder}, run={"output": tmp_path / "run"})
    with pytest.warns(UserWarning, match="4 of 4 captions are too long"), pytest.raises(pytest.fail.Exception):
        DiffusionStage(config, accelerator).prepare()


def test_captions_stay_with_their_pictures_where_others_are_left_out(diffusion_config, accelerator, tmp_path):
    folder = make_pictures(tmp_path / "pictures", 8)
    config = changed(diffusion_config, data={"folder": folder, "skip_broken": True}, run={"output": tmp_path / "run"})
    whole = ready(DiffusionStage(config, accelerator))
    (folder / "003.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match=r"003\.png"):
        rest = ready(DiffusionStage(config, accelerator))
    kept = [row for row in range(8) if row != 3]
    assert torch.equal(rest.task.ids, whole.task.ids[kept])
    assert torch.equal(rest.mean, whole.mean[kept])


def test_a_picture_may_have_several_captions(diffusion_config, accelerator, tmp_path):
    folder = make_pictures(tmp_path / "pictures", 2)
    names = ["000.png", "000.png", "001.png"]
    write_metadata(
        folder, [{"file_name": n, "text": t} for n, t in zip(names, ["red", "a blue star", "green"], strict=True)]
    )
    stage = ready(
        DiffusionStage(
            changed(diffusion_config, data={"folder": folder}, run={"output": tmp_path / "run"}), accelerator
        )
    )
    texts = [stage.task.tokenizer.decode(row, skip_special_tokens=True) for row in stage.task.ids]
    assert texts == ["red", "a blue star", "green"]


def test_a_scheduler_means_what_it_means_in_a_model_folder(diffusion_config):
    """What [scheduler] leaves out is a latent model's, and the folder that the run writes says the same."""
    left_out = {k: v for k, v in diffusion_config.scheduler.items() if k != "clip_sample"}
    scheduler = replace(diffusion_config, scheduler=left_out).make_scheduler()
    assert (scheduler.clip_sample, scheduler.steps_offset) == (False, 1)
    said = replace(diffusion_config, scheduler={**left_out, "clip_sample": True, "steps_offset": 0}).make_scheduler()
    assert (said.clip_sample, said.steps_offset) == (True, 0)


def test_captions_that_are_cut_or_missing_give_one_warning(diffusion_config, accelerator, tmp_path):
    folder = make_pictures(tmp_path / "pictures", 4)
    config = changed(diffusion_config, data={"folder": folder}, run={"output": tmp_path / "run"})
    write_metadata(folder, [{"file_name": f"{i:03d}.png", "text": f"{i} word" * 20} for i in range(4)])
    with pytest.warns(UserWarning, match="4 of 4 captions are too long") as caught:
        ready(DiffusionStage(config, accelerator))
    assert len(caught) == 1
    write_metadata(folder, [{"file_name": f"{i:03d}.png"} for i in range(4)])
    with pytest.warns(UserWarning, match="no picture has a caption") as caught:
        ready(DiffusionStage(config, accelerator))
    assert len(caught) == 1


def test_other_processes_wait_and_write_nothing(diffusion_config, stage):
    """A process that is not the first finds tokenizer and latents where the first left them."""
    other = SimpleNamespace(
        device=torch.device("cpu"), is_main_process=False, main_process_first=lambda: warnings.catch_warnings()
    )
    before = {p: p.stat().st_mtime_ns for p in stage.config.run.output.rglob("*")}
    torch.manual_seed(0)
    second = ready(DiffusionStage(changed(diffusion_config, run={"output": stage.config.run.output}), other))
    assert {p: p.stat().st_mtime_ns for p in stage.config.run.output.rglob("*")} == before
    assert torch.equal(second.task.ids, stage.task.ids)
