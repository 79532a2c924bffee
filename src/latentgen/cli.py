"""The command line: parse, build, call."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from latentgen import __version__
from latentgen.bundled import BUNDLED_GUIDANCE, bundled_model
from latentgen.weights.atomic import check_writable
from latentgen.weights.hub import commit_of, resolve_model

DONE, FAILED, INTERRUPTED = 0, 1, 130  # argparse exits with 2 for wrong usage
BUNDLED = "bundled"  # as a model's name: the one that ships with the package

# Said again here, so that wrong usage is answered before torch is imported; a test holds them to their sources.
SCHEDULERS = ("ddpm", "ddim", "pndm", "euler", "euler_a", "heun", "dpm++", "dpm++_karras", "lcm")
DTYPES = ("float16", "fp16", "half", "bfloat16", "bf16", "float32", "fp32")
MAX_SEED = 2**64 - 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run `latentgen`; returns the exit code: 0 done, 1 an error with one clear line, 2 wrong usage, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        with _warnings_in_one_line():
            arguments.run(arguments)
    except KeyboardInterrupt:
        print("latentgen: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has left
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if arguments.debug:
            raise
        print(f"latentgen: error: {_one_line(error)}", file=sys.stderr)
        return FAILED
    return DONE


def _one_line(error: Exception) -> str:
    text, *more = str(error).strip().splitlines() or [type(error).__name__]
    if not isinstance(error, ValueError | OSError | FloatingPointError):
        return f"{type(error).__name__}: {text} (--debug shows where)"
    return f"{text} (--debug lists all)" if more else text


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print each of our warnings once, in our form. Those of other libraries are about their code, not about the request."""
    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        ours = os.sep + "latentgen" + os.sep in filename or category is UserWarning
        if ours and str(message) not in shown:
            shown.add(str(message))
            print(f"latentgen: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


@contextlib.contextmanager
def _leaving_at_once() -> Iterator[None]:
    """Make Ctrl-C end the process at once while modules are imported.

    As an exception it would pass through C++ code of torch that is just starting, which aborts the process.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # another's to decide: a program that calls us, or a shell that told us to ignore it
        return
    signal.signal(signal.SIGINT, _on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(2, b"latentgen: interrupted\n")
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latentgen", description="Latent diffusion: make pictures, train models.")
    parser.add_argument("--version", action="version", version=f"latentgen {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_img2img(commands)
    _add_inpaint(commands)
    _add_upscale(commands)
    _add_train(commands)
    return parser


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="draw pictures from a prompt, or of a class",
        description="Draw pictures from a prompt, or of a class. Without --model, a small bundled model draws shapes: "
        '"a small red circle to the left of a large blue star, striped grey background".',
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("prompt", nargs="?", metavar="PROMPT", help='what to draw; "" draws without a condition')
    what.add_argument(
        "--class", dest="classes", metavar="NAME", help="draw this class, by its name or number (with --model)"
    )
    add = parser.add_argument
    add("--height", type=_count, metavar="H", help="in pixels (default: what the model was trained on)")
    add("--width", type=_count, metavar="W", help="in pixels (default: what the model was trained on)")
    _add_drawing(parser)
    parser.set_defaults(run=_generate)


def _add_img2img(commands: Any) -> None:
    parser = commands.add_parser(
        "img2img",
        help="draw a picture anew under a prompt",
        description="Draw a picture anew under a prompt, in its own size.",
    )
    _add_picture(parser)
    _add_prompt(parser)
    parser.add_argument("--strength", type=_share, default=0.8, metavar="S",
        help="above 0, at most 1: how much of the picture is given up (default: %(default)s)")  # fmt: skip
    _add_drawing(parser)
    parser.set_defaults(run=_img2img)


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
    add("--strength", type=_share, default=1.0, metavar="S",
        help="above 0, at most 1: below 1, some of what is under the mask is kept (default: %(default)s)")  # fmt: skip
    add("--repeats", type=_count, default=1, metavar="N",
        help="take the earlier steps so often, for models that are not shown the mask (default: %(default)s)")  # fmt: skip
    add("--masked-content", choices=("original", "fill"), default="original", metavar="WHAT",
        help="original or fill: what a strength below 1 starts from under the mask (default: %(default)s)")  # fmt: skip
    add("--mask-blur", type=_scale, default=0.0, metavar="PIXELS",
        help="width of the seam between old and new, inside the mask (default: %(default)s)")  # fmt: skip
    add("--padding-mask-crop", type=_pixels, metavar="PIXELS",
        help="draw only the mask's surroundings, so many pixels wide, in the size that the model was trained on")  # fmt: skip
    add("--plain", action="store_true", help="write what the decoder gives, outside the mask too")
    _add_drawing(parser)
    parser.set_defaults(run=_inpaint)


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
    add("--noise-level", type=_pixels, metavar="N",
        help="how much noise is put on the picture first, for models that take it (default: 20)")  # fmt: skip
    _add_drawing(parser)
    parser.set_defaults(run=_upscale)


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help='what to draw; "" draws without a condition')


def _add_picture(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, metavar="IMAGE", help="picture to start from, of any kind and size")
    parser.add_argument("--max-pixels", type=_count, metavar="N",
        help="refuse pictures with more pixels (default: 64 million)")  # fmt: skip


def _add_drawing(parser: argparse.ArgumentParser) -> None:
    """The options that all commands have which draw."""
    add = parser.add_argument
    add("-o", "--output", type=_png, metavar="FILE",
        help="PNG to write; one that exists is replaced (default: out.png, or the next free name like it)")  # fmt: skip
    add("--model", default=BUNDLED, metavar="PATH_OR_ID",
        help="model folder or Hub id (default: %(default)s, the small one that ships with latentgen)")  # fmt: skip
    add("--negative", metavar="TEXT", help="what to stay away from")
    add("--steps", type=_count, default=50, metavar="N", help="denoising steps (default: %(default)s)")
    add("--guidance-scale", type=_scale, metavar="G",
        help="how closely to follow the prompt or class; 1 is no guidance (default: the pipeline's, for prompts 7.5; "
        f"with the bundled model {BUNDLED_GUIDANCE:g})")  # fmt: skip
    add("--seed", type=_seed, metavar="S", help="seed of the first picture; the next has S + 1 (default: random)")
    add("--num-images", type=_count, default=1, metavar="N",
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
    parser.set_defaults(run=_train)


def _count(text: str) -> int:
    with contextlib.suppress(ValueError):
        if (value := int(text)) >= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")


def _seed(text: str) -> int:
    with contextlib.suppress(ValueError):
        if 0 <= (value := int(text)) <= MAX_SEED:
            return value
    raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to {MAX_SEED}")


def _scale(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text} is not a number above 0 and at most 1")


def _pixels(text: str) -> int:
    with contextlib.suppress(ValueError):
        if (value := int(text)) >= 0:
            return value
    raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")


def _png(text: str) -> Path:
    if Path(text).suffix.lower() != ".png" and not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text} must end in .png: pictures are written as PNG")
    return Path(text)


def _generate(arguments: argparse.Namespace) -> None:
    size = {"height": arguments.height, "width": arguments.width}
    if arguments.classes is None:
        _draw(arguments, "Text2ImagePipeline", _of_text(arguments) | size)
        return
    if arguments.negative is not None:
        raise ValueError("--negative is a text, and --class draws without one: leave it out.")
    if arguments.model == BUNDLED:
        raise ValueError("--class needs a model of classes: name one with --model; none ships with latentgen.")
    _draw(arguments, "Class2ImagePipeline", {"classes": arguments.classes} | size)


def _img2img(arguments: argparse.Namespace) -> None:
    settings = {"strength": arguments.strength}
    _draw(arguments, "Img2ImgPipeline", _of_text(arguments) | settings, {"image": arguments.image})


def _inpaint(arguments: argparse.Namespace) -> None:
    settings = {
        "strength": arguments.strength,
        "repeats": arguments.repeats,
        "masked_content": arguments.masked_content,
        "mask_blur": arguments.mask_blur,
        "padding_mask_crop": arguments.padding_mask_crop,
        "keep_unmasked": not arguments.plain,
    }
    files = {"image": arguments.image, "mask_image": arguments.mask}
    of_text = _of_text(arguments)
    if not arguments.prompt and arguments.model != BUNDLED:  # LDM's model takes neither text nor guidance
        of_text["guidance_scale"] = arguments.guidance_scale
    _draw(arguments, "InpaintPipeline", of_text | settings, files)


def _upscale(arguments: argparse.Namespace) -> None:
    settings = {
        "prompt": arguments.prompt,
        "negative_prompt": arguments.negative,
        "noise_level": arguments.noise_level,
    }
    _draw(arguments, "SuperResPipeline", settings, {"image": arguments.image}, task="super_resolution")


def _of_text(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a call is asked for by a text."""
    guidance = BUNDLED_GUIDANCE if arguments.model == BUNDLED else 7.5
    scale = guidance if arguments.guidance_scale is None else arguments.guidance_scale
    return {"prompt": arguments.prompt, "negative_prompt": arguments.negative, "guidance_scale": scale}


def _draw(
    arguments: argparse.Namespace,
    pipeline: str,
    own: dict[str, Any],
    files: dict[str, Path] | None = None,
    *,
    task: str = "text",
) -> None:
    """Draw pictures and write them.

    Args:
        arguments: the command line.
        pipeline: the class that draws.
        own: what it is asked for, and settings of this command, beside those that all have.
        files: pictures that the pipeline is given, by argument.
        task: of the bundled model that is used where none is named.
    """
    # What can fail for free comes first: a model is not loaded for nothing, a picture that cannot be kept is not drawn.
    for path in _targets(arguments.output, arguments.num_images, look=True):
        check_writable(path)
    seeds = _seeds(arguments.seed, arguments.num_images)
    for path in (files or {}).values():
        if not path.is_file():
            what = "does not exist" if not path.exists() else "is a folder" if path.is_dir() else "is no file"
            raise ValueError(f"{path} {what}: give a picture's file.")
    folder = _model_folder(arguments, task)
    with _leaving_at_once():
        from latentgen import pipelines
        from latentgen.pipelines.pictures import MAX_PIXELS, open_picture
        from latentgen.pipelines.png import save_png

        most = getattr(arguments, "max_pixels", None) or MAX_PIXELS
        pictures = {name: open_picture(path, max_pixels=most) for name, path in (files or {}).items()}
        pipe: Any = getattr(pipelines, pipeline).from_pretrained(
            folder, device=arguments.device, dtype=arguments.dtype, variant=arguments.variant
        )
        pipe.max_pixels = most
    common = {"num_inference_steps": arguments.steps, "guidance_scale": arguments.guidance_scale}
    settings = common | {"scheduler": arguments.scheduler} | own
    record = {
        **settings, "scheduler": arguments.scheduler or type(pipe.scheduler).__name__,
        **_origin(arguments, folder), "dtype": str(pipe.dtype).removeprefix("torch."), "device": pipe.device.type,
        "version": __version__, "pipeline": pipeline,
        **{name: str(path.absolute()) for name, path in (files or {}).items()},
    }  # fmt: skip
    size = ("height", "width") if not files else ()
    targets = iter(_targets(arguments.output, arguments.num_images))
    for seed in seeds:
        # One at a time: a batch needs its multiple of the memory, and an interrupt would lose all of it.
        result = pipe(**pictures, **settings, seed=seed, show_progress=not arguments.quiet)
        picture, path = result.images[0], next(targets)
        drawn = {"seed": result.seeds[0], **{side: getattr(picture, side) for side in size}}
        save_png(picture, path, {**record, **drawn})
        print(f"{path} (seed {result.seeds[0]})", flush=True)


def _targets(output: Path | None, count: int, *, look: bool = False) -> Iterable[Path]:
    """Where the pictures go: the file that was named, or `name-0.png`, `name-1.png`, ... for several.

    Without a name, the next that is free each time one is asked for; to have a `look` only, the first of them.
    """
    if output is None:
        free = _free_names(Path("out.png"), count)
        return itertools.islice(free, 1) if look else free
    return [output] if count == 1 else [_numbered(output, k, count) for k in range(count)]


def _free_names(default: Path, count: int) -> Iterator[Path]:
    names = (_numbered(default, k, count) for k in itertools.count(1 if count == 1 else 0))
    yield from (path for path in itertools.chain([default] if count == 1 else [], names) if not path.exists())


def _numbered(path: Path, k: int, count: int) -> Path:
    return path.with_name(f"{path.stem}-{k:0{len(str(count - 1))}d}{path.suffix}")


def _seeds(first: int | None, count: int) -> list[int | None]:
    if first is not None and first + count - 1 > MAX_SEED:
        raise ValueError(f"--seed {first} is too large for {count} pictures: the last one's may be {MAX_SEED}.")
    return [None if first is None else first + k for k in range(count)]


def _model_folder(arguments: argparse.Namespace, task: str) -> Path:
    if arguments.model == BUNDLED:
        if arguments.revision is not None:
            raise ValueError(f"--revision {arguments.revision} is of a model on the Hub: name one with --model.")
        return bundled_model(task)
    return resolve_model(arguments.model, variant=arguments.variant, revision=arguments.revision)


def _origin(arguments: argparse.Namespace, folder: Path) -> dict[str, str | None]:
    """Which files were read: a Hub id with its commit, the bundled model, or a folder by its whole path."""
    commit = commit_of(folder)
    named = commit is not None and not Path(arguments.model).is_dir()
    model = arguments.model if named or arguments.model == BUNDLED else str(folder.absolute())
    return {"model": model, "revision": commit if named else None, "variant": arguments.variant}


def _train(arguments: argparse.Namespace) -> None:
    from latentgen.training.config import AutoencoderTraining, DiffusionTraining, load_config

    how = {"resume": arguments.resume, "show_progress": not arguments.quiet}
    try:
        if arguments.stage == "autoencoder":
            from latentgen.training.autoencoder import train_autoencoder

            folder = train_autoencoder(load_config(AutoencoderTraining, arguments.config), **how)
        else:
            from latentgen.training.diffusion import train_diffusion

            folder = train_diffusion(load_config(DiffusionTraining, arguments.config), **how)
    except KeyboardInterrupt as stopped:
        if str(stopped):  # what is kept
            print(f"latentgen: {stopped}", file=sys.stderr)
        raise
    print(folder)


if __name__ == "__main__":
    sys.exit(main())
