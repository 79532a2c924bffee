"""The one place that reads and writes a safetensors file. Pickles are never opened, whatever they are called."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentgen.weights.atomic import replacing
from latentgen.weights.errors import WeightsError


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read every tensor of a file, in the file's dtypes, on the CPU.

    The file is mapped into memory: nothing is copied until a tensor is cast or moved, and writing into a tensor
    changes this process's copy only.

    Raises:
        WeightsError: if the file is missing, empty, cut short or not a safetensors file.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)


def read_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes in a file's header, and no weights.

    Raises:
        WeightsError: as `read_tensors`.
    """
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file in one step: whoever reads `path` sees the old file or the whole new one.

    Args:
        path: ends in ".safetensors"; its folder is made if it is missing.
        tensors: on any device, contiguous or not, sharing memory or not (each is written in full).
        metadata: further entries of the header, beside `"format": "pt"`.

    Raises:
        ValueError: for another ending, or a tensor that holds no numbers (on the meta device).
        OSError: if the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path} does not end in .safetensors, the only format that weights are written in: rename it."
        )
    packed: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device and holds no numbers: load or initialise it before saving.")
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # The format has no notion of shared memory and its writer refuses it.
        packed[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    with replacing(path) as fresh:
        try:
            save_file(packed, fresh, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a file and turn whatever goes wrong into one error: files come from anywhere and can be anything."""
    path = Path(path)
    if not path.exists():
        raise WeightsError(f"{path} does not exist: check the name, or fetch the file again.")
    if path.is_dir():
        raise WeightsError(f"{path} is a folder, not a safetensors file: give the file inside it.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read as a safetensors file ({error}). {_remedy(path, str(error))}"
        ) from error


def _remedy(path: Path, reason: str) -> str:
    """Look at a bad file's size and first bytes and say what it is and what to do."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return "Check its permissions."
    if size == 0:
        return "The file is empty: fetch it again."
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "It is a pickle, which can run code when it is opened and is not opened here: use a .safetensors file."
    if start.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer, not the weights: run `git lfs pull` in its folder."
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "It is a web page, not the weights: fetch the file itself."
    if "not fully covered" in reason or "header too large" in reason or "header too small" in reason:
        return f"It has {size} bytes and does not fit its own header, so it was cut short or altered: fetch it again."
    return "It is damaged or of another format: fetch it again."
