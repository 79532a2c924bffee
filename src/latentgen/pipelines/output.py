"""What a pipeline returns, and how decoded latents become pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentgen.models.first_stage import FirstStage
from latentgen.pipelines.first_stage import decode
from latentgen.runtime.tiling import Tiling

OutputType = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES: tuple[OutputType, ...] = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class ImageOutput:
    """The result of a call.

    Attributes:
        images: for output_type "pil" a list of N pictures; "np" (N, H, W, 3) float32 in [0, 1]; "pt" (N, 3, H, W)
            float32 in [0, 1] on the pipeline's device; "latent" (N, C, h, w) float32, scaled as the UNet sees them.
        seeds: image k's seed: the same call with `seed=seeds[k]` and its prompt alone makes it again (with `latents=`, together
            with those).
        decoded_in_float32: the decoder overflowed in its own dtype and was run again in float32.
    """

    images: Any
    seeds: list[int]
    decoded_in_float32: bool = False


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """(N, 3, H, W) in [0, 1] to N 8-bit RGB pictures."""
    return [Image.fromarray((p * 255).round_().to(torch.uint8).permute(1, 2, 0).cpu().numpy()) for p in pixels]


def of_type(pixels: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    """(N, 3, H, W) in [0, 1] in the form that was asked for: "pil", "np" or "pt"."""
    if output_type == "pil":
        return to_pil(pixels)
    return pixels.permute(0, 2, 3, 1).cpu().numpy() if output_type == "np" else pixels


def make_output(
    vae: FirstStage[Any],
    latents: Tensor,
    output_type: str,
    seeds: list[int],
    *,
    tiling: Tiling,
    finish: Callable[[Tensor], Tensor] = lambda pixels: pixels,
) -> ImageOutput:
    """Decode the final latents (N, C, h, w) and give them the form that was asked for.

    Args:
        vae: the decoder.
        latents: scaled, as the UNet sees them.
        output_type: one of `OUTPUT_TYPES`.
        seeds: of the images.
        tiling: how the decoder's work is divided.
        finish: what is done to the pixels (N, 3, H, W) in [0, 1] before they take that form.
    """
    if output_type == "latent":
        return ImageOutput(latents, seeds)
    pixels, retried = decode(vae, latents, tiling)
    return ImageOutput(of_type(finish(pixels), output_type), seeds, retried)
