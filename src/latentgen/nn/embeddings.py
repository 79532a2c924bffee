"""Numbers to vectors: what tells the network the timestep."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(timesteps: Tensor, dim: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0) -> Tensor:
    """Sinusoidal embedding (Vaswani et al. 2017, section 3.5), as in DDPM.

    Args:
        timesteps: (N,) numbers, fractional ones too.
        dim: even width of the embedding.
        flip_sin_to_cos: cosines first, as LDM has it.
        freq_shift: subtracted from the number of frequencies where they are spaced; 0 in LDM, 1 in DDPM.

    Returns:
        (N, dim) float32.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / (half - freq_shift)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000) * exponent)[None]
    parts = [angles.cos(), angles.sin()] if flip_sin_to_cos else [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers on the sinusoidal embedding, (N, in_channels) -> (N, out_channels)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))
