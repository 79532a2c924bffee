"""The autoencoder in a call: pictures to latents and back, and again in float32 where its own dtype overflows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latentgen.models.autoencoder_kl import AutoencoderKL, Posterior
from latentgen.models.first_stage import FirstStage
from latentgen.models.vq_model import VQModel
from latentgen.runtime.tiling import Tiling, in_tiles
from latentgen.runtime.warn import warn_user


def encode(vae: AutoencoderKL, pixels: Tensor, tiling: Tiling) -> Posterior:
    """Pixels (N, 3, H, W) in [0, 1] to the posterior over unscaled latents, in float32.

    Args:
        vae: the encoder.
        pixels: sides are multiples of the VAE's factor.
        tiling: how its work is divided.

    Raises:
        FloatingPointError: if it is not finite in float32 either.
    """
    return Posterior(_encode(vae, pixels, tiling))


def encode_codes(vae: VQModel, pixels: Tensor, tiling: Tiling) -> Tensor:
    """Pixels (N, 3, H, W) in [0, 1] to unscaled latents (N, C, h, w), not rounded to the codebook, in float32: as `encode`."""
    return _encode(vae, pixels, tiling)


def _encode(vae: FirstStage[Any], pixels: Tensor, tiling: Tiling) -> Tensor:
    pictures = pixels * 2 - 1
    moments = _moments(vae, pictures, tiling)
    if not bool(moments.isfinite().all()) and vae.dtype != torch.float32:
        warn_user(f"the encoder (vae) overflowed in {vae.dtype} and is run again in float32.")
        moments = _moments(copy.deepcopy(vae, {id(vae.decoder): None}).float(), pictures, tiling)
    if not bool(moments.isfinite().all()):
        raise FloatingPointError("the encoder (vae) gave values that are not finite, in float32: check its weights.")
    return moments


def _moments(vae: Any, pictures: Tensor, tiling: Tiling) -> Tensor:
    def network(part: Tensor) -> Tensor:
        if isinstance(vae, VQModel):
            return vae.encode(part)
        posterior = vae.encode(part)
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    return _in_parts(network, pictures.to(vae.dtype), tiling, vae.config.factor, shrink=vae.config.factor)


def decode(vae: FirstStage[Any], latents: Tensor, tiling: Tiling) -> tuple[Tensor, bool]:
    """Latents (N, C, h, w), scaled, to pixels (N, 3, H, W) float32 in [0, 1].

    Args:
        vae: the decoder.
        latents: as the UNet sees them.
        tiling: how its work is divided.

    Returns:
        The pixels, and whether the decoder had to be run again in float32 for any picture.

    Raises:
        FloatingPointError: if the pixels are not finite in float32 either.
    """
    z = vae.unscale(latents)
    pixels = _decode(vae, z, tiling)
    broken = ~pixels.isfinite().flatten(1).all(dim=1)
    retried = vae.dtype != torch.float32 and bool(broken.any())
    if retried:
        warn_user(f"the decoder (vae) overflowed in {vae.dtype} and is run again in float32.")
        # A copy is cast, for this one use: the component itself stays as it is, for other threads too.
        twin = copy.deepcopy(vae, {id(vae.encoder): None}).float()
        pixels[broken] = _decode(twin, z[broken], tiling)
        broken = ~pixels.isfinite().flatten(1).all(dim=1)
    if bool(broken.any()):
        first = int(broken.int().argmax())
        raise FloatingPointError(
            f"the decoder (vae) gave values that are not finite for image {first}, in float32, for latents of up to "
            f"{float(latents[first].abs().amax()):.3g} (about 4 is usual): check its weights, or what drove the latents there."
        )
    return pixels.div_(2).add_(0.5).clamp_(0, 1), retried  # in place: a large picture is held once


def _decode(vae: FirstStage[Any], z: Tensor, tiling: Tiling) -> Tensor:
    """Unscaled latents to pixels in about [-1, 1], float32, in the decoder's dtype."""
    return _in_parts(vae.decode, z.to(vae.dtype), tiling, vae.config.factor, scale=vae.config.factor)


def _in_parts(
    network: Callable[[Tensor], Tensor], x: Tensor, tiling: Tiling, factor: int, *, scale: int = 1, shrink: int = 1
) -> Tensor:
    """A few pictures at a time, each in tiles, as `tiling` says; float32."""
    results = []
    for part in x.split(tiling.batch or len(x)):
        if tiling.vae is None:
            results.append(network(part).float())
        else:
            tile, overlap = tiling.vae // factor, tiling.overlap // factor
            results.append(in_tiles(network, part, tile=tile, overlap=overlap, scale=scale, shrink=shrink))
    return results[0] if len(results) == 1 else torch.cat(results)
