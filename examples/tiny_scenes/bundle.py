"""Writes a trained model as float16 into the package.

    python examples/tiny_scenes/bundle.py runs/tiny_scenes/diffusion/model src/latentgen/bundled/tiny_scenes

The folder's own model_index.json says which pipeline it is of.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from latentgen import AutoencoderKL, Class2ImagePipeline, InpaintPipeline, SuperResPipeline, Text2ImagePipeline
from latentgen.pipelines.pipeline import Pipeline
from latentgen.training.folders import replacing_folder

LIMIT = 20_000_000  # bytes, of one model
LIMIT_OF_ALL = 40_000_000

PIPELINES: dict[str, type[Pipeline]] = {
    "StableDiffusionPipeline": Text2ImagePipeline,
    "StableDiffusionInpaintPipeline": InpaintPipeline,
    "LDMSuperResolutionPipeline": SuperResPipeline,
    "Class2ImagePipeline": Class2ImagePipeline,
}


@torch.no_grad()
def fold_scale(vae: AutoencoderKL) -> None:
    """Have encoder and decoder speak of latents of unit variance, with a scaling factor of 1.

    diffusers' LDMSuperResolutionPipeline applies no factor, whatever the config says. Encoder and decoder end and begin in a
    1 x 1 convolution, which takes it: means times s, log variances plus 2 log s, and what is decoded over s.
    """
    factor, channels = vae.config.scaling_factor, vae.config.latent_channels
    to_moments, from_latents = vae.quant_conv, vae.post_quant_conv
    to_moments.weight[:channels] *= factor
    to_moments.bias[:channels] *= factor
    to_moments.bias[channels:] += 2 * torch.tensor(factor).log()
    from_latents.weight /= factor
    vae.config = replace(vae.config, scaling_factor=1.0)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()

    kind = json.loads((arguments.source / "model_index.json").read_text())["_class_name"]
    pipe = PIPELINES[kind].from_pretrained(arguments.source, device="cpu", dtype="float32")
    if kind == "LDMSuperResolutionPipeline":
        fold_scale(pipe.components["vae"])
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.to(torch.float16)
    with replacing_folder(arguments.target) as fresh:
        pipe.save_pretrained(fresh)
        size = size_of(fresh)
        others = sum(
            size_of(p)
            for p in arguments.target.parent.iterdir()
            if p.is_dir() and p.name not in {arguments.target.name, fresh.name}
        )
        if size > LIMIT or size + others > LIMIT_OF_ALL:
            raise SystemExit(
                f"a bundled model must have at most {LIMIT} bytes and all together {LIMIT_OF_ALL}; this one has {size}, the "
                f"others beside it {others}"
            )
    print(f"{arguments.target}: {size} bytes")


if __name__ == "__main__":
    main()
