"""The command line, as a shell sees it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_sd import make_upscaler_folder

from latentgen import (
    Class2ImagePipeline,
    DDIMScheduler,
    Img2ImgPipeline,
    Layout2ImagePipeline,
    Semantic2ImagePipeline,
    Text2ImagePipeline,
    __version__,
)
from latentgen.bundled import BUNDLED_GUIDANCE, BUNDLED_UPSCALE_STEPS
from latentgen.cli import main, parser, values
from latentgen.diffusion.noise import MAX_SEED
from latentgen.models import (
    AutoencoderKL,
    ClassEmbedder,
    LDMBertModel,
    SpatialRescaler,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from latentgen.pipelines import UnconditionalPipeline
from latentgen.pipelines.adapters import MOST_SCALE
from latentgen.pipelines.png import read_record
from latentgen.runtime.device import DTYPE_NAMES
from latentgen.schedulers import SHORT_NAMES
from latentgen.text import LayoutTokenizer
from latentgen.training.config import TextConfig
from latentgen.training.text import build_text_encoder, train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of 32 x 32 pictures with random weights."""
    torch.manual_seed(0)
    text = TextConfig(max_length=16, vocab_size=600, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    tokenizer = train_tokenizer(["a red circle", "a blue star"], text)
    unet = {"sample_size": 16, "block_out_channels": [16, 16], "norm_num_groups": 4, "attention_head_dim": 2,
            "layers_per_block": 1, "cross_attention_dim": 16, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}  # fmt: skip
    vae = {"block_out_channels": [8, 8], "norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"] * 2,
           "up_block_types": ["UpDecoderBlock2D"] * 2}  # fmt: skip
    pipe = Text2ImagePipeline(
        vae=AutoencoderKL.from_config(vae),
        text_encoder=build_text_encoder(tokenizer, text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_config(unet),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
    )
    path = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(path)
    return path


def generate(folder, *arguments: object) -> int:
    common = ["--model", folder, "--dtype", "float32", "--device", "cpu", "--steps", 2, "--quiet"]
    return main(["generate", *map(str, (*arguments, *common))])


def test_a_picture_and_how_to_make_it_again(folder, tmp_path, capsys):
    out = tmp_path / "new folder" / "star.png"
    assert generate(folder, "a blue star", "-o", out, "--seed", 7, "--negative", "red", "--scheduler", "euler") == 0
    assert capsys.readouterr().out == f"{out} (seed 7)\n"
    record = read_record(out)
    assert record["prompt"] == "a blue star"
    assert record["version"] == __version__
    assert record["model"] == str(folder)
    pipe = Text2ImagePipeline.from_pretrained(record["model"], dtype=record["dtype"], device=record["device"])
    assert np.array_equal(np.asarray(draw_again(pipe, record)), np.asarray(Image.open(out)))


def draw_again(pipe, record):
    names = (
        "prompt",
        "negative_prompt",
        "seed",
        "num_inference_steps",
        "guidance_scale",
        "height",
        "width",
        "scheduler",
    )
    return pipe(**{name: record[name] for name in names}, show_progress=False).images[0]


def test_a_record_alone_is_enough_from_any_folder(folder, tmp_path, monkeypatch):
    """A model under a relative path, in a variant that differs from the plain files."""
    model = shutil.copytree(folder, tmp_path / "model")
    pipe = Text2ImagePipeline.from_pretrained(folder, dtype="float32", device="cpu")
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(1.5)
    pipe.save_pretrained(model, variant="ema")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "star.png"
    assert generate("model", "a star", "-o", out, "--seed", 5, "--height", 16, "--variant", "ema") == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    record = read_record(out)
    assert (record["model"], record["variant"], record["revision"]) == (str(model), "ema", None)
    load = {name: record[name] for name in ("variant", "revision", "dtype", "device")}
    again = draw_again(Text2ImagePipeline.from_pretrained(record["model"], **load), record)
    assert np.array_equal(np.asarray(again), np.asarray(Image.open(out)))
    plain = draw_again(Text2ImagePipeline.from_pretrained(model, dtype="float32", device="cpu"), record)
    assert not np.array_equal(np.asarray(plain), np.asarray(again))


def test_the_record_of_a_hub_model_has_its_commit(folder, tmp_path, monkeypatch):
    commit = "0123456789" * 4
    snapshot = tmp_path / "models--owner--name" / "snapshots" / commit
    shutil.copytree(folder, snapshot)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "v1").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "star.png"
    assert generate("owner/name", "a star", "-o", out, "--revision", "v1") == 0
    record = read_record(out)
    assert (record["model"], record["revision"]) == ("owner/name", commit)


