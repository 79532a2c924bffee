"""The commands that draw."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from latentgen import __version__
from latentgen.bundled import BUNDLED_GUIDANCE, BUNDLED_UPSCALE_STEPS, bundled_model
from latentgen.cli.interrupts import leaving_at_once
from latentgen.cli.values import MAX_SEED
from latentgen.weights.atomic import check_writable
from latentgen.weights.hub import commit_of, resolve_model

STEPS = 50

BUNDLED = "bundled"
"""As a model's name: the one that ships with the package."""

WITHOUT_TEXT = {
    "classes": "classes",
    "layout": "layouts",
    "map": "maps",
    "unconditional": "pictures without a condition",
}
"""What `generate` draws from instead of a prompt, by attribute, and what a model of it is of."""


def generate(arguments: argparse.Namespace) -> None:
    size = {"height": arguments.height, "width": arguments.width}
    if arguments.prompt is not None:
        _draw(arguments, "Text2ImagePipeline", _of_text(arguments) | size)
        return
    option, kind = next(
        (option, kind) for option, kind in WITHOUT_TEXT.items() if getattr(arguments, option) is not None
    )
    name = "--class" if option == "classes" else f"--{option}"
    if arguments.negative is not None:
        raise ValueError(f"--negative is a text, and {name} draws without one: leave it out.")
    if arguments.model == BUNDLED:
        raise ValueError(f"{name} needs a model of {kind}: name one with --model; none ships with latentgen.")
    if option == "classes":
        _draw(arguments, "Class2ImagePipeline", {"classes": arguments.classes} | size)
        return
    if arguments.guidance_scale is not None:
        raise ValueError(f"--guidance-scale has no meaning for {name}: leave it out.")
    if option == "unconditional":
        _draw(arguments, "UnconditionalPipeline", size, guided=False)
        return
    if option == "layout":
        _draw(arguments, "Layout2ImagePipeline", {"layout": _read_layout(arguments.layout)} | size, guided=False)
        return
    if arguments.height is not None or arguments.width is not None:
        raise ValueError("--height and --width have no meaning for --map: the picture is as large as the map.")
    _draw(arguments, "Semantic2ImagePipeline", {}, {"labels": arguments.map}, guided=False)


