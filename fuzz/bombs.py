"""Headers that would take the memory or the time: refused before they do."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.outcome import Tally
from latentgen.weights.errors import WeightsError
from latentgen.weights.safetensors_header import MAX_KEYS, MAX_QUOTES
from latentgen.weights.safetensors_io import read_header

MOST_SECONDS, MOST_BYTES = 0.2, 64 * 2**20
ZEROS = ("accepted", "untyped", "slow", "large")
UNDER = 8 * 2**20 - 64
"""Bytes of the longest header that is parsed at all."""


def entries(count: int) -> bytes:
    return b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[],"data_offsets":[0,0]}' % n for n in range(count)) + b"}"


def repeated(part: bytes, size: int) -> bytes:
    return b'{"a":[' + part * ((size - 8) // len(part)) + b"0]}"


BOMBS: dict[str, Callable[[], bytes]] = {
    "a million entries": lambda: entries(1_000_000),
    "100 MB of brackets": lambda: b'{"a":' + b"[" * 100_000_000,
    "100 MB of numbers": lambda: repeated(b"1,", 100_000_000),
    "100 MB of one name": lambda: b'{"' + b"a" * 99_999_000 + b'":1}',
    "entries under the limit": lambda: entries(UNDER // 60),
    "empty lists under the limit": lambda: repeated(b"[],", UNDER),
    "empty objects under the limit": lambda: repeated(b"{},", UNDER),
    "numbers under the limit": lambda: repeated(b"1,", UNDER),
    "long numbers under the limit": lambda: repeated(b"123456789012345678,", UNDER),
    "one number under the limit": lambda: b'{"a":' + b"1" * (UNDER - 8) + b"}",
    "floats under the limit": lambda: repeated(b"1e1,", UNDER),
    "texts under the limit": lambda: repeated(b'"ab",', UNDER),
    "words under the limit": lambda: repeated(b"true,", UNDER),
    "escapes under the limit": lambda: b'{"' + b"\\u0041" * ((UNDER - 16) // 6) + b'":1}',
    "names under the limit": lambda: b"{" + b",".join(b'"%06d":1' % n for n in range(UNDER // 11)) + b"}",
    "one name under the limit": lambda: b'{"' + b"a" * (UNDER - 16) + b'":1}',
    "brackets under the limit": lambda: b'{"a":' + b"[" * (UNDER - 8),
    "one name twice among many": lambda: (
        b'{"__metadata__":{' + b",".join(b'"%06d":""' % n for n in range(MAX_KEYS - 8)) + b',"000000":""}}'
    ),
    "the last name twice": lambda: (
        b'{"__metadata__":{' + b",".join(b'"%06d":""' % n for n in [*range(MAX_KEYS - 8), MAX_KEYS - 9]) + b"}}"
    ),
    "names that end in a backslash": lambda: (
        b'{"__metadata__":{' + b",".join(rb'"%06d\\":""' % n for n in range(MAX_QUOTES // 4 - 8)) + b"}}"
    ),
    "metadata under the limit": lambda: json.dumps({"__metadata__": {str(n): "x" for n in range(450_000)}}).encode()[
        :UNDER
    ],
}


def measure(path: Path) -> dict[str, Any]:
    """Read a header in a process of its own: seconds, bytes of memory beyond what it had, and what came of it."""
    inward, outward = os.pipe()
    child = os.fork()
    if not child:
        told: dict[str, Any] = {}
        try:
            clear = Path("/proc/self/clear_refs")
            clear.write_text("5")  # the peak of resident pages becomes what is resident now
            before, start = _peak(), time.perf_counter()
            try:
                read_header(path)
                told["outcome"] = "accepted"
            except WeightsError as error:
                told["outcome"] = "refused" if path.name in str(error) and len(str(error)) < 2000 else "untyped"
            except BaseException as error:
                told["outcome"] = f"untyped {type(error).__name__}"
            told |= {"seconds": time.perf_counter() - start, "bytes": _peak() - before}
        finally:
            os.write(outward, json.dumps(told).encode())
            os._exit(0)
    os.close(outward)
    with os.fdopen(inward) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return dict(json.loads(text or '{"outcome": "untyped crash", "seconds": 0, "bytes": 0}'))


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Read the first `count` bombs, each as if the numbers that it speaks of were there."""
    tally = Tally()
    for name, make in list(BOMBS.items())[:count]:
        header = make()
        path = folder / "bomb.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        told = measure(path)
        tally.counts["cases"] += 1
        tally.counts["slowest_ms"] = max(tally.counts["slowest_ms"], round(told["seconds"] * 1000))
        tally.counts["largest_kb"] = max(tally.counts["largest_kb"], told["bytes"] // 1024)
        case = f"{name}: {told['outcome']}, {told['seconds']:.2f} s, {told['bytes'] / 2**20:.0f} MiB"
        if told["outcome"] != "refused":
            tally.blame(told["outcome"].split()[0], case)
        if told["seconds"] > MOST_SECONDS:
            tally.blame("slow", case)
        if told["bytes"] > MOST_BYTES:
            tally.blame("large", case)
    return tally.result(*ZEROS)