def test_bundled_is_the_name_of_the_bundled_model(tmp_path):
    for number, model in enumerate([["--model", "bundled"], []]):
        out = tmp_path / f"{number}.png"
        assert main(["generate", "a red heart", "--steps", "1", "--seed", "1", "--quiet", "-o", str(out), *model]) == 0
        assert read_record(out)["model"] == "bundled"
        assert read_record(out)["guidance_scale"] == BUNDLED_GUIDANCE
    assert np.array_equal(np.asarray(Image.open(tmp_path / "0.png")), np.asarray(Image.open(tmp_path / "1.png")))


def test_without_a_name_nothing_is_overwritten(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        assert generate(folder, "a star", "--seed", 1) == 0
    (tmp_path / "out-3.png").write_bytes(b"mine")
    assert generate(folder, "a star", "--num-images", 2) == 0
    assert generate(folder, "a star", "--num-images", 2) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["out.png", "out-1.png", "out-2.png", "out-0.png", "out-4.png", "out-5.png", "out-6.png"]
    assert (tmp_path / "out-3.png").read_bytes() == b"mine"


def test_a_file_that_is_named_is_replaced(folder, tmp_path):
    out = tmp_path / "x.png"
    out.write_bytes(b"old")
    assert generate(folder, "a star", "-o", out) == 0
    assert read_record(out)["prompt"] == "a star"
    assert list(tmp_path.iterdir()) == [out]


def test_pictures_are_kept_one_by_one(folder, tmp_path, monkeypatch, capsys):
    """What was drawn before an interrupt or an error is there, and no picture waits for the next."""
    real, calls = Text2ImagePipeline.__call__, []

    def call(self, *arguments, **options):
        calls.append(sorted(path.name for path in tmp_path.iterdir()))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    monkeypatch.setattr(Text2ImagePipeline, "__call__", call)
    assert generate(folder, "a star", "-o", tmp_path / "s.png", "--seed", 3, "--num-images", 4) == 130
    assert calls == [[], ["s-0.png"], ["s-0.png", "s-1.png"]]
    assert capsys.readouterr().out.count("seed") == 2


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 26, 3), dtype=np.uint8)).save(path)
    return path


def run(command, folder, *arguments):
    common = ["--model", folder, "--dtype", "float32", "--device", "cpu", "--steps", 4, "--quiet", "--seed", 3]
    return main([command, *map(str, (*arguments, *common))])


def test_a_picture_is_drawn_anew_and_its_record_remakes_it(folder, tmp_path, photo):
    out = tmp_path / "anew.png"
    assert run("img2img", folder, photo, "a star", "--strength", 0.5, "-o", out) == 0
    record = read_record(out)
    assert (record["pipeline"], record["image"], record["strength"]) == ("Img2ImgPipeline", str(photo), 0.5)
    pipe = Img2ImgPipeline.from_pretrained(record["model"], dtype=record["dtype"], device=record["device"])
    names = ("prompt", "negative_prompt", "seed", "num_inference_steps", "guidance_scale", "scheduler", "strength")
    again = pipe(image=Image.open(record["image"]), **{name: record[name] for name in names}).images[0]
    assert np.array_equal(np.asarray(again), np.asarray(Image.open(out)))
    assert again.size == (26, 20)


def test_a_part_is_drawn_anew_and_the_rest_stays(folder, tmp_path, photo):
    area = np.zeros((20, 26), np.uint8)
    area[4:12, 6:18] = 255
    Image.fromarray(area).save(tmp_path / "mask.png")
    out = tmp_path / "painted.png"
    assert run("inpaint", folder, photo, "a star", "--mask", tmp_path / "mask.png", "--repeats", 2, "-o", out) == 0
    drawn, before = np.asarray(Image.open(out)), np.asarray(Image.open(photo))
    assert np.array_equal(drawn[area == 0], before[area == 0])
    assert not np.array_equal(drawn[area > 0], before[area > 0])
    assert read_record(out)["mask_image"] == str(tmp_path / "mask.png")
    assert run("inpaint", folder, photo, "a star", "--mask", tmp_path / "mask.png", "--plain", "-o", out) == 0
    assert not np.array_equal(np.asarray(Image.open(out))[area == 0], before[area == 0])


