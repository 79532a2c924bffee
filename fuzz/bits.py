"""One flipped bit, anywhere in a saved model: found by `verify=True`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from fuzz.outcome import Tally
from fuzz.tiny import HOW, make_model
from latentgen import AutoencoderKL, Text2ImagePipeline
from latentgen.weights.checksums import SUMS

ZEROS = ("accepted", "untyped", "unnamed", "slow")
NOT_READ = {SUMS, "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"}
"""tokenizer.json holds what the others do."""


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Flip `count` bits, one at a time: most in a network that is loaded alone, every tenth in a whole model."""
    r, tally = random.Random(seed), Tally()
    model = make_model(folder / "model")
    whole = sorted(path for path in model.rglob("*") if path.is_file() and path.name not in NOT_READ)
    alone = sorted(path for path in (model / "vae").iterdir() if path.is_file())
    for number in range(count):
        path = r.choice(whole if number % 10 == 0 else alone)
        good = path.read_bytes()
        bent = bytearray(good)
        bent[r.randrange(len(bent))] ^= 1 << r.randrange(8)
        path.write_bytes(bent)
        cls: Any = Text2ImagePipeline if number % 10 == 0 else AutoencoderKL
        where = model if number % 10 == 0 else model / "vae"
        tally.refuse(
            f"{path.name}, {number} of seed {seed}",
            lambda cls=cls, where=where: cls.from_pretrained(where, verify=True, **HOW),
            names=path.name,
        )
        path.write_bytes(good)
    Text2ImagePipeline.from_pretrained(model, verify=True, **HOW)  # all as it was
    return tally.result(*ZEROS)
