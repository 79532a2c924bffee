"""Weights that do not fit their network: nothing may be left random, and the error says what does not fit."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fuzz.outcome import Tally
from fuzz.tiny import HOW, make_model
from latentgen import AutoencoderKL, UNet2DConditionModel
from latentgen.weights.safetensors_io import read_tensors, write_tensors

ZEROS = ("accepted", "untyped", "unnamed", "slow", "unlisted")
NAME = "diffusion_pytorch_model.safetensors"
KINDS = ("missing", "extra", "misshaped", "transposed", "nan", "infinite", "zero", "integers", "other network", "single file",
         "adapter", "renamed", "empty", "all at once")  # fmt: skip


def change(
    r: random.Random, kind: str, good: dict[str, Tensor], other: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights that are wrong, and the names that the error must list (up to ten of them)."""
    tensors = dict(good)
    some = r.sample(sorted(tensors), r.choice([1, 2, 9, 15]))
    if kind in ("missing", "all at once"):
        for name in some:
            del tensors[name]
    if kind in ("extra", "all at once"):
        tensors |= {f"more.{n}.weight": torch.ones(n + 1) for n in range(len(some))}
    if kind == "misshaped":
        tensors |= {name: torch.ones(*tensors[name].shape, 2) for name in some}
    elif kind == "transposed":
        turned = [name for name in sorted(tensors) if tensors[name].shape != tensors[name].shape[::-1]]
        some = r.sample(turned, min(len(some), len(turned)))
        tensors |= {name: tensors[name].permute(*reversed(range(tensors[name].ndim))) for name in some}
    elif kind in ("nan", "infinite"):
        for name in some:
            tensors[name] = tensors[name].clone()
            tensors[name].reshape(-1)[r.randrange(tensors[name].numel())] = float("nan" if kind == "nan" else "inf")
    elif kind == "zero":
        tensors, some = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, []
    elif kind == "integers":
        tensors |= {name: tensors[name].to(torch.int8) for name in some}
    elif kind == "other network":
        tensors, some = dict(other), []
    elif kind == "single file":
        tensors, some = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}, []
    elif kind == "adapter":
        tensors, some = {f"lora_unet_{n}.lora_up.weight": torch.ones(2, 2) for n in range(9)}, []
    elif kind == "renamed":
        tensors, some = {name.replace("attentions", "attention"): tensor for name, tensor in tensors.items()}, []
    elif kind == "empty":
        tensors, some = {}, []
    return tensors, sorted(some)


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Load `count` networks whose weights are wrong."""
    r, tally = random.Random(seed), Tally()
    model = make_model(folder / "model")
    good, other = (read_tensors(model / name / NAME) for name in ("unet", "vae"))
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        network, cls = (("unet", UNet2DConditionModel), ("vae", AutoencoderKL))[number // len(KINDS) % 2]
        mine, theirs = (good, other) if network == "unet" else (other, good)
        tensors, names = change(r, kind, mine, theirs)
        place = folder / f"{number}"
        place.mkdir()
        shutil.copy(model / network / "config.json", place)
        write_tensors(place / NAME, tensors)
        told = tally.refuse(
            f"{kind}, {number} of seed {seed}",
            lambda cls=cls, place=place: cls.from_pretrained(place, **HOW),
            names=place.name,
        )
        if told and not _listed(told, kind, names, mine, tensors):
            tally.blame("unlisted", f"{kind}: {told[:300]}")
        shutil.rmtree(place)
    return tally.result(*ZEROS)


def _listed(told: str, kind: str, names: list[str], expected: dict[str, Tensor], given: dict[str, Tensor]) -> bool:
    """Whether the error names up to ten of the tensors that are wrong, and both shapes where they differ."""
    if kind in ("nan", "infinite"):  # in the network's order
        return sum(f"{name} {tuple(expected[name].shape)}" in told for name in names) == min(10, len(names))
    for name in names[:10]:
        shape = re.escape(str(tuple(expected[name].shape)))
        if kind in ("missing", "all at once"):
            said = rf"{re.escape(name)} {shape} is missing"
        elif kind in ("misshaped", "transposed"):
            said = (
                rf"{re.escape(name)} is {re.escape(str(tuple(given[name].shape)))} in the file and {shape} in the model"
            )
        else:
            said = re.escape(name) if kind == "integers" else ""
        if not re.search(said, told):
            return False
    return kind != "extra" or len(set(re.findall(r"more\.\d+\.weight \(\d+,\) is in the file", told))) in (
        10,
        len(names),
    )