def test_a_class_is_drawn_by_name_or_number(folder, tmp_path, capsys):
    pipe = Text2ImagePipeline.from_pretrained(folder, dtype="float32", device="cpu")
    classes = {"num_classes": 3, "embed_dim": 16, "has_null_class": True, "class_names": ["ring", "star"]}
    parts = {name: part for name, part in pipe.components.items() if name in ("vae", "unet", "scheduler")}
    model = tmp_path / "classes"
    Class2ImagePipeline(**parts, class_embedder=ClassEmbedder.from_config(classes)).save_pretrained(model)
    for name, file in (("star", "a.png"), ("1", "b.png"), ("ring", "c.png")):
        assert run("generate", model, "--class", name, "-o", tmp_path / file) == 0
    first, again, other = ((tmp_path / f).read_bytes() for f in ("a.png", "b.png", "c.png"))
    assert np.array_equal(*(np.asarray(Image.open(tmp_path / f)) for f in ("a.png", "b.png")))
    assert other not in (first, again)
    record = read_record(tmp_path / "a.png")
    assert (record["classes"], record["pipeline"], record["guidance_scale"]) == ("star", "Class2ImagePipeline", None)
    capsys.readouterr()
    assert run("generate", model, "--class", "cat", "-o", tmp_path / "d.png") == 1
    assert "the class 'cat' is not known: names are ring, star" in capsys.readouterr().err
    assert run("generate", model, "--class", "star", "--negative", "ring", "-o", tmp_path / "d.png") == 1
    assert "--negative is a text, and --class draws without one" in capsys.readouterr().err


SQUARE = [["newt", [0.1, 0.2, 0.6, 0.9]]]


@pytest.fixture
def of_maps(tmp_path):
    """A tiny model folder for layouts, and one for maps of 5 labels."""
    levels = {"block_out_channels": [16, 16], "norm_num_groups": 8, "layers_per_block": 1}
    cross = {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "attention_head_dim": 2,
             "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "cross_attention_dim": 12}  # fmt: skip
    plain = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "add_attention": False}
    vae = VQModel.from_config({"block_out_channels": [8, 8], "down_block_types": ["DownEncoderBlock2D"] * 2,
                               "up_block_types": ["UpDecoderBlock2D"] * 2, "norm_num_groups": 4})  # fmt: skip
    bert = {"vocab_size": 130, "max_position_embeddings": 14, "d_model": 12, "encoder_layers": 1, "encoder_ffn_dim": 24,
            "encoder_attention_heads": 2, "head_dim": 6}  # fmt: skip
    common = {"vae": vae, "scheduler": DDIMScheduler()}
    Layout2ImagePipeline(
        **common, layout_tokenizer=LayoutTokenizer(("newt",), tokens=128, objects=4),
        layout_encoder=LDMBertModel.from_config(bert),
        unet=UNet2DConditionModel.from_config({**levels, **cross, "in_channels": 3, "out_channels": 3, "sample_size": 8}),
    ).save_pretrained(tmp_path / "layouts")  # fmt: skip
    Semantic2ImagePipeline(
        **common, label_rescaler=SpatialRescaler.from_config({"n_stages": 1, "in_channels": 5, "out_channels": 3}),
        unet=UNet2DModel.from_config({**levels, **plain, "in_channels": 6, "out_channels": 3, "sample_size": 8}),
    ).save_pretrained(tmp_path / "maps")  # fmt: skip
    UnconditionalPipeline(
        vqvae=vae, scheduler=DDIMScheduler(),
        unet=UNet2DModel.from_config({**levels, **plain, "in_channels": 3, "out_channels": 3, "sample_size": 8}),
    ).save_pretrained(tmp_path / "faces")  # fmt: skip
    return tmp_path


