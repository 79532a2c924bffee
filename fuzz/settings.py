"""Settings, vocabularies and records with values of all kinds: read as they are meant, or a typed error in time."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fuzz.outcome import Tally
from fuzz.tiny import HOW, make_model
from latentgen import Text2ImagePipeline
from latentgen.pipelines.describe import describe
from latentgen.pipelines.folder import LOADERS, How
from latentgen.weights.checksums import SUMS

ZEROS = ("untyped", "slow")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, 2**64, 10**30, 10**400, float("inf"), float("nan"), -0.5, 0.5, 1e-300, 1e308,
    65536, 10**6, "", "x", "\0", "a" * 100_000, "gelu", "../..", "<|endoftext|>", "DownBlock2D", [], {},
    [[]], [{}], [None], [0], [-1],
    [2**40], [1, 2, 3], [1] * 1000, ["x"] * 20, [["a", "b"]], {"a": 1}, {"content": ""}, {"content": "x", "special": 3},
    {"type": "x"}, {"0": {"content": "a"}}, {"99999999999": {"content": "a"}},
)  # fmt: skip
KINDS = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "DDIMScheduler"),
}
LOADING = How(torch.device("cpu"), torch.float32)


def places(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value stands in settings; of long lists and tables the beginning."""
    keys = (
        list(content)[:40]
        if isinstance(content, dict)
        else range(min(3, len(content)))
        if isinstance(content, list)
        else ()
    )
    for key in keys:
        yield (*above, key)
        yield from places(content[key], (*above, key))


def put(content: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        content = content[key]
    content[place[-1]] = value


def bent(r: random.Random, text: str, path: Path) -> tuple[bytes, str]:
    """A file's content with something changed, and what in words."""
    if path.suffix == ".json" and r.random() < 0.85:
        content, said = json.loads(text), []
        for _ in range(r.choice([1, 1, 1, 2])):
            place, value = r.choice(list(places(content))), r.choice(VALUES)
            try:
                put(content, place, value)
            except (TypeError, KeyError, IndexError):  # what it stood in was changed before
                continue
            said.append(f"{'.'.join(map(str, place))[:60]}={repr(value)[:40]}")
        return json.dumps(content).encode(), ", ".join(said)
    data = bytearray(text.encode())
    way = r.randrange(4)
    if way == 0:
        return bytes(data[: r.randrange(len(data))]), "cut"
    if way == 1:
        return bytes(data) + r.randbytes(r.randrange(1, 50)), "longer"
    for _ in range(r.choice([1, 3, 20])):
        data[r.randrange(len(data))] = r.randrange(256)
    return bytes(data), "other bytes"


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Load `count` components, or models, of which one file was changed, and describe each."""
    r, tally = random.Random(seed), Tally()
    model = make_model(folder / "model")
    files = sorted(path for path in model.rglob("*") if path.suffix in (".json", ".txt") or path.name == SUMS)
    whole = model / "tokenizer" / "tokenizer.json"
    good = {path: path.read_text(encoding="utf-8") for path in files}
    for number in range(count):
        path = r.choice(files)
        content, said = bent(r, good[path], path)
        path.write_bytes(content)
        if path.parent == whole.parent and path != whole and r.random() < 0.7:
            whole.unlink()  # so that the older files are read
        case = f"{path.relative_to(model)}: {said}, number {number} of seed {seed}"
        start = time.perf_counter()
        tally.load(case, loading(path, model))
        tally.counts["cases"] -= 1  # both are of one
        tally.load(f"info, {case}", lambda path=path: describe(r.choice([model, *[path.parent] * 3])))
        tally.timed(case, start)
        path.write_text(good[path], encoding="utf-8")
        whole.write_text(good[whole], encoding="utf-8")
    Text2ImagePipeline.from_pretrained(model, verify=True, **HOW)  # all as it was
    return tally.result(*ZEROS)


def loading(path: Path, model: Path) -> Callable[[], Any]:
    """What reads a file: a component's, the component alone, which is quicker."""
    if path.parent == model:
        return lambda: Text2ImagePipeline.from_pretrained(model, verify=path.name == SUMS, **HOW)
    return lambda: LOADERS[KINDS[path.parent.name]](path.parent, LOADING)
