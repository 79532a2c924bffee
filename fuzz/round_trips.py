"""What is saved is what is loaded: every dtype, view and shard, to the bit, in files that appear whole."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fuzz.outcome import Tally
from latentgen.weights import atomic
from latentgen.weights.safetensors_header import DTYPES
from latentgen.weights.safetensors_io import read_tensors, write_tensors
from latentgen.weights.sharding import load_tensors, save_tensors

ZEROS = ("different", "mode", "link", "order", "left_behind")


def random_tensors(r: random.Random) -> dict[str, Tensor]:
    """A few tensors of all kinds, some of them views, tied or empty."""
    tensors: dict[str, Tensor] = {}
    for number in range(r.randrange(0, 9)):
        shape = [r.choice([0, 1, 2, 3, 7]) for _ in range(r.randrange(0, 4))]
        tensor = torch.randint(0, 256, (*shape, 8), dtype=torch.uint8).view(torch.uint8)
        dtype = r.choice(list(DTYPES.values()))
        if dtype == torch.bool:
            tensor = tensor[..., 0] > 127
        else:
            tensor = tensor.view(dtype)
        view = r.randrange(5)
        if view == 1 and tensor.ndim > 1:
            tensor = tensor.transpose(0, -1)
        elif view == 2 and tensor.ndim and tensor.shape[0] > 1:
            tensor = tensor[::2]
        elif view == 3 and tensors:
            tensor = r.choice(list(tensors.values()))
        elif view == 4 and tensor.ndim:
            tensor = tensor[..., :1].expand(*tensor.shape)
        tensors[r.choice(["a", "layer.", "ü", "x" * 50]) + str(number)] = tensor
    return tensors


def bits(tensor: Tensor) -> tuple[Any, ...]:
    """Everything that must be the same, not-a-numbers too."""
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))
    return tensor.dtype, tuple(tensor.shape), bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(bits(a[name]) == bits(b[name]) for name in a)


class Order:
    """What the system was asked to do, in order: the numbers made durable, the name changed, the folder made durable."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fsync, self.replace = os.fsync, os.replace

    def __enter__(self) -> Order:
        def fsync(handle: int) -> None:
            self.done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "data")
            self.fsync(handle)

        def replace(source: Any, target: Any, **words: Any) -> None:
            self.done.append("name")
            self.replace(source, target, **words)

        atomic.os.fsync, atomic.os.replace = fsync, replace  # type: ignore[attr-defined]
        return self

    def __exit__(self, *_: object) -> None:
        atomic.os.fsync, atomic.os.replace = self.fsync, self.replace  # type: ignore[attr-defined]


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Save and load `count` times."""
    r, tally = random.Random(seed), Tally()
    torch.manual_seed(seed)
    for number in range(count):
        tally.counts["cases"] += 1
        tensors, place = random_tensors(r), folder / str(number)
        place.mkdir()
        case = f"number {number} of seed {seed}"
        umask = r.choice([0o022, 0o077, 0o002, 0o027])
        before = os.umask(umask)
        try:
            if number % 3 == 0 and tensors:
                save_tensors(place, "model", tensors, max_shard_size=r.choice([None, 1, 50, 200, "1KB"]))
                back = {name: stored.fetch() for name, stored in load_tensors(place, "model").items()}
                written = list(place.iterdir())
            else:
                path = place / "a.safetensors"
                linked = number % 3 == 1
                kept = folder / f"kept-{number}.safetensors"
                if linked:
                    path.symlink_to(kept)
                with Order() as order:
                    write_tensors(path, tensors)
                if order.done != ["data", "name", "folder"]:
                    tally.blame("order", f"{case}: {order.done}")
                if linked and not (path.is_symlink() and kept.is_file()):
                    tally.blame("link", case)
                back, written = read_tensors(path), [path]
        finally:
            os.umask(before)
        if not same(tensors, back):
            tally.blame("different", case)
        if any(path.stat().st_mode & 0o777 != 0o666 & ~umask for path in written):
            tally.blame("mode", case)
        if [path for path in (*place.iterdir(), *folder.glob(".*")) if path.name.endswith(".tmp")]:
            tally.blame("left_behind", case)
        shutil.rmtree(place)
    return tally.result(*ZEROS)
