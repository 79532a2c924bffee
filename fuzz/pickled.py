"""Pickles under every name that weights have, and beside them: never executed."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fuzz.outcome import Tally
from fuzz.tiny import HOW, make_model
from latentgen import AutoencoderKL, Text2ImagePipeline, UNet2DConditionModel
from latentgen.pipelines.convert import convert
from latentgen.pipelines.describe import describe
from latentgen.weights.errors import WeightsError

ZEROS = ("executed", "untyped")


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


def forms(mark: Path) -> dict[str, bytes]:
    """The payload in the forms that readers of weights unpickle."""
    payload = Payload(mark)
    made = {f"protocol {number}": pickle.dumps(payload, number) for number in range(6)}
    for name, content in (
        ("torch", payload),
        ("torch, among weights", {"conv_in.weight": torch.ones(2), "x": payload}),
    ):
        for kind in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=kind)
            made[f"{name}{'' if kind else ', old'}"] = buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, np.array([payload], dtype=object), allow_pickle=True)
    made["numpy"] = buffer.getvalue()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(payload))
    made["zip"] = buffer.getvalue()
    return made


IN_PLACE = (
    "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors",
    "model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json", "text_encoder/config.json",
)  # fmt: skip
BESIDE = (
    "unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "unet/model.ckpt",
    "scheduler/scheduler.pt", "scheduler/scheduler_config.pkl", "optimizer.pt", "tokenizer/tokenizer.pkl", "random_states_0.pkl",
    "pytorch_lora_weights.bin", "unet/diffusion_pytorch_model.fp16.bin", "learned_embeds.bin",
)  # fmt: skip
ALONE = (
    "model.ckpt",
    "model.pt",
    "model.pth",
    "model.bin",
    "model.safetensors",
    "model.pkl",
    "learned_embeds.pt",
    "lora.npy",
)


def ways(path: Path, pipe: Text2ImagePipeline) -> list[Callable[[], Any]]:
    """Everything that opens a file by its name."""
    return [
        lambda: Text2ImagePipeline.from_single_file(path, **HOW),
        lambda: AutoencoderKL.from_single_file(path, **HOW),
        lambda: pipe.load_lora(path),
        lambda: pipe.load_textual_inversion(path),
        lambda: describe(path),
        lambda: describe(path, sha256=True),
        lambda: convert(path, path.parent / "out.safetensors"),
        lambda: convert(path, path.parent / "out"),
    ]


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Put `count` payloads where weights and their side files are, and load."""
    r, tally, mark = random.Random(seed), Tally(), folder / "executed"
    model = make_model(folder / "model")
    pipe = Text2ImagePipeline.from_pretrained(model, **HOW)
    made = forms(mark)
    for number in range(count):
        form, content = list(made.items())[number % len(made)]
        kind = number % 4
        if kind == 3:
            path = folder / "alone" / r.choice(ALONE)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            loads, case = ways(path, pipe), f"{form} as {path.name}"
        else:
            name = r.choice(IN_PLACE if kind == 0 else BESIDE)
            copy = shutil.copytree(model, folder / "copy")
            (copy / name).write_bytes(content)
            if kind == 2:  # instead of the weights, not beside them
                next((copy / name).parent.glob("*.safetensors"), copy / name).unlink()
            loads = [
                lambda copy=copy: Text2ImagePipeline.from_pretrained(copy, **HOW),
                lambda copy=copy: UNet2DConditionModel.from_pretrained(copy, subfolder="unet", **HOW),
                lambda copy=copy: describe(copy),
            ]
            case = f"{form} as {name}"
        tally.counts["cases"] += 1
        for load in loads:
            try:
                load()
                tally.counts["loaded"] += 1  # without having looked at it
            except (WeightsError, ValueError):
                tally.counts["refused"] += 1
            except BaseException as error:
                tally.blame("untyped", f"{case}: {error!r}")
            if mark.exists():
                tally.blame("executed", case)
                mark.rmdir()
        shutil.rmtree(folder / ("alone" if kind == 3 else "copy"), ignore_errors=True)
    return tally.result(*ZEROS)
