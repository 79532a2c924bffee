"""Tiles for a bound on memory: the largest with which a call stays within it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from typing import Any

import torch

from latentgen.models.first_stage import FirstStage
from latentgen.models.model import Model
from latentgen.models.unet import UNet2DConditionModel
from latentgen.models.unet2d import UNet2DModel
from latentgen.models.vq_model import AT_ONCE, VQModel
from latentgen.runtime.memory import peak_bytes
from latentgen.runtime.tiling import Tiling

LEAST = 16
"""Side of the smallest tiles, in latents."""

OVERLAP = 16
"""Of tiles of 64 latents and more; a quarter of smaller ones."""

SLACK = 3.2
"""What kernels and the allocator take beside tensors: on CPUs whole calls were measured at up to 2.9 times their tensors."""

SPARE = 2**25
"""Bytes that do not depend on the size: copies of weights in another layout, buffers, code."""

LATENTS = 20
"""So many float32 tensors of the latents' shape a run has at most: noise, both halves under guidance, the history."""

TOKENS = 77


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a call has to do.

    Attributes:
        unet, vae: the networks.
        count: of pictures, all of which the UNet sees together and the decoder one by one.
        guided: whether the UNet is asked twice at each step.
        height, width: of the latents.
    """

    unet: UNet2DConditionModel | UNet2DModel
    vae: FirstStage[Any]
    count: int
    guided: bool
    height: int
    width: int

    def tiling(self, memory: int) -> Tiling:
        """The largest tiles with which the call takes at most `memory` bytes above the weights.

        Raises:
            ValueError: if the smallest take more, with the least bound.
        """
        unet, vae = (SLACK * cost for cost in self._costs())
        fixed = SPARE + self._fixed()
        least = int(fixed + max(unet, vae) * min(LEAST**2, self.height * self.width)) + 1
        factor = self.vae.config.factor
        if memory < least:
            raise ValueError(
                f"memory={memory} bytes are too few for {self.count} picture{'s' * (self.count > 1)} of "
                f"{self.width * factor} x {self.height * factor}: in the smallest tiles they need {least}. Give memory={least} "
                "or more, or smaller or fewer pictures."
            )
        sides = [self._side((memory - fixed) / cost) for cost in (unet, vae)]
        overlap = min([OVERLAP, *(side // 4 for side in sides if side is not None)])
        return Tiling(
            unet=sides[0] and sides[0] * factor, vae=sides[1] and sides[1] * factor, overlap=overlap * factor, batch=1
        )

    def _side(self, positions: float) -> int | None:
        """Side of square tiles of so many latents, a multiple of 8; None if all of them fit."""
        if self.height * self.width <= positions:
            return None
        return max(LEAST, isqrt(int(positions)) // 8 * 8)

    def _fixed(self) -> int:
        """Bytes of latents, of the result and of what turning it into a picture takes, and of looking up a codebook."""
        latents = LATENTS * 4 * self.vae.config.embed_dim * self.height * self.width * self.count
        values = 3 * self.height * self.width * self.vae.config.factor**2
        floats = max(2 * self.count, self.count + 3) if self.count > 1 else 4
        distances = 2 * 4 * AT_ONCE if isinstance(self.vae, VQModel) else 0
        return latents + values * (4 * floats + self.count) + distances

    def _costs(self) -> tuple[float, float]:
        """Bytes for each latent that the UNet, and the decoder, work on at a time."""
        pictures = self.count * (2 if self.guided else 1)
        unet: Any = type(self.unet)
        vae: Any = type(self.vae)
        return (
            _unet_cost(unet, self.unet.config, self.unet.dtype, pictures),
            _vae_cost(vae, self.vae.config, self.vae.dtype),
        )


@lru_cache(maxsize=8)
def _unet_cost(cls: type[Any], config: Any, dtype: torch.dtype, pictures: int) -> float:
    unet = _without_values(cls, config, dtype)
    side = 8 * 2 ** (len(config.block_out_channels) - 1)
    with torch.device("meta"):
        x = torch.empty(pictures, config.in_channels, side, side, dtype=dtype)
        label = torch.zeros(1, dtype=torch.long) if config.num_class_embeds else None
        shifts = unet.prepare_time(torch.zeros(1), label)
        context = []
        if cls is UNet2DConditionModel:
            context = unet.prepare_context(torch.empty(pictures, TOKENS, config.cross_attention_dim, dtype=dtype))
    known = [*unet.parameters(), *unet.buffers()]
    return peak_bytes(lambda: unet.denoise(x, shifts, context), known) / side**2


@lru_cache(maxsize=8)
def _vae_cost(cls: type[Any], config: Any, dtype: torch.dtype) -> float:
    vae = _without_values(cls, config, dtype)
    side = 32
    z = torch.empty(1, config.embed_dim, side, side, dtype=dtype, device="meta")
    how = {"quantize": False} if cls is VQModel else {}  # a codebook looks at a number of latents at a time: see _fixed
    return peak_bytes(lambda: vae.decode(z, **how), [*vae.parameters(), *vae.buffers()]) / side**2


def _without_values(cls: type[Model[Any]], config: Any, dtype: torch.dtype) -> Any:
    """A network of the same sizes whose weights take no memory."""
    with torch.device("meta"):
        return cls(config).to(dtype).requires_grad_(False)
