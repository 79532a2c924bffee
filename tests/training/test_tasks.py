"""Stage 2 on classes, and for super-resolution."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from tiny_runs import COLOURS, SIZE, changed, make_pictures, write_metadata

from latentgen import Class2ImagePipeline, SuperResPipeline
from latentgen.training import train_diffusion
from latentgen.training.config import DiffusionTraining, load_config
from latentgen.training.data import load_picture
from latentgen.training.diffusion import DiffusionStage
from latentgen.training.tasks.super_resolution import shrink

PLAIN = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "add_attention": False}


@pytest.fixture(scope="module")
def accelerator():
    yield Accelerator(mixed_precision="no")
    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Squares of four colours with the colour as label, out of order."""
    return labelled(make_pictures(tmp_path_factory.mktemp("labelled") / "pictures"), lambda i: list(COLOURS)[i % 4])


def labelled(folder, label):
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    write_metadata(folder, [line | {"label": label(i)} for i, line in enumerate(lines)])
    return folder


@pytest.fixture
def class_config(diffusion_config, folder, tmp_path):
    plain = replace(diffusion_config, task="class", text=None, samples=replace(diffusion_config.samples, prompts=()))
    unet = plain.unet | {"cross_attention_dim": 8}
    return changed(plain, data={"folder": folder}, run={"output": tmp_path / "classes"}, unet=unet)


@pytest.fixture
def superres_config(diffusion_config, folder, tmp_path):
    unet = {k: v for k, v in diffusion_config.unet.items() if not k.endswith("block_types")} | PLAIN
    return changed(
        diffusion_config,
        data={"folder": folder, "crop": 8},
        run={"output": tmp_path / "superres"},
        unet=unet,
        task="super_resolution",
        text=None,
        samples=replace(diffusion_config.samples, prompts=()),
        condition_dropout=0.0,
    )


def ready(config, accelerator):
    torch.manual_seed(0)
    stage = DiffusionStage(config, accelerator, show_progress=False)
    stage.prepare()
    return stage


def test_labels_are_the_classes_of_the_pictures_and_some_are_dropped(class_config, accelerator):
    stage = ready(class_config, accelerator)
    config = stage.task.class_embedder.config
    assert config.class_names == ("blue", "green", "red", "yellow")
    assert (config.num_classes, config.has_null_class) == (5, True)
    wanted = [config.class_names.index(list(COLOURS)[i % 4]) for i in range(24)]
    assert stage.task.labels.tolist() == wanted
    labels = torch.cat([stage.batch(i, 0, 1)["labels"] for i in range(500)])
    assert float((labels == 4).float().mean()) == pytest.approx(0.25, abs=0.03)  # more than four standard deviations
    latents = torch.cat([stage.batch(i, 0, 1)["x0"] for i in range(3)])  # an epoch: each picture once
    kept = torch.cat([stage.batch(i, 0, 1)["labels"] for i in range(3)])
    means = stage.autoencoder.scale(stage.mean.float())
    nearest = torch.cdist(latents.flatten(1), means.flatten(1)).argmin(dim=1)
    assert all(label in (4, wanted[k]) for label, k in zip(kept.tolist(), nearest.tolist(), strict=True))


def test_the_network_is_asked_about_the_label(class_config, accelerator):
    """A network that sees the label, and one that gets another, differ once training has begun to use it."""
    stage = ready(class_config, accelerator)
    with torch.no_grad():
        for parameter in stage.task.unet.parameters():
            parameter.normal_(std=0.2)
    batch = stage.batch(0, 0, 1)
    with torch.no_grad():
        there = stage.module(batch["x0"], batch["timesteps"], batch["labels"])
        other = stage.module(batch["x0"], batch["timesteps"], (batch["labels"] + 1) % 5)
    assert not torch.allclose(there, other)


def test_numbers_as_labels_keep_their_order(class_config, accelerator, tmp_path):
    folder = labelled(make_pictures(tmp_path / "numbered", 12), lambda i: i)
    stage = ready(changed(class_config, data={"folder": folder}), accelerator)
    assert stage.task.names == tuple(str(i) for i in range(12))
    assert stage.task.labels.tolist() == list(range(12))


def test_a_picture_without_a_label_is_named(class_config, accelerator, tmp_path):
    folder = make_pictures(tmp_path / "bare", 4)
    with pytest.raises(ValueError, match=r'4 of 4 lines have no "label", .* the first is of 000\.png'):
        DiffusionStage(changed(class_config, data={"folder": folder}), accelerator)
    write_metadata(folder, [{"file_name": "000.png", "label": 1.5}])
    with pytest.raises(ValueError, match=r"line 1: label=1\.5 must be a class"):
        DiffusionStage(changed(class_config, data={"folder": folder}), accelerator)


