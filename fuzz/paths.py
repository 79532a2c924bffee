"""Names of files that lead out of the folder they stand in: nothing there is opened."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from fuzz.outcome import Tally
from fuzz.tiny import HOW, make_model
from fuzz.watched import watching
from latentgen import Text2ImagePipeline, UNet2DConditionModel
from latentgen.training.image_folder import read_folder

ZEROS = ("opened_outside", "accepted", "untyped", "slow")


def names(r: random.Random, secret: Path, inside: Path) -> str:
    """A name that leads to `secret`, or would on some system, seen from the folder `inside`."""
    relative = os.path.relpath(secret, inside)
    return r.choice(
        [
            str(secret),
            relative,
            f"./{relative}",
            f"x/../{relative}",
            f"x\\..\\{relative}",
            relative.replace("/", "\\"),
            f"{secret}\0.safetensors",
            f"model.safetensors\0{secret}",
            f"file://{secret}",
            f"\\\\server\\share\\{secret.name}",
            f"//server/share/{secret.name}",
            f"C:\\{secret.name}",
            f"C:{secret.name}",
            "/proc/self/environ",
            "/proc/self/fd/0",
            "/dev/stdin",
            "/etc/passwd",
            "~/.ssh/id_rsa",
            "$HOME/x.safetensors",
            "..",
            ".",
            "",
            "../",
            "a/b.safetensors",
            f"{relative}/",
            f"..//{relative}",
            f" {relative}",
            "CON",
            "NUL.safetensors",
            "aux.safetensors:stream",
            f"....//{relative}",
            f"%2e%2e/{secret.name}",
            f"‥/{secret.name}",
            "link.safetensors",
            f"{'../' * 60}etc/passwd",
            f"{'a' * 300}.safetensors",
        ]
    )


def shards(r: random.Random, copy: Path, secret: Path) -> Callable[[], Any]:
    """An index of shards that puts a tensor elsewhere."""
    unet = copy / "unet"
    weights = unet / "diffusion_pytorch_model.safetensors"
    weights.rename(unet / "diffusion_pytorch_model-00001-of-00001.safetensors")
    name = names(r, secret, unet)
    weight_map = {"conv_in.weight": name, "conv_in.bias": "diffusion_pytorch_model-00001-of-00001.safetensors"}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return lambda: Text2ImagePipeline.from_pretrained(copy, **HOW)


def linked_folder(r: random.Random, copy: Path, secret: Path) -> Callable[[], Any]:
    """A component's folder that is a link to elsewhere."""
    component = r.choice(["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
    shutil.rmtree(copy / component)
    (copy / component).symlink_to(secret.parent / "model" / component)
    return lambda: Text2ImagePipeline.from_pretrained(copy, **HOW)


def subfolder(r: random.Random, copy: Path, secret: Path) -> Callable[[], Any]:
    """A component, or a variant, that is asked for by such a name: an argument of the user's own, refused all the same."""
    variant = names(r, secret, copy / "unet")
    variant = "../x" if variant.isalnum() else variant  # a variant may be called so
    return lambda: UNet2DConditionModel.from_pretrained(copy, subfolder="unet", variant=variant or "../x", **HOW)


def metadata(r: random.Random, copy: Path, secret: Path) -> Callable[[], Any]:
    """A folder of pictures whose captions name a picture elsewhere."""
    pictures = copy / "pictures"
    pictures.mkdir()
    Image.new("RGB", (8, 8)).save(pictures / "a.png")
    picture = secret.with_name("secret.png")
    Image.new("RGB", (8, 8), "red").save(picture)
    lines = [{"file_name": "a.png", "text": "a"}, {"file_name": names(r, picture, pictures), "text": "b"}]
    (pictures / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lambda: read_folder(pictures, captions=True)


KINDS = (shards, shards, linked_folder, subfolder, metadata)


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Load `count` models and folders of pictures that name files elsewhere."""
    r, tally = random.Random(seed), Tally()
    model = make_model(folder / "elsewhere" / "model")
    secret = folder / "elsewhere" / "secret.safetensors"
    shutil.copy(model / "unet" / "diffusion_pytorch_model.safetensors", secret)
    Text2ImagePipeline.from_pretrained(model, **HOW)
    for number in range(count):
        copy = shutil.copytree(model, folder / "model")
        kind = KINDS[number % len(KINDS)]
        load = kind(r, copy, secret)
        case = f"{kind.__name__}, number {number} of seed {seed}"
        with watching(copy) as seen:
            tally.refuse(case, load, also=(ValueError,))
        if seen.opened:
            tally.blame("opened_outside", f"{case}: {seen.opened[:2]}")
        shutil.rmtree(copy)
    return tally.result(*ZEROS)
