"""A network's work on a large map in overlapping tiles, blended: memory for one tile is enough for any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a pipeline divides its work on large pictures; all in pixels of the result, multiples of the VAE's factor.

    Attributes:
        unet: side of the tiles that the UNet sees, at each step; None shows it the whole picture.
        vae: side of the tiles that the VAE encodes and decodes; None does so whole.
        overlap: how far neighbouring tiles reach into each other; there they are blended.
        batch: how many pictures the VAE takes at a time; None is all of them.
    """

    unet: int | None = None
    vae: int | None = None
    overlap: int = 64
    batch: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("unet", 1), ("vae", 1), ("overlap", 0), ("batch", 1)):
            value = getattr(self, name)
            if value is None and name != "overlap":
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise ValueError(f"Tiling: {name}={value!r} must be a whole number of at least {least}.")
            object.__setattr__(self, name, int(value))
        for name in ("unet", "vae"):
            tile = getattr(self, name)
            if tile is not None and self.overlap > tile // 2:
                raise ValueError(f"Tiling: overlap={self.overlap} must be at most half of {name}={tile}.")

    def check(self, factor: int) -> None:
        """Raise ValueError unless every length is a multiple of `factor`, the pixels that a latent stands for."""
        if self.unet is None and self.vae is None:
            return
        for name in ("unet", "vae", "overlap"):
            value = getattr(self, name)
            if value is not None and value % factor:
                raise ValueError(
                    f"Tiling: {name}={value} must be a multiple of {factor}, the pixels that a latent stands for."
                )


def starts_of_tiles(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin that cover `length`: the fewest that overlap by at least `overlap`, spread evenly."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(k * (length - tile) / (count - 1)) for k in range(count)]


def in_tiles(
    network: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, overlap: int, scale: int = 1, shrink: int = 1
) -> Tensor:
    """`network(x)` for a map (B, C, h * shrink, w * shrink), tile by tile.

    Where tiles overlap, their results are mixed with weights that fall linearly towards each tile's border.

    Args:
        network: (B, C, a * shrink, b * shrink) to (B, C', a * scale, b * scale), for a and b of at most `tile`.
        x: the map.
        tile: side of a tile, in the positions that a and b count.
        overlap: least overlap, in the same; at most tile / 2.
        scale: by how much the network enlarges, as a decoder.
        shrink: by how much it makes smaller, as an encoder.

    Returns:
        (B, C', h * scale, w * scale) float32.
    """
    height, width = x.shape[-2] // shrink, x.shape[-1] // shrink
    rows, columns = starts_of_tiles(height, tile, overlap), starts_of_tiles(width, tile, overlap)
    if len(rows) == len(columns) == 1:
        return network(x).float()
    sides = (min(height, tile), min(width, tile))
    down = _weights(height, rows, sides[0], scale, x.device)
    across = _weights(width, columns, sides[1], scale, x.device)
    result: Tensor | None = None
    for top, down_weight in zip(rows, down, strict=True):
        for left, across_weight in zip(columns, across, strict=True):
            bottom, right = top + sides[0], left + sides[1]
            part = network(x[..., top * shrink : bottom * shrink, left * shrink : right * shrink]).float()
            if result is None:
                result = part.new_zeros(*part.shape[:2], height * scale, width * scale)
            part = part * (down_weight[:, None] * across_weight)
            result[..., top * scale : bottom * scale, left * scale : right * scale] += part
    assert result is not None
    return result


def _weights(length: int, starts: list[int], tile: int, scale: int, device: torch.device) -> list[Tensor]:
    """For each tile along one side its weights, which fall towards its neighbours; at every place those of all tiles sum to 1."""
    size = tile * scale
    at = torch.arange(size, device=device, dtype=torch.float32) + 0.5
    total = torch.zeros(length * scale, device=device, dtype=torch.float32)
    profiles = []
    for k, start in enumerate(starts):
        profile = torch.ones(size, device=device, dtype=torch.float32)
        if k > 0 and (shared := (starts[k - 1] + tile - start) * scale):
            profile = torch.minimum(profile, at / shared)
        if k + 1 < len(starts) and (shared := (start + tile - starts[k + 1]) * scale):
            profile = torch.minimum(profile, (size - at) / shared)
        total[start * scale : start * scale + size] += profile
        profiles.append(profile)
    return [p / total[start * scale : start * scale + size] for p, start in zip(profiles, starts, strict=True)]
