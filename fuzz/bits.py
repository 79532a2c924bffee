"""One flipped bit, anywhere in a saved model: found by `verify=True`."""

from __future__ import annotations

import hashlib
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
    """Flip `count` bits, one at a time: in a network that is loaded alone, a single file, and every tenth in a whole model."""
    r, tally = random.Random(seed), Tally()
    model = make_model(folder / "model")
    whole = sorted(path for path in model.rglob("*") if path.is_file() and path.name not in NOT_READ)
    alone = sorted(path for path in (model / "vae").iterdir() if path.is_file())
    single = folder / "vae.safetensors"
    AutoencoderKL.from_config({"block_out_channels": [32]}).save_single_file(single, checksum=True)
    said = hashlib.sha256(single.read_bytes()).hexdigest()

    def load(kind: int, verify: bool | str) -> None:
        if kind == 0:
            Text2ImagePipeline.from_pretrained(model, verify=True, **HOW)
        elif kind % 2:
            AutoencoderKL.from_pretrained(model / "vae", verify=True, **HOW)
        else:
            AutoencoderKL.from_single_file(single, verify=verify, **HOW)

    for number in range(count):
        kind = number % 10
        path = r.choice(whole if kind == 0 else alone if kind % 2 else [single])
        good = path.read_bytes()
        bent = bytearray(good)
        bent[r.randrange(len(bent))] ^= 1 << r.randrange(8)
        path.write_bytes(bent)
        verify = r.choice([True, said, said.upper()])
        tally.refuse(
            f"{path.name}, {number} of seed {seed}",
            lambda kind=kind, verify=verify: load(kind, verify),
            names=f"{path.name} is not the file that was recorded",
        )
        path.write_bytes(good)
    for kind in range(3):  # all as it was
        load(kind, True)
    return tally.result(*ZEROS)
