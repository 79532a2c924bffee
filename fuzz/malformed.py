"""Safetensors files that are none: cut, bent, lying, or no files at all."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fuzz.outcome import Tally
from latentgen.weights.safetensors_io import open_tensors
from latentgen.weights.strict import fill

ZEROS = ("accepted", "untyped", "unnamed", "slow")


class Network(nn.Module):
    """What the files are for: a flipped name or dtype must not pass either."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 8, 3)
        self.norm = nn.GroupNorm(2, 8)
        self.proj = nn.Linear(8, 5)


def plain_file() -> tuple[bytes, bytes]:
    """A good file without metadata: its header, and the numbers."""
    torch.manual_seed(0)
    header, data = {}, b""
    for name, tensor in Network().state_dict().items():
        numbers = tensor.numpy().tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(numbers)],
        }
        data += numbers
    return json.dumps(header, separators=(",", ":")).encode(), data


def packed(header: bytes, data: bytes, length: int | None = None) -> bytes:
    """The bytes of a file."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entries(header: bytes) -> dict[str, Any]:
    """A header's content, to be changed."""
    return dict(json.loads(header))


Make = Callable[[random.Random, bytes, bytes], bytes]


def cut(r: random.Random, h: bytes, d: bytes) -> bytes:
    whole = packed(h, d)
    return whole[: r.randrange(len(whole))]


def longer(r: random.Random, h: bytes, d: bytes) -> bytes:
    return packed(h, d + r.randbytes(r.randrange(1, 64)))


def flip(r: random.Random, h: bytes, d: bytes) -> bytes:
    bent = bytearray(h)
    bent[r.randrange(len(h))] ^= 1 << r.randrange(8)
    return packed(bytes(bent), d)


def flips(r: random.Random, h: bytes, d: bytes) -> bytes:
    bent = bytearray(h)
    for place in r.sample(range(len(h)), r.randrange(2, 9)):
        bent[place] ^= 1 << r.randrange(8)
    return packed(bytes(bent), d)


def length(r: random.Random, h: bytes, d: bytes) -> bytes:
    lie = r.choice([0, 1, len(h) - 1, len(h) + 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, r.randrange(2**64)])
    return packed(h, d, lie)


def bent_entry(r: random.Random, h: bytes, d: bytes) -> bytes:
    """One entry that says what cannot be: shapes, offsets, dtypes, keys."""
    content = entries(h)
    name = r.choice(list(content))
    entry = content[name]
    start, end = entry["data_offsets"]
    change = r.randrange(12)
    if change == 0:
        entry["data_offsets"] = [start + r.randrange(1, 40), end + r.randrange(1, 40)]
    elif change == 1:
        entry["data_offsets"] = r.choice(
            [[end, start], [start], [start, end, end], [-1, end], [start, 2**63], [0.0, 1.5], "x", None]
        )
    elif change == 2:
        entry["data_offsets"] = r.choice(list(content.values()))["data_offsets"] if len(content) > 1 else [1, 2]
        entry["shape"] = [1, *entry["shape"]]
    elif change == 3:
        entry["shape"] = r.choice(
            [[2**32, 2**32], [-1], [0], [2**63], [1.5], [True], "8", None, [[8]], [1] * 100, [1] * 10_000]
        )
    elif change == 4:
        entry["shape"] = [*entry["shape"], r.randrange(2, 9)]
    elif change == 5:
        entry["dtype"] = r.choice(
            ["F99", "f32", "", "float32", "I32", "F64", "F16", "BOOL", "U8", None, 32, ["F32"], "F8_E4M3"]
        )
    elif change == 6:
        del entry[r.choice(list(entry))]
    elif change == 7:
        entry["more"] = r.choice([1, "x", [], {}])
    elif change == 8:
        content[name] = r.choice([None, 1, "x", [], [entry], {}])
    elif change == 9:
        content["\u0000" * r.randrange(1, 5) + "extra"] = {
            "dtype": "F32",
            "shape": [1],
            "data_offsets": [len(d), len(d) + 4],
        }
        return packed(json.dumps(content).encode(), d + r.randbytes(4))
    elif change == 10:
        del content[name]
    else:
        content["__metadata__"] = r.choice([1, [], "x", {"a": 1}, {"a": {"b": "c"}}, {"a": None}])
    return packed(json.dumps(content).encode(), d)