def test_a_layout_and_a_map_are_drawn(of_maps, capsys):
    boxes, labels, out = of_maps / "boxes.json", of_maps / "labels.png", of_maps / "out.png"
    boxes.write_text(json.dumps(SQUARE))
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 5).save(labels)
    assert run("generate", of_maps / "layouts", "--layout", boxes, "-o", out) == 0
    assert Image.open(out).size == (16, 16)
    assert read_record(out)["layout"] == SQUARE
    assert run("generate", of_maps / "maps", "--map", labels, "-o", out) == 0
    assert Image.open(out).size == (8, 8)
    assert read_record(out)["labels"] == str(labels)
    boxes.write_text(json.dumps([["newt", [0.1, 0.2, 0.6, 1.9]]]))
    labels.write_bytes(b"no picture")
    for options, message in (
        (["layouts", "--layout", boxes], "leaves [0, 1]"),
        (["layouts", "--layout", labels], "is no JSON such as"),
        (["layouts", "--layout", of_maps / "none.json"], "cannot be read: No such file"),
        (["layouts", "--layout", boxes, "--guidance-scale", "3"], "--guidance-scale has no meaning for --layout"),
        (["maps", "--map", labels], "labels.png"),
        (["maps", "--map", labels, "--height", "8"], "the picture is as large as the map"),
        (["maps", "--map", labels, "--negative", "x"], "--negative is a text, and --map draws without one"),
    ):
        model, *rest = options
        assert run("generate", of_maps / model, *rest, "-o", of_maps / "d.png") == 1
        assert message in capsys.readouterr().err
    assert not (of_maps / "d.png").exists()


def test_a_file_of_several_layouts_is_refused_and_not_cut(of_maps, capsys):
    boxes, out = of_maps / "boxes.json", of_maps / "out.png"
    boxes.write_text(json.dumps([SQUARE, SQUARE]))
    assert run("generate", of_maps / "layouts", "--layout", boxes, "-o", out) == 1
    assert "boxes.json holds 2 layouts: give a file of one" in capsys.readouterr().err
    boxes.write_text(json.dumps([SQUARE]))
    assert run("generate", of_maps / "layouts", "--layout", boxes, "-o", out) == 0
    assert read_record(out)["layout"] == SQUARE
    boxes.write_text("[" * 100_000)
    assert run("generate", of_maps / "layouts", "--layout", boxes, "-o", out) == 1
    assert "is no JSON such as" in capsys.readouterr().err


def test_a_model_without_a_condition_and_large_maps(of_maps, capsys):
    out = of_maps / "out.png"
    assert run("generate", of_maps / "faces", "--unconditional", "--height", 32, "-o", out) == 0
    assert Image.open(out).size == (16, 32)
    assert run("generate", of_maps / "faces", "--unconditional", "--guidance-scale", 3) == 1
    assert "--guidance-scale has no meaning for --unconditional" in capsys.readouterr().err
    Image.new("L", (8, 8)).save(of_maps / "labels.png")
    assert run("generate", of_maps / "maps", "--map", of_maps / "labels.png", "--max-pixels", 63) == 1
    assert "more than max_pixels=63" in capsys.readouterr().err


