"""What a pipeline returns, and how decoded latents become pictures."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.runtime.warn import warn_user

OutputType = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES: tuple[OutputType, ...] = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class ImageOutput:
    """The result of a call.

    Attributes:
        images: for output_type "pil" a list of N pictures; "np" (N, H, W, 3) float32 in [0, 1]; "pt" (N, 3, H, W)
            float32 in [0, 1] on the pipeline's device; "latent" (N, C, h, w) float32, scaled as the UNet sees them.
        seeds: image k's seed: the same call with `seed=seeds[k]` and its prompt alone makes it again.
        decoded_in_float32: the decoder overflowed in its own dtype and was run again in float32.
    """

    images: Any
    seeds: list[int]
    decoded_in_float32: bool = False


def decode(vae: AutoencoderKL, latents: Tensor) -> tuple[Tensor, bool]:
    """Latents (N, C, h, w), scaled, to pixels (N, 3, H, W) float32 in [0, 1].

    Returns:
        The pixels, and whether the decoder had to be run again in float32 for any picture.

    Raises:
        FloatingPointError: if the pixels are not finite in float32 either.
    """
    z = vae.unscale(latents)
    pixels = vae.decode(z.to(vae.dtype)).float()
    broken = ~pixels.isfinite().flatten(1).all(dim=1)
    retried = vae.dtype != torch.float32 and bool(broken.any())
    if retried:
        warn_user(f"the decoder (vae) overflowed in {vae.dtype} and is run again in float32.")
        # A copy is cast, for this one use: the component itself stays as it is, for other threads too.
        twin = copy.deepcopy(vae, {id(vae.encoder): None}).float()
        pixels[broken] = twin.decode(z[broken].float())
        broken = ~pixels.isfinite().flatten(1).all(dim=1)
    if bool(broken.any()):
        first = int(broken.int().argmax())
        raise FloatingPointError(
            f"the decoder (vae) gave values that are not finite for image {first}, in float32, for latents of up to "
            f"{float(latents[first].abs().amax()):.3g} (about 4 is usual): check its weights, or what drove the latents there."
        )
    return (pixels / 2 + 0.5).clamp(0, 1), retried


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """(N, 3, H, W) in [0, 1] to N 8-bit RGB pictures."""
    array = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in array]


def make_output(vae: AutoencoderKL, latents: Tensor, output_type: str, seeds: list[int]) -> ImageOutput:
    """Decode the final latents (N, C, h, w) and give them the form that was asked for."""
    if output_type == "latent":
        return ImageOutput(latents, seeds)
    pixels, retried = decode(vae, latents)
    images: list[Image.Image] | np.ndarray | Tensor = pixels
    if output_type == "pil":
        images = to_pil(pixels)
    elif output_type == "np":
        images = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return ImageOutput(images, seeds, retried)
