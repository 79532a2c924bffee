"""Writes a trained model as float16 into the package.

python examples/tiny_scenes/bundle.py runs/tiny_scenes/diffusion/model src/latentgen/bundled/tiny_scenes
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from latentgen import Text2ImagePipeline
from latentgen.training.folders import replacing_folder

LIMIT = 20_000_000  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()

    pipe = Text2ImagePipeline.from_pretrained(arguments.source, device="cpu", dtype="float32")
    for module in (pipe.vae, pipe.unet, pipe.text_encoder):
        module.to(torch.float16)
    with replacing_folder(arguments.target) as fresh:
        pipe.save_pretrained(fresh)
        size = sum(path.stat().st_size for path in fresh.rglob("*") if path.is_file())
        if size > LIMIT:
            raise SystemExit(f"the bundled model must have at most {LIMIT} bytes; this one has {size}")
    print(f"{arguments.target}: {size} bytes")


if __name__ == "__main__":
    main()