def test_the_bundled_upscaler_takes_the_steps_that_it_was_measured_with(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert main(["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--quiet"]) == 0
    assert read_record(tmp_path / "b.png")["num_inference_steps"] == BUNDLED_UPSCALE_STEPS


@pytest.mark.parametrize(("option", "kind"), [("--layout", "layouts"), ("--map", "maps")])
def test_no_model_of_layouts_or_maps_is_bundled(capsys, nothing_is_loaded, option, kind):
    assert main(["generate", option, "x"]) == 1
    assert f"{option} needs a model of {kind}: name one with --model" in capsys.readouterr().err


def test_no_class_model_is_bundled(capsys, nothing_is_loaded):
    assert main(["generate", "--class", "star"]) == 1
    assert "--class needs a model of classes: name one with --model" in capsys.readouterr().err


def test_a_picture_is_enlarged_by_the_bundled_model(tmp_path, capsys):
    Image.new("RGB", (12, 8), "olive").save(tmp_path / "small.png")
    arguments = ["upscale", str(tmp_path / "small.png"), "--steps", "2", "--quiet", "-o", str(tmp_path / "large.png")]
    assert main(arguments) == 0, capsys.readouterr().err
    assert Image.open(tmp_path / "large.png").size == (48, 32)
    assert read_record(tmp_path / "large.png")["model"] == "bundled"


def test_a_picture_is_enlarged(tmp_path, photo, capsys):
    model, out = make_upscaler_folder(tmp_path / "upscaler"), tmp_path / "large.png"
    assert run("upscale", model, photo, "--prompt", "a star", "--noise-level", 5, "-o", out) == 0
    assert Image.open(out).size == (4 * 26, 4 * 20)
    record = read_record(out)
    assert (record["prompt"], record["noise_level"], record["image"]) == ("a star", 5, str(photo))
    assert run("upscale", model, photo, "--noise-level", 10, "-o", out) == 1
    assert "noise_level=10 must be a whole number from 0 to 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["img2img", "nothing.png", "a"], "nothing.png does not exist: give a picture's file"),
        (["img2img", ".", "a"], ". is a folder: give a picture's file"),
        (["img2img", "text.png", "a"], "text.png is no picture"),
        (["img2img", "photo.jpg", "a", "--max-pixels", "519"], "photo.jpg is 26 x 20 pixels, more than max_pixels=519"),
        (["inpaint", "photo.jpg", "a", "--mask", "nothing.png"], "nothing.png does not exist"),
    ],
)
def test_a_wrong_picture_is_one_clear_line(tmp_path, monkeypatch, capsys, photo, nothing_is_loaded, arguments, words):
    (tmp_path / "text.png").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Img2ImgPipeline, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"latentgen: error: {words}")
    assert len(error.splitlines()) == 1


def test_a_mask_of_another_size_is_one_clear_line(folder, tmp_path, photo, capsys):
    Image.new("L", (20, 26), 255).save(tmp_path / "mask.png")
    assert run("inpaint", folder, photo, "a", "--mask", tmp_path / "mask.png", "-o", tmp_path / "x.png") == 1
    assert "image is 26 x 20 pixels and mask_image 20 x 26; they must have one size" in capsys.readouterr().err


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(Text2ImagePipeline, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))


@pytest.mark.parametrize("place", ["file/x.png", "closed/x.png", "dir.png", "x" * 300 + ".png"])
def test_a_picture_that_cannot_be_kept_is_not_drawn(folder, tmp_path, capsys, place, nothing_is_loaded):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "closed").mkdir(mode=0o500)
    (tmp_path / "dir.png").mkdir()
    if place.startswith("closed") and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    assert generate(folder, "a star", "-o", tmp_path / place) == 1
    error = capsys.readouterr().err
    assert error.startswith("latentgen: error: ")
    assert str(tmp_path / place) in error
    assert len(error.splitlines()) == 1


def test_a_seed_that_leaves_no_room_for_the_others(folder, tmp_path, capsys, nothing_is_loaded):
    assert generate(folder, "x", "-o", tmp_path / "x.png", "--seed", MAX_SEED, "--num-images", 2) == 1
    assert "too large for 2 pictures" in capsys.readouterr().err


