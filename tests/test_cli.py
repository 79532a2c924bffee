"""The command line, as a shell sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from latentgen import DDIMScheduler, Text2ImagePipeline, __version__
from latentgen.cli import main
from latentgen.models import AutoencoderKL, UNet2DConditionModel
from latentgen.pipelines.png import read_record
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
        scheduler=DDIMScheduler(clip_sample=False),
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
    again = pipe(**{name: record[name] for name in names}, show_progress=False).images[0]
    assert np.array_equal(np.asarray(again), np.asarray(Image.open(out)))


def test_several_pictures_are_numbered(folder, tmp_path):
    assert generate(folder, "a star", "-o", tmp_path / "s.png", "--seed", 3, "--num-images", 11, "--height", 16) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"s-{k:02d}.png" for k in range(11)]
    assert [read_record(tmp_path / f"s-{k:02d}.png")["seed"] for k in range(11)] == list(range(3, 14))
    assert Image.open(tmp_path / "s-00.png").size == (32, 16)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--height", 33], ["height=33", "multiple of 2", "32 or 34"]),
        (["--steps", 0], ["num_inference_steps=0", "from 1 to 1000"]),
        (["--guidance-scale", "nan"], ["guidance_scale=nan"]),
        (["--num-images", 0], ["num_images_per_prompt=0"]),
        (["--seed", -1], ["seed=-1"]),
        (["--scheduler", "fast"], ["scheduler='fast'", "ddim"]),
        (["--dtype", "int8"], ["int8", "float16"]),
        (["-o", "picture.jpg"], ["picture.jpg", ".png"]),
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
    "arguments", [[], ["generate"], ["paint", "x"], ["generate", "x", "--steps", "many"], ["train", "x"]]
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert "usage: latentgen" in capsys.readouterr().err


def test_help_and_version(capsys):
    for arguments, words in ((["--help"], "generate"), (["generate", "--help"], "--negative"), (["train", "--help"], "TOML"),
                             (["--version"], __version__)):  # fmt: skip
        with pytest.raises(SystemExit) as raised:
            main(arguments)
        assert raised.value.code == 0
        assert words in capsys.readouterr().out


def test_train_without_a_config(capsys, tmp_path):
    assert main(["train", "autoencoder", str(tmp_path / "none.toml")]) == 1
    assert "there is no such config file" in capsys.readouterr().err


def test_a_long_prompt_is_warned_about_once(folder, tmp_path, capsys):
    assert generate(folder, "a red circle " * 10, "-o", tmp_path / "x.png") == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("latentgen: warning: The prompt has ")
    assert "the text encoder reads 14" in lines[0]


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
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
