"""The command line: parse, build, call."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentgen import __version__

DONE, FAILED, INTERRUPTED = 0, 1, 130  # argparse exits with 2 for wrong usage


def main(argv: Sequence[str] | None = None) -> int:
    """Run `latentgen`; returns the exit code: 0 done, 1 an error with one clear line, 2 wrong usage, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
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
    text = str(error).strip() or type(error).__name__
    named = isinstance(error, ValueError | OSError | FloatingPointError)
    return text if named else f"{type(error).__name__}: {text} (--debug shows where)"


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
    # Warnings of other libraries are about their code, not about what the user asked for.
    if os.sep + "latentgen" + os.sep in filename or category is UserWarning:
        print(f"latentgen: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latentgen", description="Latent diffusion: make pictures, train models.")
    parser.add_argument("--version", action="version", version=f"latentgen {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_train(commands)
    return parser


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="draw pictures from a prompt",
        description="Draw pictures from a prompt. Without --model, the small bundled model draws shapes: "
        '"a small red circle to the left of a large blue star, striped grey background".',
    )
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help='what to draw; "" draws without a condition')
    add(
        "-o", "--output", type=Path, default=Path("out.png"), metavar="FILE", help="PNG to write (default: %(default)s)"
    )
    add("--model", metavar="PATH_OR_ID", help="model folder or Hub id (default: the bundled model)")
    add("--negative", metavar="TEXT", help="what to stay away from")
    add("--steps", type=int, default=50, metavar="N", help="denoising steps (default: %(default)s)")
    add("--guidance-scale", type=float, metavar="G",
        help="how closely to follow the prompt; 1 is no guidance (default: 7.5; the bundled model: 3)")  # fmt: skip
    add("--seed", type=int, metavar="S", help="seed of the first picture; the next has S + 1 (default: random)")
    add("--num-images", type=int, default=1, metavar="N", help="how many pictures (default: %(default)s)")
    add("--height", type=int, metavar="H", help="in pixels (default: what the model was trained on)")
    add("--width", type=int, metavar="W", help="in pixels (default: what the model was trained on)")
    add("--scheduler", metavar="NAME",
        help="ddpm, ddim, pndm, euler, euler_a, heun, dpm++, dpm++_karras or lcm (default: the model's own)")  # fmt: skip
    add("--device", metavar="D", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add("--dtype", metavar="T", help="float16, bfloat16 or float32 (default: what the device computes fast)")
    add("--variant", metavar="V", help="weight files to read, for example fp16")
    add("--quiet", action="store_true", help="no progress bar")
    add("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_generate)


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
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_train)


def _generate(arguments: argparse.Namespace) -> None:
    from latentgen.bundled import BUNDLED_GUIDANCE, bundled_model
    from latentgen.pipelines import Text2ImagePipeline
    from latentgen.pipelines.png import save_png

    paths = _numbered(arguments.output, arguments.num_images)
    guidance = arguments.guidance_scale
    if guidance is None:
        guidance = BUNDLED_GUIDANCE if arguments.model is None else 7.5
    pipe = Text2ImagePipeline.from_pretrained(
        bundled_model() if arguments.model is None else arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        variant=arguments.variant,
    )
    settings = {
        "negative_prompt": arguments.negative,
        "height": arguments.height,
        "width": arguments.width,
        "num_inference_steps": arguments.steps,
        "guidance_scale": guidance,
        "scheduler": arguments.scheduler,
    }
    result = pipe(
        arguments.prompt,
        **settings,
        num_images_per_prompt=arguments.num_images,
        seed=arguments.seed,
        show_progress=not arguments.quiet,
    )
    for path, picture, seed in zip(paths, result.images, result.seeds, strict=True):
        record = {"prompt": arguments.prompt, "seed": seed, **settings, "height": picture.height, "width": picture.width,
                  "scheduler": arguments.scheduler or type(pipe.scheduler).__name__,
                  "model": arguments.model or "bundled", "dtype": str(pipe.dtype).removeprefix("torch."),
                  "device": pipe.device.type, "version": __version__}  # fmt: skip
        save_png(picture, path, record)
        print(f"{path} (seed {seed})")


def _numbered(output: Path, count: int) -> list[Path]:
    """`out.png`, or `out-0.png`, `out-1.png`, ... for several pictures."""
    if output.is_dir():
        raise ValueError(f"{output} is a folder: give the name of a PNG file, for example {output / 'out.png'}.")
    if output.suffix.lower() != ".png":
        raise ValueError(f"{output} must end in .png: pictures are written as PNG.")
    if count <= 1:
        return [output]
    digits = len(str(count - 1))
    return [output.with_name(f"{output.stem}-{k:0{digits}d}{output.suffix}") for k in range(count)]


def _train(arguments: argparse.Namespace) -> None:
    from latentgen.training.config import AutoencoderTraining, DiffusionTraining, load_config

    if arguments.stage == "autoencoder":
        from latentgen.training.autoencoder import train_autoencoder

        folder = train_autoencoder(load_config(AutoencoderTraining, arguments.config), resume=arguments.resume)
    else:
        from latentgen.training.diffusion import train_diffusion

        folder = train_diffusion(load_config(DiffusionTraining, arguments.config), resume=arguments.resume)
    print(folder)


if __name__ == "__main__":
    sys.exit(main())
