"""The one place that reads and writes a safetensors file. Pickles are never opened, whatever they are called."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from latentgen.weights.allocation import allocate
from latentgen.weights.atomic import replacing
from latentgen.weights.checksums import write_sum
from latentgen.weights.errors import WeightsError
from latentgen.weights.regular_file import RegularFile
from latentgen.weights.safetensors_header import (
    DTYPES,
    METADATA,
    Entry,
    Header,
    HeaderError,
    header_length,
    parse_header,
)
from latentgen.weights.stored import StoredTensor
from latentgen.weights.weight_files import PICKLES

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read every tensor of a file, in the file's dtypes, on the CPU, into memory of its own.

    Raises:
        WeightsError: if the file is missing, no ordinary file, empty, cut short, no safetensors file, or changes while it is
            read.
    """
    return {name: stored.fetch() for name, stored in open_tensors(path).items()}


def open_tensors(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """The tensors of a file, each read when it is fetched; the file stays open as long as one of them is kept.

    Raises:
        WeightsError: as `read_tensors`; fetching raises it too.
    """
    return open_with_metadata(path)[0]


def open_with_metadata(path: str | os.PathLike[str]) -> tuple[dict[str, StoredTensor], Mapping[str, str]]:
    """`open_tensors`, and the texts in the file's header."""
    file = RegularFile(path)
    header = _header(file)
    return {name: _stored(file, entry) for name, entry in header.entries.items()}, header.metadata


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read what a file says of itself, and no weights.

    Raises:
        WeightsError: as `read_tensors`.
    """
    file = RegularFile(path, settled=False)
    try:
        return _header(file)
    finally:
        file.close()


def read_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes in a file's header, and no weights; raises as `read_tensors`."""
    return {name: entry.shape for name, entry in read_header(path).entries.items()}


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor | StoredTensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file in one step: whoever reads `path` sees the old file or the whole new one.

    Args:
        path: ends in ".safetensors"; its folder is made if it is missing.
        tensors: on any device, contiguous or not, sharing memory or not (each is written in full); those that are still in
            a file are fetched one after the other.
        metadata: further entries of the header, beside `"format": "pt"`.

    Raises:
        ValueError: for another ending, or a tensor that holds no numbers (on the meta device) or that the format cannot hold.
        OSError: if the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path} does not end in .safetensors, the only format that weights are written in: rename it."
        )
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.is_meta:
            raise ValueError(
                f"{name} is on the meta device and holds no numbers: load it or initialise it before saving."
            )
        if tensor.dtype not in NAMES:
            raise ValueError(f"{name} is {tensor.dtype}, which a safetensors file cannot hold here: cast it before.")
    # Wide numbers first: each tensor then lies at a multiple of its numbers' size.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {METADATA: {"format": "pt", **(metadata or {})}}
    reached = 0
    for name in order:
        shape, dtype = list(tensors[name].shape), tensors[name].dtype
        end = reached + dtype.itemsize * tensors[name].shape.numel()
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [reached, end]}
        reached = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as fresh, fresh.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes(tensors[name]))
    write_sum(path, begin=False)


def _bytes(given: Tensor | StoredTensor) -> memoryview:
    tensor = given.fetch() if isinstance(given, StoredTensor) else given
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.stride(0) != 1:  # a single number counts as contiguous at any stride
        flat = flat.new_empty(flat.shape).copy_(flat)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _stored(file: RegularFile, entry: Entry) -> StoredTensor:
    def fetch() -> Tensor:
        tensor = allocate(entry.shape, entry.dtype)
        if tensor.numel():
            file.read_into(tensor.reshape(-1).view(torch.uint8).numpy().data, entry.start)
        return tensor

    return StoredTensor(torch.empty(entry.shape, dtype=entry.dtype, device="meta"), fetch)


def _header(file: RegularFile) -> Header:
    """Read the header and turn whatever is wrong with it into one error: files come from anywhere and can be anything."""
    start = file.read(0, min(file.size, 64))
    try:
        length = header_length(start[:8], file.size)
        return parse_header(file.read(8, length), file.size)
    except HeaderError as error:
        raise WeightsError(
            f"{file.path} cannot be read as a safetensors file ({error}). {_remedy(file, start, str(error))}"
        ) from error


def _remedy(file: RegularFile, start: bytes, reason: str) -> str:
    """What a bad file is, from its size and first bytes, and what to do."""
    size = file.size
    if size == 0:
        return "The file is empty: fetch it again."
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        renamed = "" if file.path.suffix.lower() in PICKLES else "rename it to .ckpt and "
        return (
            "It is a pickle, which can run code when it is opened and is not opened here: use a .safetensors file, or "
            f"{renamed}run `latentgen convert` on it."
        )
    if start.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer, not the weights: run `git lfs pull` in its folder."
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "It is a web page, not the weights: fetch the file itself."
    if "cut short" in reason or "header too large" in reason or "header too small" in reason:
        return f"It has {size} bytes and does not fit its own header, so it was cut short or altered: fetch it again."
    return "It is damaged or of another format: fetch it again."
