"""Writes what the training of the autoencoder of factor 4 starts from: the outer layers of first_stage/, of factor 8.

    python examples/tiny_scenes/start_f4.py runs/tiny_scenes/autoencoder_f4_start

Between pixels and a quarter of their resolution both do the same work, and the larger one has learnt it. What is between that and
the latents, and all that does not fit, is random.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

import torch

from latentgen import AutoencoderKL

HERE = Path(__file__).parent


def in_the_larger(name: str) -> str:
    """What a parameter is called in the autoencoder with one level more: its decoder has a block before the others."""
    return re.sub(r"^decoder\.up_blocks\.(\d+)", lambda found: f"decoder.up_blocks.{int(found[1]) + 1}", name)


def start(larger: AutoencoderKL, settings: dict[str, object]) -> AutoencoderKL:
    """An autoencoder of these settings, with every parameter of the larger one that has a place of its shape."""
    torch.manual_seed(0)
    smaller = AutoencoderKL.from_config({**settings, "sample_size": larger.config.sample_size})
    theirs = larger.state_dict()
    for name, parameter in smaller.state_dict().items():
        found = theirs.get(in_the_larger(name))
        if found is not None and found.shape == parameter.shape and not name.startswith("encoder.conv_out"):
            parameter.copy_(found)
    return smaller


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    larger = AutoencoderKL.from_pretrained(HERE / "first_stage", device="cpu", dtype=torch.float32)
    settings = tomllib.loads((HERE / "autoencoder_f4.toml").read_text())["model"]
    start(larger, settings).save_pretrained(arguments.target)


if __name__ == "__main__":
    main()
