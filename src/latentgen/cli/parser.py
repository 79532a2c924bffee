"""The commands and their options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from latentgen import __version__
from latentgen.bundled import BUNDLED_GUIDANCE, BUNDLED_UPSCALE_STEPS
from latentgen.cli import drawing, tools, training, values
from latentgen.cli.drawing import BUNDLED, STEPS

# Said again here, so that wrong usage is answered before torch is imported; a test holds them to their sources.
SCHEDULERS = ("ddpm", "ddim", "pndm", "euler", "euler_a", "heun", "dpm++", "dpm++_karras", "lcm")
PREDICTIONS = ("epsilon", "v_prediction")
DTYPES = ("float16", "fp16", "half", "bfloat16", "bf16", "float32", "fp32")


def make_parser() -> argparse.ArgumentParser:
    """All commands; each sets `run`, the function that does it."""
    parser = argparse.ArgumentParser(prog="latentgen", description="Latent diffusion: make pictures, train models.")
    parser.add_argument("--version", action="version", version=f"latentgen {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_img2img(commands)
    _add_inpaint(commands)
    _add_upscale(commands)
    _add_train(commands)
    _add_info(commands)
    _add_convert(commands)
    return parser


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="draw pictures from a prompt, of a class, or for a layout or a map",
        description="Draw pictures from a prompt, of a class, or for a layout or a map of labels. Without --model, a small "
        "bundled model draws shapes from a prompt: "
        '"a small red circle to the left of a large blue star, striped grey background".',
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("prompt", nargs="?", metavar="PROMPT", help='what to draw; "" draws without a condition')
    what.add_argument(
        "--class", dest="classes", metavar="NAME", help="draw this class, by its name or number (with --model)"
    )
    what.add_argument("--layout", type=Path, metavar="FILE",
        help='draw objects in their boxes: JSON such as [["cat", [0.1, 0.2, 0.6, 0.9]]], left, top, right and bottom '
        "from 0 to 1 (with --model)")  # fmt: skip
    what.add_argument("--map", type=Path, metavar="FILE",
        help="draw what a map says: a picture whose numbers are labels (with --model)")  # fmt: skip
    what.add_argument("--unconditional", action="store_const", const=True,
        help="draw by a model that has no condition, as of faces or rooms (with --model)")  # fmt: skip
    _add_max_pixels(parser)
    add = parser.add_argument
    add("--height", type=values.count, metavar="H", help="in pixels (default: what the model was trained on)")
    add("--width", type=values.count, metavar="W", help="in pixels (default: what the model was trained on)")
    _add_drawing(parser)
    parser.set_defaults(run=drawing.generate)


def _add_img2img(commands: Any) -> None:
    parser = commands.add_parser(
        "img2img",
        help="draw a picture anew under a prompt",
        description="Draw a picture anew under a prompt, in its own size.",
    )
    _add_picture(parser)
    _add_prompt(parser)
    parser.add_argument("--strength", type=values.share, default=0.8, metavar="S",
        help="above 0, at most 1: how much of the picture is given up (default: %(default)s)")  # fmt: skip
    _add_drawing(parser)
    parser.set_defaults(run=drawing.img2img)


def _add_inpaint(commands: Any) -> None:
    parser = commands.add_parser(
        "inpaint",
        help="draw a part of a picture anew",
        description="Draw a part of a picture anew; every pixel outside the mask stays as it is.",
    )
    _add_picture(parser)
    _add_prompt(parser)
    add = parser.add_argument
    add("--mask", type=Path, required=True, metavar="FILE",
        help="picture of the same size; what is brighter than half there is drawn anew")  # fmt: skip
    add("--strength", type=values.share, default=1.0, metavar="S",
        help="above 0, at most 1: below 1, some of what is under the mask is kept (default: %(default)s)")  # fmt: skip
    add("--repeats", type=values.count, default=1, metavar="N",
        help="take the earlier steps so often, for models that are not shown the mask (default: %(default)s)")  # fmt: skip
    add("--masked-content", choices=("original", "fill"), default="original", metavar="WHAT",
        help="original or fill: what a strength below 1 starts from under the mask (default: %(default)s)")  # fmt: skip
    add("--mask-blur", type=values.scale, default=0.0, metavar="PIXELS",
        help="width of the seam between old and new, inside the mask (default: %(default)s)")  # fmt: skip
    add("--padding-mask-crop", type=values.pixels, metavar="PIXELS",
        help="draw only the mask's surroundings, so many pixels wide, in the size that the model was trained on")  # fmt: skip
    add("--plain", action="store_true", help="write what the decoder gives, outside the mask too")
    _add_drawing(parser)
    parser.set_defaults(run=drawing.inpaint)


def _add_upscale(commands: Any) -> None:
    parser = commands.add_parser(
        "upscale",
        help="draw a picture with 4 times the width and height",
        description="Draw a picture with 4 times the width and height. Without --model, a small bundled model does it, which "
        "knows pictures such as those of the other bundled one.",
    )
    _add_picture(parser)
    add = parser.add_argument
    add("--prompt", default="", metavar="TEXT", help="what the picture shows, for models that take a text")
    add("--noise-level", type=values.pixels, metavar="N",
        help="how much noise is put on the picture first, for models that take it (default: 20)")  # fmt: skip
    add("--memory", type=values.memory, metavar="SIZE",
        help="work in tiles that take at most so much above the weights, as 4GB (default: in one piece)")  # fmt: skip
    _add_drawing(parser, f"{STEPS}; with the bundled model {BUNDLED_UPSCALE_STEPS}")
    parser.set_defaults(run=drawing.upscale, steps=None)


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help='what to draw; "" draws without a condition')


def _add_picture(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, metavar="IMAGE", help="picture to start from, of any kind and size")
    _add_max_pixels(parser)


def _add_max_pixels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-pixels", type=values.count, metavar="N",
        help="refuse pictures with more pixels (default: 64 million)")  # fmt: skip


def _add_drawing(parser: argparse.ArgumentParser, steps: str = str(STEPS)) -> None:
    """The options that all commands have which draw; `steps` is what is said of their number without one."""
    add = parser.add_argument
    add("-o", "--output", type=values.png, metavar="FILE",
        help="PNG to write; one that exists is replaced (default: out.png, or the next free name like it)")  # fmt: skip
    add("--model", default=BUNDLED, metavar="PATH_OR_ID",
        help="model folder, single file in .safetensors, or Hub id (default: %(default)s, the small one that ships with "
        "latentgen)")  # fmt: skip
    add("--prediction-type", choices=PREDICTIONS, metavar="P",
        help="epsilon or v_prediction: what the model of a single file predicts, where it does not say")  # fmt: skip
    add("--tokenizer", type=Path, metavar="FOLDER", help="tokenizer of a single file's model (default: what is found)")
    add("--lora", type=values.lora, action="append", default=[], metavar="FILE[:SCALE]",
        help="a LoRA to use, and how much of it, as style.safetensors:0.8 (default: 1); may be given again")  # fmt: skip
    add("--embedding", type=Path, action="append", default=[], metavar="FILE",
        help="a textual inversion to use: prompts name it by its token, or the file's name; may be given again")  # fmt: skip
    add("--negative", metavar="TEXT", help="what to stay away from")
    add("--steps", type=values.count, default=STEPS, metavar="N", help=f"denoising steps (default: {steps})")
    add("--guidance-scale", type=values.scale, metavar="G",
        help="how closely to follow the prompt or class; 1 is no guidance (default: the pipeline's, for prompts 7.5; "
        f"with the bundled model {BUNDLED_GUIDANCE:g})")  # fmt: skip
    add("--seed", type=values.seed, metavar="S", help="seed of the first picture; the next has S + 1 (default: random)")
    add("--num-images", type=values.count, default=1, metavar="N",
        help="how many pictures, drawn and written one after another (default: %(default)s)")  # fmt: skip
    add("--scheduler", choices=SCHEDULERS, metavar="NAME",
        help=f"{', '.join(SCHEDULERS)} (default: the model's own)")  # fmt: skip
    add("--device", metavar="D", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add("--dtype", choices=DTYPES, metavar="T",
        help="float16, bfloat16 or float32 (default: what the device computes fast)")  # fmt: skip
    add("--variant", metavar="V", help="weight files to read, for example fp16")
    add("--revision", metavar="R", help="branch, tag or commit on the Hub (default: main)")
    add("--quiet", action="store_true", help="no progress bar")
    add("--debug", action="store_true", help="show the traceback of an error")


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train an autoencoder or a diffusion model",
        description="Train a stage from a TOML file; examples/tiny_scenes has one for each. The first stage gives an "
        "autoencoder, the second a model folder for `latentgen generate --model`.",
    )
    parser.add_argument("stage", choices=("autoencoder", "diffusion"))
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the run's TOML file")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the output folder")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=training.train)


def _add_info(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="say what a file or folder of weights is",
        description="Say what a file or folder of weights is, what loads it, and what is wrong with it. Reads headers and "
        "settings only; nothing in a file is executed.",
    )
    parser.add_argument("path", type=Path, metavar="FILE_OR_FOLDER")
    parser.add_argument("--sha256", action="store_true", help="read a file whole and compute its SHA-256")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=tools.info)


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="write a model's files in another form",
        description="Write a model in another form: a single file as a folder, a folder as a single file, either in another "
        "dtype or with adapters in its weights; the tensors of a pickle (.ckpt, .pt, .bin) as safetensors, without executing it.",
    )
    add = parser.add_argument
    add("source", type=Path, metavar="IN", help="a file, or a model folder")
    add("target", type=Path, metavar="OUT", help="a name in .safetensors is one file; any other is a folder")
    add("--dtype", choices=DTYPES, metavar="T",
        help="float16, bfloat16 or float32: of the weights that are written (default: as they are)")  # fmt: skip
    add("--weights", choices=("ema", "train"), metavar="WHICH",
        help="ema or train: the training's moving average, or the weights themselves (default: the average, if any)")  # fmt: skip
    add("--prediction-type", choices=PREDICTIONS, metavar="P",
        help="epsilon or v_prediction: what the model predicts, where its file does not say")  # fmt: skip
    add("--family", metavar="NAME", help="the model's form, as sd-v1, where its widths are not the published ones")
    add("--tokenizer", type=Path, metavar="FOLDER", help="tokenizer of a single file's model (default: what is found)")
    add("--lora", type=values.lora, action="append", default=[], metavar="FILE[:SCALE]",
        help="add a LoRA to the weights, for good; may be given again")  # fmt: skip
    add("--variant", metavar="V", help="which of a folder's weight files to read, for example fp16")
    add("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=tools.convert)
