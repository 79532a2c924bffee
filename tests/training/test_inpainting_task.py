"""Stage 2 for inpainting: what the network is shown, and what comes of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from tiny_runs import SIZE, changed

from latentgen import InpaintPipeline, Text2ImagePipeline
from latentgen.training import train_diffusion
from latentgen.training.config import load_config
from latentgen.training.data import load_picture, to_tensor
from latentgen.training.diffusion import DiffusionStage, DiffusionTraining
from latentgen.training.masks import EVERYTHING, random_mask
from latentgen.training.tasks import inpainting


@pytest.fixture(scope="module")
def accelerator():
    yield Accelerator(mixed_precision="no")
    AcceleratorState._reset_state()


@pytest.fixture
def config(diffusion_config, tmp_path):
    plain = replace(diffusion_config, task="inpainting", samples=replace(diffusion_config.samples, prompts=()))
    return changed(plain, run={"output": tmp_path / "inpainting"})


@pytest.fixture
def stage(config, accelerator):
    return ready(config, accelerator)


def ready(config, accelerator):
    """A stage whose posteriors have no spread, so that latents can be told by their pictures."""
    torch.manual_seed(0)
    stage = DiffusionStage(config, accelerator, show_progress=False)
    channels = stage.autoencoder.config.latent_channels
    with torch.no_grad():
        stage.autoencoder.quant_conv.weight[channels:] = 0
        stage.autoencoder.quant_conv.bias[channels:] = -100
    stage.prepare()
    return stage


class Seen:
    """What a UNet's first layer is given."""

    def __init__(self, unet):
        self.inputs = []
        unet.conv_in.register_forward_pre_hook(lambda _, inputs: self.inputs.append(inputs[0].clone()))


def test_masks_cover_something_everywhere_and_now_and_then_everything():
    random = np.random.default_rng(0)
    masks = np.stack([random_mask(random, 32) for _ in range(2000)])
    assert masks.shape == (2000, 32, 32)
    assert masks.dtype == bool
    assert masks.any(axis=(1, 2)).all()
    whole = masks.all(axis=(1, 2)).mean()
    assert whole == pytest.approx(EVERYTHING, abs=4 * (0.1 * 0.9 / 2000) ** 0.5)
    parts = masks[~masks.all(axis=(1, 2))]
    assert parts.mean(axis=0).min() > 0.005  # corners too
    assert 0.1 < parts.mean() < 0.5
    boxes = [m for m in parts if m[np.ix_(m.any(axis=1), m.any(axis=0))].all()]
    assert 0.2 < len(boxes) / len(parts) < 0.8  # one box; the others are several, or strokes


@pytest.mark.parametrize("size", [1, 2, 7])
def test_masks_of_tiny_pictures(size):
    random = np.random.default_rng(0)
    assert all(random_mask(random, size).any() for _ in range(200))


def test_the_network_is_shown_what_the_pipeline_shows(stage):
    batch = stage.batch(0, 0, 1)
    seen = Seen(stage.task.unet)
    with torch.no_grad():
        stage.loss(stage.module, batch)
        pipe = stage.task.pipeline()
        pipe(
            [""] * len(batch["x0"]),
            batch["pictures"].float() / 255,
            batch["masks"].float(),
            num_inference_steps=1,
            guidance_scale=1.0,
            seed=0,
            show_progress=False,
        )
    trained, drawn = seen.inputs
    assert trained.shape == drawn.shape
    assert trained.shape[1] == 2 * stage.autoencoder.config.latent_channels + 1
    assert torch.allclose(trained[:, 4:], drawn[:, 4:], atol=1e-5)
    assert 0 < trained[:, 4].mean() < 1
    assert trained[:, 5:].std() > 0.1