def overlap(r: random.Random, h: bytes, d: bytes) -> bytes:
    """Two tensors on the same bytes; the rest moves up, so that all is covered."""
    content = entries(h)
    names = list(content)
    twin = json.loads(json.dumps(content[r.choice(names)]))
    content["twin"] = twin
    return packed(json.dumps(content).encode(), d)


def hole(r: random.Random, h: bytes, d: bytes) -> bytes:
    content = entries(h)
    gap, names = r.randrange(1, 100), list(content)
    after = r.randrange(len(names))
    for name in names[after:]:
        content[name]["data_offsets"] = [x + gap for x in content[name]["data_offsets"]]
    place = content[names[after]]["data_offsets"][0] - gap
    return packed(json.dumps(content).encode(), d[:place] + r.randbytes(gap) + d[place:])


def twice(r: random.Random, h: bytes, d: bytes) -> bytes:
    """The same key twice: readers differ in which they take."""
    text = h.decode()
    name = r.choice(list(entries(h)))
    again = json.dumps({name: entries(h)[name]})[1:-1]
    return packed(r.choice([f"{text[:-1]},{again}}}", f"{{{again},{text[1:]}"]).encode(), d)


def deep(r: random.Random, h: bytes, d: bytes) -> bytes:
    depth, opening, closing = r.choice([50, 1000, 100_000]), *r.choice([("[", "]"), ('{"a":', "}")])
    text = opening * depth + "1" + closing * depth
    return packed(('{"a":' + text + "}").encode(), d)


def no_json(r: random.Random, h: bytes, d: bytes) -> bytes:
    text = r.choice([b"", b"{", b"null", b"[]", b"{}", b'"x"', b"{'a':1}", h + h, h + b" ", b" " + h, h[:-1], b"\xff" + h,
                     h.replace(b":", b"=", 1), b"\xef\xbb\xbf" + h, h.decode().encode("utf-16"), r.randbytes(100)])  # fmt: skip
    return packed(text, d) if text != h + b" " else packed(h + b"x", d)


def noise(r: random.Random, h: bytes, d: bytes) -> bytes:
    return r.randbytes(r.choice([0, 1, 7, 8, 9, 100, 5000]))


MAKERS: tuple[Make, ...] = (
    cut,
    longer,
    flip,
    flip,
    flips,
    length,
    bent_entry,
    bent_entry,
    overlap,
    hole,
    twice,
    deep,
    no_json,
    noise,
)


def no_file(r: random.Random, path: Path) -> str:
    """Something in a file's place that is none."""
    kind = r.choice(["pipe", "folder", "dangling link", "link to itself", "device", "absent"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(path.with_name("nowhere"))
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to(r.choice(["/dev/zero", "/dev/null", "/dev/random", "/proc/self/mem", "/dev/tty"]))
    return kind


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Load `count` files that are none."""
    r, tally = random.Random(seed), Tally()
    header, data = plain_file()

    def load(path: Path) -> None:
        with torch.device("meta"):
            network = Network()
        fill(network, open_tensors(path), dtype=torch.float32, device=torch.device("cpu"), source=str(path))

    good = folder / "good.safetensors"
    good.write_bytes(packed(header, data))
    load(good)  # or nothing below would mean anything
    for number in range(count):
        path = folder / f"{number}.safetensors"
        if number % 20 == 0 and os.name == "posix":
            case = no_file(r, path)
        else:
            make = r.choice(MAKERS)
            case = make.__name__
            path.write_bytes(make(r, header, data))
            os.utime(path, (1, 1))  # long ago: nobody waits for its writer
        tally.refuse(f"{case}, number {number} of seed {seed}", lambda path=path: load(path), names=path.name)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    return tally.result(*ZEROS)
