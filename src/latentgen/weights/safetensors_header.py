"""The header of a safetensors file: what it may say, and what is believed of it.

A file is 8 bytes (the header's length, little-endian), the header (JSON: a name for each tensor, with its dtype, shape and
place) and the numbers. The places must cover what follows the header, each byte once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

MAX_HEADER = 8 * 2**20
"""Bytes; published models have up to 1 MB, adapters with a record of their training up to a few."""

MAX_TENSORS = 12_288
MAX_NAME = 1024  # letters
MAX_DIMENSIONS = 16
MAX_BRACKETS = 200_000  # with those inside metadata's texts; each list costs memory before it can be looked at
MAX_QUOTES = 300_000
MAX_KEYS = MAX_TENSORS * 4 + 4096  # a name and three of its own for each tensor, and those of metadata
MAX_NUMBERS = MAX_TENSORS * 8  # two offsets each, and of dimensions few have more than 4

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

METADATA = "__metadata__"


class HeaderError(ValueError):
    """A header that breaks the format's rules; the message says which."""


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its dtype, its shape, and the offsets of its bytes, from the file's beginning."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a header says: the tensors by name, and texts by name."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def header_length(start: bytes, size: int) -> int:
    """The header's length in bytes.

    Args:
        start: the file's first 8 bytes.
        size: of the file, in bytes.

    Raises:
        HeaderError: if the file cannot hold such a header, or nobody would write one.
    """
    if len(start) < 8:
        raise HeaderError(f"header too small: the file has {size} bytes, fewer than the 8 of a header's length")
    length = int.from_bytes(start, "little")
    if length > size - 8:
        raise HeaderError(f"header too large: it claims {length} bytes, and the file has {size}")
    if length > MAX_HEADER:
        raise HeaderError(f"its header has {length} bytes; at most {MAX_HEADER} are read")
    return length


def parse_header(text: bytes, size: int) -> Header:
    """Read a header, and hold it to all rules of the format.

    Args:
        text: the header.
        size: of the whole file, in bytes.

    Raises:
        HeaderError: naming the rule that it breaks, and the tensor.
    """
    content = _load(text)
    metadata = content.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError(f"{METADATA} must hold texts only")
    if len(content) > MAX_TENSORS:
        raise HeaderError(f"it has {len(content)} tensors; at most {MAX_TENSORS} are read")
    begin = 8 + len(text)
    if (longest := max(map(len, content), default=0)) > MAX_NAME:
        raise HeaderError(f"it has a name of {longest} letters; at most {MAX_NAME} are read")
    if (odd := next(filter(_CONTROL.search, content), None)) is not None:
        raise HeaderError(f"the name {_short(odd)} has control characters")
    entries = {name: _entry(name, value, begin) for name, value in content.items()}
    reached = begin
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != reached:
            what = "overlaps another" if entry.start < reached else f"leaves {entry.start - reached} bytes unused"
            raise HeaderError(f"{_short(name)} begins at byte {entry.start - begin}, which {what}")
        reached = entry.end
    if reached != size:
        what = "is cut short" if reached > size else "has bytes that belong to no tensor"
        raise HeaderError(f"the tensors end at byte {reached} and the file at {size}: it {what}")
    return Header(entries, metadata)


class _Counter:
    """Counts what a header is made of while it is parsed, to stop before it takes much memory."""

    def __init__(self) -> None:
        self.numbers = self.objects = 0

    def number(self, digits: str) -> int:
        self.numbers += 1
        if self.numbers > MAX_NUMBERS or len(digits) > 20:
            raise HeaderError("it has too many numbers, or too long ones")
        return int(digits)

    def pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self.objects += 1
        if self.objects > MAX_TENSORS + 2:
            raise HeaderError(f"it has more than {MAX_TENSORS} tensors")
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise HeaderError(f"{_short(twice)} stands there twice")
        return found


def _no_number(text: str) -> Any:
    raise HeaderError(f"{text[:20]!r} is no whole number")


def _load(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise HeaderError("its header does not begin with a brace")
    for mark, most in ((b"[", MAX_BRACKETS), (b"{", MAX_BRACKETS), (b'"', MAX_QUOTES)):
        if (count := text.count(mark)) > most:
            raise HeaderError(f"its header has the character {mark.decode()} {count} times; at most {most} are read")
    # A key ends with a quote and a colon; in metadata's texts there is a backslash before, unless that is a text's own end.
    keys = text.count(b'":') - text.count(rb"\":") + text.count(rb'\\":')
    if keys > MAX_KEYS:
        raise HeaderError(f"its header has {keys} keys; at most {MAX_KEYS} are read")
    counter = _Counter()
    try:
        content = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=counter.pairs,
            parse_int=counter.number,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except HeaderError:
        raise
    except UnicodeDecodeError as error:
        raise HeaderError(f"its header is not UTF-8 (at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise HeaderError(f"its header is not JSON: {error.msg} at byte {error.pos}") from error
    except RecursionError as error:
        raise HeaderError("its header is nested too deeply") from error
    if not isinstance(content, dict):
        raise HeaderError("its header is not an object")
    return content


def _entry(name: str, value: Any, begin: int) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"{_short(name)} must have dtype, shape and data_offsets, and nothing else")
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise HeaderError(f"{_short(name)} has the dtype {_short(kind)}; known are {', '.join(DTYPES)}")
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS:
        raise HeaderError(f"the shape of {_short(name)} is no list of at most {MAX_DIMENSIONS} whole numbers")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError(
            f"the data_offsets of {_short(name)} are not two whole numbers, the first not above the second"
        )
    dtype, needed = DTYPES[kind], math.prod(shape) * DTYPES[kind].itemsize
    if offsets[1] - offsets[0] != needed:
        raise HeaderError(f"{_short(name)} has {offsets[1] - offsets[0]} bytes, and its shape and dtype take {needed}")
    return Entry(dtype, tuple(shape), begin + offsets[0], begin + offsets[1])


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""In names: they would write lines, colours and titles into the terminal of whoever lists them."""


def _short(name: Any) -> str:
    text = repr(name)
    return text if len(text) <= 100 else f"{text[:97]}..."