def _read_layout(path: Path) -> Any:
    """The content of a layout's file; what is in it, the pipeline checks."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is no JSON such as [["cat", [0.1, 0.2, 0.6, 0.9]]]: {error}.') from None
    if (
        isinstance(content, list)
        and content
        and all(isinstance(one, list) and one and isinstance(one[0], list) for one in content)
    ):
        if len(content) > 1:
            raise ValueError(f"{path} holds {len(content)} layouts: give a file of one, and call once for each.")
        return content[0]
    return content


def img2img(arguments: argparse.Namespace) -> None:
    settings = {"strength": arguments.strength}
    _draw(arguments, "Img2ImgPipeline", _of_text(arguments) | settings, {"image": arguments.image})


def inpaint(arguments: argparse.Namespace) -> None:
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
    _draw(arguments, "InpaintPipeline", of_text | settings, files, task="inpainting")


def upscale(arguments: argparse.Namespace) -> None:
    settings = {
        "prompt": arguments.prompt,
        "negative_prompt": arguments.negative,
        "noise_level": arguments.noise_level,
        "memory": arguments.memory,
    }
    if arguments.steps is None:
        arguments.steps = BUNDLED_UPSCALE_STEPS if arguments.model == BUNDLED else STEPS
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
    guided: bool = True,
) -> None:
    """Draw pictures and write them.

    Args:
        arguments: the command line.
        pipeline: the class that draws.
        own: what it is asked for, and settings of this command, beside those that all have.
        files: pictures that the pipeline is given, by argument.
        task: of the bundled model that is used where none is named.
        guided: whether the pipeline takes a guidance scale.
    """
    # What can fail for free comes first: a model is not loaded for nothing, a picture that cannot be kept is not drawn.
    for path in _targets(arguments.output, arguments.num_images, look=True):
        check_writable(path)
    seeds = _seeds(arguments.seed, arguments.num_images)
    _check_files((files or {}).values(), "a picture's file")
    adapters = [*(path for path, _ in arguments.lora), *arguments.embedding]
    folders = [path for path, _ in arguments.lora if path.is_dir()]  # PEFT writes such
    _check_files((path for path in adapters if path not in folders), "an adapter's file")
    folder = _model(arguments, task)
    with leaving_at_once():
        from latentgen import pipelines
        from latentgen.pipelines.pictures import MAX_PIXELS, open_picture
        from latentgen.pipelines.png import save_png

        most = getattr(arguments, "max_pixels", None) or MAX_PIXELS
        pictures = {name: open_picture(path, max_pixels=most) for name, path in (files or {}).items()}
        cls: Any = getattr(pipelines, pipeline)
        if adapters and not hasattr(cls, "load_lora"):
            raise ValueError("--lora and --embedding are for models of texts: leave them out.")
        where = {"device": arguments.device, "dtype": arguments.dtype}
        if folder.is_file():
            of_a_file = {"prediction_type": arguments.prediction_type, "tokenizer": arguments.tokenizer}
            pipe = cls.from_single_file(folder, **where, **of_a_file)
        else:
            pipe = cls.from_pretrained(folder, **where, variant=arguments.variant)
        pipe.max_pixels = most
        for path, scale in arguments.lora:
            pipe.load_lora(path, scale, name=str(path))  # two folders may have files of one name
        tokens = [pipe.load_textual_inversion(path) for path in arguments.embedding]
    common = {"num_inference_steps": arguments.steps, "scheduler": arguments.scheduler}
    settings = common | ({"guidance_scale": arguments.guidance_scale} if guided else {}) | own
    record = {
        **settings, "scheduler": arguments.scheduler or type(pipe.scheduler).__name__,
        **_origin(arguments, folder), "dtype": str(pipe.dtype).removeprefix("torch."), "device": pipe.device.type,
        "version": __version__, "pipeline": pipeline,
        **{name: str(path.absolute()) for name, path in (files or {}).items()},
    }  # fmt: skip
    if adapters:
        record["loras"] = [[str(path.absolute()), scale] for path, scale in arguments.lora]
        record["embeddings"] = [[str(p.absolute()), t] for p, t in zip(arguments.embedding, tokens, strict=True)]
    size = ("height", "width") if not files else ()
    targets = iter(_targets(arguments.output, arguments.num_images))
    for seed in seeds:
        # One at a time: a batch needs its multiple of the memory, and an interrupt would lose all of it.
        result = pipe(**pictures, **settings, seed=seed, show_progress=not arguments.quiet)
        picture, path = result.images[0], next(targets)
        drawn = {"seed": result.seeds[0], **{side: getattr(picture, side) for side in size}}
        save_png(picture, path, {**record, **drawn})
        print(f"{path} (seed {result.seeds[0]})", flush=True)


def _check_files(paths: Iterable[Path], kind: str) -> None:
    for path in paths:
        if not path.is_file():
            what = "does not exist" if not path.exists() else "is a folder" if path.is_dir() else "is no file"
            raise ValueError(f"{path} {what}: give {kind}.")


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


def _model(arguments: argparse.Namespace, task: str) -> Path:
    """The model's folder, or its single file."""
    single = arguments.model != BUNDLED and Path(arguments.model).is_file()
    for option in ("variant", "revision") if single else ("prediction_type", "tokenizer"):
        if (given := getattr(arguments, option)) is not None:
            kind = "a folder or a repository" if single else "a single file"
            raise ValueError(
                f"--{option.replace('_', '-')} {given} is of {kind}, and --model {arguments.model} is none."
            )
    if single:
        return Path(arguments.model)
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
