"""Residual blocks and changes of resolution, on (B, C, H, W) feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class ResnetBlock(nn.Module):
    """Two normalised 3 x 3 convolutions around a shortcut, with room for a per-channel shift between them.

    Attributes:
        index: where the UNet keeps this block's shift; -1 in networks that know no timestep.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, groups: int, eps: float, time_channels: int | None = None
    ) -> None:
        super().__init__()
        self.index = -1
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        if time_channels is not None:
            self.time_emb_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def shift(self, embedding: Tensor) -> Tensor:
        """Project the activated time embedding, (N, time_channels), to this block's shift, (N, C, 1, 1)."""
        return self.time_emb_proj(embedding)[:, :, None, None]

    def forward(self, x: Tensor, shifts: Sequence[Tensor] | None = None) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W); of `shifts`, which holds those of all blocks, it takes its own."""
        h = self.conv1(F.silu(self.norm1(x)))
        if shifts is not None:
            h = h + shifts[self.index]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.conv_shortcut(x) + h


class Downsample(nn.Module):
    """Halve H and W with a strided convolution.

    The autoencoder pads at the right and at the bottom only (`padding=0`), the UNet on all sides (`padding=1`).
    """

    def __init__(self, channels: int, *, padding: int) -> None:
        super().__init__()
        self.pad = nn.Identity() if padding else nn.ZeroPad2d((0, 1, 0, 1))
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pad(x))


class Upsample(nn.Module):
    """Double H and W (or reach `size`) by repeating pixels, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is None:
            size = (x.shape[-2] * 2, x.shape[-1] * 2)
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