def test_pictures_captions_and_latents_are_of_the_same_example(stage):
    index = {tuple(load_picture(e.path, SIZE).ravel()): k for k, e in enumerate(stage.examples)}
    batch = stage.batch(1, 0, 1)
    own = [index[tuple(p.permute(1, 2, 0).numpy().ravel())] for p in batch["pictures"]]
    assert torch.allclose(batch["x0"], stage.autoencoder.scale(stage.mean[own].float()), atol=1e-4)
    for k, ids in zip(own, batch["ids"], strict=True):
        assert ids.tolist() in (stage.task.ids[k].tolist(), stage.task.empty.tolist())
    with torch.no_grad():
        pixels = stage.task.look_around(batch["pictures"], torch.zeros_like(batch["masks"]), batch["spread"])
        direct = stage.autoencoder.scale(stage.autoencoder.encode(to_tensor(
            [load_picture(stage.examples[k].path, SIZE) for k in own])).mean)  # fmt: skip
    assert torch.allclose(pixels[:, 1:], direct, atol=1e-4)


def test_batches_are_the_same_where_pictures_are_read_each_time(stage, config, accelerator, monkeypatch):
    monkeypatch.setattr(inpainting, "KEPT", 0)
    other = ready(config, accelerator)
    assert other.task.pictures is None
    for name, values in stage.batch(2, 0, 1).items():
        assert torch.equal(values, other.batch(2, 0, 1)[name])


def test_a_model_is_trained_drawn_from_and_loaded_by_both_libraries(config):
    short = changed(config, run={"steps": 3, "warmup_steps": 0, "sample_every": 3})
    model = train_diffusion(short, show_progress=False)
    assert Image.open(short.run.output / "samples" / "00000003.png").width > 8 * SIZE
    assert json.loads((model / "model_index.json").read_text())["_class_name"] == "StableDiffusionInpaintPipeline"
    pipe = InpaintPipeline.from_pretrained(model, dtype="float32", device="cpu")
    picture, mask = np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    mask[4:12, 4:12] = 255
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "np"}
    drawn = pipe("a red square", picture, mask, seed=0, keep_unmasked=False, show_progress=False, **call).images
    import diffusers

    theirs = diffusers.StableDiffusionInpaintPipeline.from_pretrained(model, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    expected = theirs("a red square", image=Image.fromarray(picture), mask_image=Image.fromarray(mask), height=SIZE,
                      width=SIZE, generator=noise, strength=1.0, **call).images  # fmt: skip
    assert float(np.abs(drawn - expected).max()) <= 1e-4


def test_a_text_model_is_widened_and_draws_the_same_at_first(config, trained_diffusion, accelerator, tmp_path):
    further = changed(config, run={"init_from": trained_diffusion})
    stage = ready(further, accelerator)
    unet = stage.task.unet
    assert unet.config.in_channels == unet.conv_in.in_channels == 9
    text = Text2ImagePipeline.from_pretrained(trained_diffusion, device="cpu", dtype="float32")
    batch = stage.batch(0, 0, 1)
    with torch.no_grad():
        context = text.text_encoder(input_ids=batch["ids"]).last_hidden_state
        plain = text.unet(batch["x0"], batch["timesteps"], context)
        shown = stage.module(**{k if k != "x0" else "latents": v for k, v in batch.items() if k != "eps"})
    assert torch.allclose(shown, plain, atol=1e-5)
    stage.export(tmp_path / "widened")
    again = ready(changed(further, run={"init_from": tmp_path / "widened"}), accelerator)  # is not widened twice
    assert again.task.unet.config.in_channels == 9


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[samples]\nprompts = ['a cat']", r"\[samples\] prompts is for task text and has no meaning for inpainting"),
        ("crop = 8", r"\[data\] crop is for task super_resolution and has no meaning for inpainting"),
    ],
)
def test_settings_of_another_task_are_refused(workplace, trained_autoencoder, line, message):
    text = (workplace / "diffusion.toml").read_text().split("[samples]")[0]
    if line.startswith("crop"):
        text = text.replace("size = 16\n", f"size = 16\n{line}\n", 1)
    else:
        text += line
    path = workplace / "inpainting.toml"
    path.write_text('task = "inpainting"\n' + text)
    with pytest.raises(ValueError, match=message):
        load_config(DiffusionTraining, path)
