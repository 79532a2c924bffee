"""From two TOML files to a folder that pipelines load."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import changed, metrics

from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.training import train_autoencoder, train_diffusion
from latentgen.training.data import load_picture, to_tensor
from latentgen.training.image_folder import read_folder


def test_loss_falls_in_both_stages(trained_autoencoder, trained_diffusion):
    for model, share in ((trained_autoencoder, 0.5), (trained_diffusion, 0.85)):
        lines = metrics(model.parent)
        assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
        assert sum(line["loss"] for line in lines[-3:]) / 3 < share * lines[0]["loss"]
        assert all(line["images_per_second"] > 0 and line["grad_norm"] > 0 for line in lines)


def test_pipeline_loads_the_result(trained_diffusion):
    pipe = Text2ImagePipeline.from_pretrained(trained_diffusion, device="cpu", dtype="float32")
    picture = pipe("a red square", num_inference_steps=2, seed=0, show_progress=False).images[0]
    assert picture.size == (16, 16)
    assert pipe.scheduler.prediction_type == "v_prediction"
    assert pipe.tokenizer.model_max_length == 12


def test_diffusers_loads_the_result_and_draws_the_same(trained_diffusion):
    diffusers = pytest.importorskip("diffusers")
    ours = Text2ImagePipeline.from_pretrained(trained_diffusion, device="cpu", dtype="float32")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(trained_diffusion, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    kwargs = {"num_inference_steps": 3, "guidance_scale": 2.0, "latents": latents, "output_type": "np"}
    a = ours("a blue square on white", show_progress=False, **kwargs).images
    b = theirs("a blue square on white", **kwargs).images
    assert np.abs(a - b).max() <= 1e-3


def test_scaling_factor_gives_unit_variance(trained_autoencoder, autoencoder_config):
    vae = AutoencoderKL.from_pretrained(trained_autoencoder, device="cpu", dtype="float32")
    pictures = to_tensor([load_picture(e.path, 16) for e in read_folder(autoencoder_config.data.folder)])
    posterior = vae.encode(pictures)
    noise = torch.randn(200, *posterior.mean.shape, generator=torch.Generator().manual_seed(0))
    drawn = posterior.mean + (0.5 * posterior.logvar).exp() * noise
    assert vae.config.scaling_factor == pytest.approx(1 / float(drawn.std()), rel=2e-3)
    assert float(vae.scale(drawn).var()) == pytest.approx(1.0, rel=5e-3)
    assert vae.config.sample_size == 16


def test_reconstruction_is_better_than_grey(trained_autoencoder, autoencoder_config):
    vae = AutoencoderKL.from_pretrained(trained_autoencoder, device="cpu", dtype="float32")
    pictures = to_tensor([load_picture(e.path, 16) for e in read_folder(autoencoder_config.data.folder)])
    error = (vae.decode(vae.encode(pictures).mode()) - pictures).abs().mean()
    assert float(error) < 0.5 * float((pictures - pictures.mean()).abs().mean())


def test_samples_are_drawn(trained_autoencoder, trained_diffusion):
    for model, size in ((trained_autoencoder, (8 * 18 - 2, 2 * 18 - 2)), (trained_diffusion, (2 * 18 - 2, 16))):
        for step in (30, 60):
            with Image.open(model.parent / "samples" / f"{step:08d}.png") as sheet:
                assert sheet.size == size


def test_exported_weights_are_the_averaged_ones(trained_diffusion):
    from safetensors.torch import load_file

    newest = trained_diffusion.parent / "checkpoints" / "step-00000060"
    average, raw = load_file(newest / "ema.safetensors"), load_file(newest / "model.safetensors")
    exported = load_file(trained_diffusion / "unet" / "diffusion_pytorch_model.safetensors")
    for name, tensor in exported.items():
        assert torch.equal(tensor, average[f"unet.{name}"])
    assert any(not torch.equal(tensor, raw[f"unet.{name}"]) for name, tensor in exported.items())


def test_folder_has_what_the_layout_asks_for(trained_diffusion):
    index = json.loads((trained_diffusion / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert not [p.name for p in trained_diffusion.parent.iterdir() if p.name.startswith(".")]


def test_init_from_continues_from_folders(
    tmp_path, autoencoder_config, trained_autoencoder, diffusion_config, trained_diffusion
):
    """A rate of almost nothing leaves the weights where the folder had them."""
    still = {
        "steps": 1,
        "warmup_steps": 0,
        "decay_steps": 0,
        "learning_rate": 1e-12,
        "ema_decay": 0.0,
        "sample_every": 0,
    }
    run = {**still, "output": tmp_path / "a", "init_from": trained_autoencoder}
    before = AutoencoderKL.from_pretrained(trained_autoencoder, dtype="float32").state_dict()
    again = train_autoencoder(changed(autoencoder_config, run=run))
    after = AutoencoderKL.from_pretrained(again, dtype="float32").state_dict()
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)

    run = {**still, "output": tmp_path / "d", "init_from": trained_diffusion}
    pipes = [trained_diffusion, train_diffusion(changed(diffusion_config, run=run))]
    first, second = (Text2ImagePipeline.from_pretrained(p, dtype="float32") for p in pipes)
    for name in ("unet", "text_encoder"):
        before, after = first.components[name].state_dict(), second.components[name].state_dict()
        assert all(torch.allclose(before[key], after[key], atol=1e-9) for key in before)
    assert second.tokenizer.get_vocab() == first.tokenizer.get_vocab()


def test_init_from_must_agree_with_the_file(tmp_path, autoencoder_config, trained_autoencoder):
    model = {**autoencoder_config.model, "layers_per_block": 3}
    run = {"output": tmp_path / "a", "init_from": trained_autoencoder}
    with pytest.raises(ValueError, match=r"\[model\] layers_per_block=3 does not agree .* has 1"):
        train_autoencoder(changed(autoencoder_config, run=run, model=model))


def test_bfloat16_learns_about_as_well(tmp_path, autoencoder_config, trained_autoencoder):
    """In the same process as runs in float32: accelerate's process-wide settings do not stand in the way."""
    mixed = train_autoencoder(changed(autoencoder_config, run={"output": tmp_path / "a", "precision": "bf16"}))
    losses = [metrics(model.parent)[-1]["loss"] for model in (mixed, trained_autoencoder)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


def test_fp16_needs_a_gpu(tmp_path, autoencoder_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="precision='fp16' needs a GPU"):
        train_autoencoder(changed(autoencoder_config, run={"output": tmp_path / "a", "precision": "fp16"}))
