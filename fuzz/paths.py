"""Names of files that lead out of the folder they stand in: nothing there is opened."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from fuzz.outcome import Tally
from fuzz.tiny import HOW, make_model
from fuzz.watched import watching
from latentgen import Text2ImagePipeline, UNet2DConditionModel
from latentgen.pipelines.describe import describe
from latentgen.training.image_folder import read_folder
from latentgen.weights.checksums import SUMS, read_sums
from latentgen.weights.errors import WeightsError

ZEROS = ("opened_outside", "accepted", "untyped", "slow")
COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
Load = Callable[[], Any]


def names(secret: Path, inside: Path) -> list[str]:
    """Names that lead to `secret`, or would on some system, seen from the folder `inside`."""
    relative = os.path.relpath(secret, inside)
    return [
        str(secret), relative, f"./{relative}", f"x/../{relative}", f"x\\..\\{relative}", relative.replace("/", "\\"),
        f"{secret}\0.safetensors", f"model.safetensors\0{secret}", f"file://{secret}", f"\\\\server\\share\\{secret.name}",
        f"//server/share/{secret.name}", f"\\\\?\\C:\\{secret.name}", f"\\{secret.name}", f"C:\\{secret.name}",
        f"C:{secret.name}",
        f"C:/{secret.name}", "/proc/self/environ", "/proc/self/fd/0", "/proc/self/root/etc/passwd", "/dev/stdin", "/dev/zero",
        "/etc/passwd", "~/.ssh/id_rsa", "$HOME/x.safetensors", "..", ".", "", "../", "./", f"{relative}/", f"..//{relative}",
        f" {relative}", "CON", "NUL.safetensors", "aux.safetensors:stream", f"....//{relative}", f"%2e%2e/{secret.name}",
        f"‥/{secret.name}", f"{'../' * 60}etc/passwd", f"{'a' * 300}.safetensors", "away/secret.safetensors", "away/secret.png",
    ]  # fmt: skip


def shards(copy: Path, secret: Path, component: str, stem: str, number: int) -> Load:
    """An index of shards that puts a tensor elsewhere."""
    folder = copy / component
    part = f"{stem}-00001-of-00001.safetensors"
    (folder / f"{stem}.safetensors").rename(folder / part)
    weight_map = {"conv_in.weight": names(secret, folder)[number], "conv_in.bias": part}
    content = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(content))
    return lambda: Text2ImagePipeline.from_pretrained(copy, **HOW)


def variant(copy: Path, secret: Path, number: int) -> Load:
    """A variant that is asked for by such a name: an argument of the user's own, refused all the same."""
    asked = names(secret, copy / "unet")[number]
    asked = "../x" if not asked or asked.isalnum() else asked  # a variant may be called so
    return lambda: UNet2DConditionModel.from_pretrained(copy, subfolder="unet", variant=asked, **HOW)


def metadata(copy: Path, secret: Path, number: int) -> Load:
    """A folder of pictures whose captions name a picture elsewhere."""
    pictures = copy / "pictures"
    pictures.mkdir()
    Image.new("RGB", (8, 8)).save(pictures / "a.png")
    (pictures / "away").symlink_to(secret.parent)
    lines = [
        {"file_name": "a.png", "text": "a"},
        {"file_name": names(secret.with_suffix(".png"), pictures)[number], "text": "b"},
    ]
    (pictures / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lambda: read_folder(pictures, captions=True)


def index(copy: Path, secret: Path, number: int) -> Load:
    """A model whose index has a component of such a name."""
    content = json.loads((copy / "model_index.json").read_text())
    content[names(secret, copy)[number]] = ["diffusers", "UNet2DConditionModel"]
    (copy / "model_index.json").write_text(json.dumps(content))

    def load() -> None:
        Text2ImagePipeline.from_pretrained(copy, **HOW)  # which asks for none of that name
        if problems := describe(copy).problems:
            raise WeightsError("; ".join(problems))

    return load


def sums(copy: Path, secret: Path, number: int) -> Load:
    """A record that has a sum of such a file, and none of one that is read."""
    kept = {name: value for name, value in read_sums(copy / SUMS).items() if name != "vae/config.json"}
    kept[names(secret, copy)[number].replace("\0", " ") or "x"] = "0" * 64
    (copy / SUMS).write_text("".join(f"{value}  {name}\n" for name, value in kept.items()))
    return lambda: Text2ImagePipeline.from_pretrained(copy, verify=True, **HOW)


def linked_folder(copy: Path, secret: Path, component: str) -> Load:
    """A component's folder that is a link to elsewhere."""
    shutil.rmtree(copy / component)
    (copy / component).symlink_to(secret.parent / "model" / component)
    return lambda: Text2ImagePipeline.from_pretrained(copy, **HOW)


def linked_file(copy: Path, secret: Path, target: str, name: str) -> Load:
    """A file that is a link to what is no ordinary file. (Links to such are followed: the Hub's cache is built of them.)"""
    (copy / name).unlink()
    (copy / name).symlink_to(target)
    return lambda: Text2ImagePipeline.from_pretrained(copy, **HOW)


def piped_metadata(copy: Path, secret: Path) -> Load:
    """Captions that nobody ever writes."""
    pictures = copy / "pictures"
    pictures.mkdir()
    os.mkfifo(pictures / "metadata.jsonl")
    return lambda: read_folder(pictures)


def cases() -> Iterator[tuple[str, Callable[[Path, Path], Load]]]:
    """Every way with every name."""
    kinds: dict[str, Callable[..., Load]] = {
        "shards of the UNet": partial(shards, component="unet", stem="diffusion_pytorch_model"),
        "shards of the text encoder": partial(shards, component="text_encoder", stem="model"),
        "captions": metadata,
        "index": index,
        "variant": variant,
        "sums": sums,
    }
    for number in range(len(names(Path("/a/b"), Path("/a")))):
        yield from ((f"{kind}, name {number}", partial(make, number=number)) for kind, make in kinds.items())
    yield from ((f"linked {component}", partial(linked_folder, component=component)) for component in COMPONENTS)
    for target in ("/dev/zero", "/dev/tty", "/dev/null", "/", "nowhere"):
        for name in (
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "tokenizer/tokenizer.json",
            "model_index.json",
        ):
            yield f"{name} linked to {target}", partial(linked_file, target=target, name=name)
    yield "captions from a pipe", piped_metadata


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Load `count` models and folders of pictures that name files elsewhere."""
    r, tally = random.Random(seed), Tally()
    model = make_model(folder / "elsewhere" / "model")
    secret = folder / "elsewhere" / "secret.safetensors"
    shutil.copy(model / "unet" / "diffusion_pytorch_model.safetensors", secret)
    Image.new("RGB", (8, 8), "red").save(secret.with_suffix(".png"))
    Text2ImagePipeline.from_pretrained(model, **HOW)
    every = list(cases())
    for name, make in r.sample(every, min(count, len(every))):
        copy = shutil.copytree(model, folder / "model")
        load = make(copy, secret)
        case = f"{name}, seed {seed}"
        with watching(copy) as seen:
            tally.refuse(case, load, also=(ValueError,))
        if seen.opened:
            tally.blame("opened_outside", f"{case}: {seen.opened[:2]}")
        shutil.rmtree(copy)
    return tally.result(*ZEROS)
