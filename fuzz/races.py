"""A file that is cut, overwritten or replaced while eight readers load it: an error or one version, never a mixture."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import torch

from fuzz.outcome import Tally
from latentgen.weights.errors import WeightsError
from latentgen.weights.safetensors_io import read_tensors, write_tensors

ZEROS = ("mixtures", "untyped")
READERS, TENSORS, NUMBERS = 8, 16, 65_536
WAYS = ("cut", "overwritten", "replaced", "emptied and written", "lengthened", "cut and restored", "time put back")
SETTLED = 0.02
"""Seconds between two changes that no system's clock takes for one."""


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Let `count` rounds of eight readers meet a writer. A crash ends the process, which whoever runs this counts."""
    r, tally = random.Random(seed), Tally()
    versions = []
    for value in (1.0, 2.0):
        path = folder / f"{value}.safetensors"
        write_tensors(path, {f"t{n:02d}": torch.full((NUMBERS,), value) for n in range(TENSORS)})
        versions.append(path.read_bytes())
    path = folder / "model.safetensors"
    for number in range(count):
        path.unlink(missing_ok=True)
        path.write_bytes(versions[0])
        way = WAYS[number % len(WAYS)]
        if r.random() < 0.7 or way == "time put back":
            os.utime(path, (1, 1))  # settled long ago
            threading.Event().wait(SETTLED)
        go, found = threading.Barrier(READERS + 1), []

        def read(pause: float, go: threading.Barrier = go, found: list[Any] = found) -> None:
            go.wait()
            threading.Event().wait(pause)
            try:
                found.append({float(x) for tensor in read_tensors(path).values() for x in tensor.unique()})
            except WeightsError:
                found.append("refused")
            except BaseException as error:
                found.append(error)

        readers = [threading.Thread(target=read, args=(r.random() * 0.02,)) for _ in range(READERS)]
        for reader in readers:
            reader.start()
        go.wait()
        threading.Event().wait(r.random() * 0.02)
        write(path, way, versions, r)
        for reader in readers:
            reader.join()
        tally.counts["cases"] += 1
        for what in found:
            if what == "refused":
                tally.counts["refused"] += 1
            elif isinstance(what, BaseException):
                tally.blame("untyped", f"{way}: {what!r}")
            elif what not in ({1.0}, {2.0}):
                tally.blame("mixtures", f"{way}, number {number}: {what}")
            else:
                tally.counts["loaded"] += 1
    return tally.result(*ZEROS)


def write(path: Path, way: str, versions: list[bytes], r: random.Random) -> None:
    """Do to a file what other programs do."""
    old, new = versions
    if way == "cut":
        os.truncate(path, r.randrange(len(old)))
    elif way in ("overwritten", "time put back"):
        with path.open("rb+") as file:
            for start in range(0, len(new), 2**18):
                file.write(new[start : start + 2**18])
                file.flush()
        if way == "time put back":
            os.utime(path, (1, 1))
    elif way == "replaced":
        beside = path.with_name("fresh")
        beside.write_bytes(new)
        beside.replace(path)
    elif way == "emptied and written":
        path.write_bytes(new)
    elif way == "lengthened":
        with path.open("ab") as file:
            file.write(b"more")
    else:
        os.truncate(path, r.randrange(len(old)))
        path.write_bytes(new)