def test_a_class_model_is_trained_and_drawn_from_and_trained_further(class_config, accelerator, tmp_path):
    short = changed(class_config, run={"steps": 3, "warmup_steps": 0, "sample_every": 3})
    model = train_diffusion(short, show_progress=False)
    assert Image.open(short.run.output / "samples" / "00000003.png").width > 4 * SIZE
    pipe = Class2ImagePipeline.from_pretrained(model, dtype="float32", device="cpu")
    pictures = pipe(["red", 0], num_inference_steps=2, seed=0, show_progress=False).images
    assert [p.size for p in pictures] == [(SIZE, SIZE)] * 2
    further = changed(short, run={"output": tmp_path / "further", "init_from": model})
    stage = DiffusionStage(further, accelerator)
    assert torch.equal(stage.task.class_embedder.embedding.weight.cpu(), pipe.class_embedder.embedding.weight)
    fewer = labelled(make_pictures(tmp_path / "other", 4), lambda i: "purple")
    with pytest.raises(ValueError, match=r"has the labels purple, which init_from, .*, has no class for"):
        DiffusionStage(changed(further, data={"folder": fewer}), accelerator)


def test_small_pictures_are_cut_with_the_latents(superres_config, accelerator):
    """Latents here have no spread, so each batch entry is somewhere in its picture's: the small picture must be from there."""
    stage = ready(superres_config, accelerator)
    stage.std = torch.zeros_like(stage.std)
    factor = stage.autoencoder.config.factor
    side = 8 // factor
    small = [
        torch.from_numpy(shrink(load_picture(e.path, SIZE), factor).copy()).permute(2, 0, 1).float() / 127.5 - 1
        for e in stage.examples
    ]
    means = stage.autoencoder.scale(stage.mean.float())
    corners = set()
    for index in range(3):
        batch = stage.batch(index, 0, 1)
        assert batch["x0"].shape[2:] == batch["small"].shape[2:] == batch["eps"].shape[2:] == (side, side)
        for x0, picture in zip(batch["x0"], batch["small"], strict=True):
            places = [
                (k, y, x)
                for k in range(len(means))
                for y in range(means.shape[2] - side + 1)
                for x in range(means.shape[3] - side + 1)
                if torch.equal(means[k, :, y : y + side, x : x + side], x0)
            ]
            assert any(torch.equal(small[k][:, y : y + side, x : x + side], picture) for k, y, x in places)
            corners |= {place[1:] for place in places}
    assert len(corners) > 5


def test_a_super_resolution_model_is_trained_and_enlarges(superres_config):
    short = changed(superres_config, run={"steps": 3, "warmup_steps": 0, "sample_every": 3})
    model = train_diffusion(short, show_progress=False)
    assert (short.run.output / "samples" / "00000003.png").exists()
    assert json.loads((model / "model_index.json").read_text())["_class_name"] == "LDMSuperResolutionPipeline"
    pipe = SuperResPipeline.from_pretrained(model, dtype="float32", device="cpu")
    small = Image.fromarray(np.zeros((6, 10, 3), np.uint8))
    large = pipe(image=small, num_inference_steps=2, seed=0, show_progress=False).images[0]
    assert large.size == (10 * pipe.vae.config.factor, 6 * pipe.vae.config.factor)


def test_shrinking_is_by_all_pixels():
    """A chequerboard of single pixels becomes grey: without a wide filter it would become black or white."""
    board = np.indices((16, 16)).sum(axis=0) % 2 * 255
    small = shrink(np.repeat(board[..., None], 3, axis=2).astype(np.uint8), 4)
    assert small.shape == (4, 4, 3)
    assert np.abs(small.astype(int) - 128).max() <= 3


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('task = "layout"', "task='layout' must be one of text, class, super_resolution, inpainting"),
        ('task = "class"', r"\[text\] is for task text or inpainting and has no meaning for class: leave it out"),
        (
            'task = "super_resolution"\ncondition_dropout = 0.1',
            "condition_dropout is for task text or inpainting or class",
        ),
    ],
)
def test_settings_of_another_task_are_refused(workplace, lines, message):
    text = (workplace / "diffusion.toml").read_text()
    if "super" in lines:
        text = text.split("[text]")[0] + "[unet]" + text.split("[unet]")[1].split("[samples]")[0]
    path = workplace / "other-task.toml"
    path.write_text(lines + "\n" + text.replace("condition_dropout = 0.25\n", ""))
    with pytest.raises(ValueError, match=message):
        load_config(DiffusionTraining, path)


def test_crops_are_for_maps(diffusion_config):
    with pytest.raises(ValueError, match=r"\[data\] crop is for task super_resolution and has no meaning for text"):
        changed(diffusion_config, data={"crop": 8})