def test_several_pictures_are_numbered(folder, tmp_path):
    assert generate(folder, "a star", "-o", tmp_path / "s.png", "--seed", 3, "--num-images", 11, "--height", 16) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"s-{k:02d}.png" for k in range(11)]
    assert [read_record(tmp_path / f"s-{k:02d}.png")["seed"] for k in range(11)] == list(range(3, 14))
    assert Image.open(tmp_path / "s-00.png").size == (32, 16)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--height", 33], ["height=33", "multiple of 2", "32 or 34"]),
        (["--steps", 1001], ["num_inference_steps=1001", "from 1 to 1000"]),
        (["--device", "xpu"], ["xpu", "cpu"]),
        (["--variant", "fp16"], ["no weights of the variant 'fp16'"]),
        (["-o", "."], ["is a folder"]),
    ],
)
def test_a_wrong_value_is_one_clear_line(folder, capsys, arguments, words):
    # The options given last win over those that `generate` adds.
    common = ["generate", "a star", "--model", str(folder), "--device", "cpu", "--quiet"]
    assert main([*common, *map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("latentgen: error: ")
    assert len(captured.err.strip().splitlines()) == 1
    assert all(word in captured.err for word in words), captured.err


def test_no_such_model(capsys, tmp_path):
    assert main(["generate", "x", "--model", str(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().err
    assert main(["generate", "x", "--model", str(tmp_path)]) == 1
    assert "model_index.json" in capsys.readouterr().err


def test_debug_shows_the_traceback(folder):
    with pytest.raises(ValueError, match="height=33"):
        main(["generate", "x", "--model", str(folder), "--height", "33", "--debug"])


@pytest.mark.parametrize(
    "arguments",
    [[], ["generate"], ["paint", "x"], ["train", "x"],
     *(["generate", "x", option, value] for option, value in [
         ("--steps", "many"), ("--steps", "0"), ("--num-images", "0"), ("--height", "-8"), ("--width", "1.5"),
         ("--guidance-scale", "nan"), ("--guidance-scale", "-1"), ("--seed", "-1"), ("--seed", str(2**64)),
         ("--scheduler", "fast"), ("--dtype", "int8"), ("-o", "picture.jpg")]),
     ["img2img", "x.png"], ["inpaint", "x.png", "x"], ["img2img", "x.png", "x", "--strength", "0"],
     ["generate", "x", "--class", "star"], ["upscale"], ["upscale", "x.png", "--noise-level", "-1"],
     ["upscale", "x.png", "--memory", "much"], ["generate", "x", "--map", "m.png"],
     ["img2img", "x.png", "x", "--height", "8"], ["inpaint", "x.png", "x", "--mask", "m.png", "--padding-mask-crop", "-1"]],
)  # fmt: skip
def test_wrong_usage_exits_with_2(arguments, capsys, nothing_is_loaded):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert "usage: latentgen" in capsys.readouterr().err


def test_words_of_the_command_line_are_those_of_the_library():
    assert tuple(SHORT_NAMES) == parser.SCHEDULERS
    assert tuple(DTYPE_NAMES) == parser.DTYPES
    assert MAX_SEED == values.MAX_SEED
    assert MOST_SCALE == values.MAX_LORA_SCALE


def test_usage_is_answered_without_torch():
    call = "main(['generate', 'x', '--steps', '0'])"
    code = f"import sys\nfrom latentgen.cli import main\ntry: {call}\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "False\n")


def test_an_error_of_many_findings_is_one_line(folder, tmp_path, capsys):
    model = shutil.copytree(folder, tmp_path / "model")
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.bias"], tensors["conv_in.weight"]
    save_file(tensors, file)
    assert generate(model, "x", "-o", tmp_path / "x.png") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 missing" in line
    assert "fetch both again" in line
    assert line.endswith("(--debug lists all)")
    with pytest.raises(ValueError, match=r"(?s)conv_in.bias .*is missing.*conv_in.weight .*is missing"):
        generate(model, "x", "-o", tmp_path / "x.png", "--debug")


def test_python_m_latentgen():
    done = subprocess.run([sys.executable, "-m", "latentgen", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"latentgen {__version__}\n"


def test_help_and_version(capsys):
    for arguments, words in ((["--help"], "generate"), (["generate", "--help"], "--negative"), (["train", "--help"], "TOML"),
                             (["img2img", "--help"], "--strength"), (["inpaint", "--help"], "--mask"),
                             (["--version"], __version__)):  # fmt: skip
        with pytest.raises(SystemExit) as raised:
            main(arguments)
        assert raised.value.code == 0
        assert words in capsys.readouterr().out


def test_train_without_a_config(capsys, tmp_path):
    assert main(["train", "autoencoder", str(tmp_path / "none.toml")]) == 1
    assert "there is no such config file" in capsys.readouterr().err


def test_a_long_prompt_is_warned_about_once(folder, tmp_path, capsys):
    assert generate(folder, "a red circle " * 10, "-o", tmp_path / "x.png", "--num-images", 2) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("latentgen: warning: The prompt has ")
    assert "the text encoder reads 14" in lines[0]


SENDS_SIGINT = pytest.mark.skipif(
    os.name != "posix" or signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
    reason="sends a signal, which what a shell starts in the background ignores",
)


@SENDS_SIGINT
def test_interrupted(folder, tmp_path):
    command = [sys.executable, "-m", "latentgen.cli", "generate", "x", "--model", str(folder), "--steps", "1000",
               "--num-images", "64", "-o", str(tmp_path / "x.png")]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = ""
        while "/1000" not in seen:  # the progress bar: sampling has begun
            seen += process.stderr.read(1)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert rest.strip().endswith("latentgen: interrupted")


@SENDS_SIGINT
def test_interrupted_while_a_library_starts(tmp_path):
    """What an exception would do there is undefined: torch's own start aborts the process."""
    (tmp_path / "torch.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    import os\n    os.abort()\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "latentgen", "generate", "x", "-o", str(tmp_path / "x.png")]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (130, "latentgen: interrupted\n")


def test_records_are_read_safely(tmp_path):
    path = tmp_path / "plain.png"
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(ValueError, match="does not say how it was made"):
        read_record(path)


def test_record_keeps_any_text(folder, tmp_path):
    out = tmp_path / "x.png"
    prompt = 'звезда ⭐ "quoted" \\ back\nslash'
    assert generate(folder, prompt, "-o", out) == 0
    assert read_record(out)["prompt"] == prompt
    assert json.loads(json.dumps(read_record(out))) == read_record(out)


class TestTools:
    """`latentgen info` and `latentgen convert`: what a shell sees; the rest stands in tests/pipelines/test_tools.py."""

    def test_info_of_a_folder(self, folder, capsys):
        assert main(["info", str(folder)]) == 0
        out = capsys.readouterr().out
        assert "a model folder, StableDiffusionPipeline" in out
        assert "loaded by   Text2ImagePipeline, Img2ImgPipeline or InpaintPipeline" in out
        assert "UNet2DConditionModel" in out
        assert "float32" in out

    def test_info_lets_a_file_write_nothing_into_the_terminal(self, tmp_path, capsys):
        said = {"a\n  what        Stable Diffusion 1, verified": "\x1b[2J\x1b]0;owned\x07", "b": "x\u202ey"}
        save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors", metadata=said)
        main(["info", str(tmp_path / "a.safetensors")])
        out = capsys.readouterr().out
        assert "\\n  what        Stable Diffusion 1, verified: \\x1b[2J\\x1b]0;owned\\x07" in out
        assert "x\\u202ey" in out
        assert all(c.isprintable() or c == "\n" for c in out)
        assert sum(line.startswith("  what") for line in out.splitlines()) == 1

    def test_errors_write_nothing_into_the_terminal_either(self, tmp_path, capsys):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "\x1b[31m\ud800"}))
        assert main(["info", str(tmp_path)]) == 1
        err = capsys.readouterr().err
        assert "\\x1b[31m\\ud800" in err
        assert all(c.isprintable() or c == "\n" for c in err)

    def test_info_for_programs(self, folder, capsys):
        assert main(["info", str(folder / "unet"), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["use"] == "UNet2DConditionModel.from_pretrained"
        assert found["components"][0]["parameters"] > 0

    def test_info_of_what_is_broken_or_absent(self, tmp_path, capsys):
        (tmp_path / "a.safetensors").write_bytes(b"123")
        assert main(["info", str(tmp_path / "a.safetensors")]) == 1
        shown = capsys.readouterr()
        assert "problem" in shown.out
        assert "cannot be used as it is" in shown.err
        assert main(["info", str(tmp_path / "absent")]) == 1
        assert "does not exist" in capsys.readouterr().err

    def test_a_single_file_is_a_model(self, tmp_path, capsys):
        """It is told from a folder, and asked what a folder is not."""
        save_file({"model.diffusion_model.x": torch.ones(1)}, tmp_path / "m.safetensors")
        command = ["generate", "x", "--model", str(tmp_path / "m.safetensors"), "-o", str(tmp_path / "o.png")]
        assert main(command) == 1
        assert "its UNet is of an unknown form" in capsys.readouterr().err
        assert main([*command, "--variant", "fp16"]) == 1
        assert "--variant fp16 is of a folder or a repository" in capsys.readouterr().err
        assert main(["generate", "x", "--prediction-type", "epsilon", "-o", str(tmp_path / "o.png")]) == 1
        assert "--prediction-type epsilon is of a single file, and --model bundled is none" in capsys.readouterr().err

    def test_convert_a_pickle(self, tmp_path, capsys):
        torch.save({"a": torch.arange(3.0)}, tmp_path / "a.pt")
        assert main(["convert", str(tmp_path / "a.pt"), str(tmp_path / "a.safetensors"), "--dtype", "fp16"]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / "a.safetensors")
        assert load_file(tmp_path / "a.safetensors")["a"].dtype == torch.float16

    def test_convert_a_folder_that_a_file_cannot_hold(self, folder, tmp_path, capsys):
        assert main(["convert", str(folder), str(tmp_path / "a.safetensors"), "--family", "sd-v1"]) == 1
        assert "save_pretrained" in capsys.readouterr().err
        assert not (tmp_path / "a.safetensors").exists()


def test_loras_and_embeddings(folder, tmp_path, capsys):
    pipe = Text2ImagePipeline.from_pretrained(folder, dtype="float32", device="cpu")
    layer = next(name for name, _ in pipe.unet.named_modules() if name.endswith("attn2.to_k"))
    (tmp_path / "a").mkdir()
    paths = [tmp_path / "style.safetensors", tmp_path / "a" / "style.safetensors"]
    for number, path in enumerate(paths):
        generator = torch.Generator().manual_seed(number)
        factors = {"A": torch.randn(2, 16, generator=generator), "B": torch.randn(16, 2, generator=generator)}
        save_file({f"unet.{layer}.lora_{x}.weight": factor for x, factor in factors.items()}, path)
    word = tmp_path / "thing.safetensors"
    save_file({"emb_params": torch.randn(2, 16)}, word)
    out = tmp_path / "out.png"
    command = ["generate", "a thing", "--model", str(folder), "--steps", "2", "--seed", "1", "-o", str(out), "--quiet",
               "--dtype", "float32", "--device", "cpu"]  # fmt: skip
    loras = ["--lora", f"{paths[0]}:0.5", "--lora", str(paths[1]), "--embedding", str(word)]
    assert main([*command, *loras]) == 0
    record = read_record(out)
    assert record["loras"] == [[str(paths[0]), 0.5], [str(paths[1]), 1.0]]
    assert record["embeddings"] == [[str(word), "thing"]]
    for (path, scale), name in zip(record["loras"], "ab", strict=True):
        pipe.load_lora(path, scale, name)
    pipe.load_textual_inversion(word)
    assert np.array_equal(np.asarray(draw_again(pipe, record)), np.asarray(Image.open(out)))
    pipe.unload_lora()
    assert not np.array_equal(np.asarray(draw_again(pipe, record)), np.asarray(Image.open(out)))
    paths[1].rename(tmp_path / "a" / "pytorch_lora_weights.safetensors")
    assert main([*command, "--lora", f"{tmp_path / 'a'}:0.5"]) == 0  # the folder that diffusers writes
    assert read_record(out)["loras"] == [[str(tmp_path / "a"), 0.5]]
    assert main([*command, "--lora", "gone.safetensors:2"]) == 1
    assert "gone.safetensors does not exist: give an adapter's file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a.safetensors", ("a.safetensors", 1.0)), ("a.safetensors:-0.5", ("a.safetensors", -0.5)), ("C:a", ("C:a", 1.0)),
     ("a:b:2", ("a:b", 2.0)), (":1", (":1", 1.0))],
)  # fmt: skip
def test_a_lora_and_its_scale(text, expected):
    path, scale = values.lora(text)
    assert (str(path), scale) == expected


@pytest.mark.parametrize("text", ["a:nan", "a:inf", "a:1001"])
def test_a_loras_scale_must_be_a_number(text):
    with pytest.raises(values.argparse.ArgumentTypeError, match="is not a scale"):
        values.lora(text)


def test_loras_are_for_texts(tmp_path, capsys, folder):
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(1)}, path)
    assert (
        main(["generate", "--class", "cat", "--model", str(folder), "--lora", str(path), "-o", str(tmp_path / "o.png")])
        == 1
    )
    assert "--lora and --embedding are for models of texts" in capsys.readouterr().err
