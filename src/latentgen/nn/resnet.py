"""Residual blocks and changes of resolution, on (B, C, H, W) feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class ResnetBlock(nn.Module):
    """Two normalised 3 x 3 convolutions around a shortcut, with room for what a timestep changes between them.

    Args:
        time_channels: width of the time embedding; None in networks that know no timestep.
        scale_shift: the timestep scales the second normalisation's result and shifts it (Dhariwal and Nichol 2021, eq. 7),
            instead of being added before it.
        resample: applied behind the first normalisation and to the shortcut, in blocks that change the resolution.

    Attributes:
        index: where the UNet keeps this block's shift; -1 in networks that know no timestep.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        time_channels: int | None = None,
        scale_shift: bool = False,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.index = -1
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.resample = NoResample() if resample is None else resample
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        if time_channels is not None:
            self.time_emb_proj = nn.Linear(time_channels, out_channels * (2 if scale_shift else 1))
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.modulate = _scale_and_shift if scale_shift else _shift
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def shift(self, embedding: Tensor) -> Tensor:
        """Project the activated time embedding, (N, time_channels), to this block's share: (N, C or 2 C, 1, 1)."""
        return self.time_emb_proj(embedding)[:, :, None, None]

    def forward(self, x: Tensor, shifts: Sequence[Tensor] | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W); of `shifts`, which holds those of all blocks, it takes its own.

        `size` is what a block that enlarges is to reach.
        """
        h = self.conv1(self.resample(F.silu(self.norm1(x)), size))
        h = self.norm2(h) if shifts is None else self.modulate(h, shifts[self.index], self.norm2)
        h = self.conv2(F.silu(h))
        return self.conv_shortcut(self.resample(x, size)) + h


def _shift(h: Tensor, share: Tensor, norm: nn.Module) -> Tensor:
    return norm(h + share)


def _scale_and_shift(h: Tensor, share: Tensor, norm: nn.Module) -> Tensor:
    scale, shift = share.chunk(2, dim=1)
    return norm(h) * (1 + scale) + shift


class NoResample(nn.Module):
    """Keeps the resolution."""

    def forward(self, x: Tensor, size: tuple[int, int] | None) -> Tensor:
        return x


class Halve(nn.Module):
    """The mean of each 2 x 2 pixels; of an odd side the last is alone."""

    def forward(self, x: Tensor, size: tuple[int, int] | None) -> Tensor:
        return F.avg_pool2d(x, 2, ceil_mode=True)


class Double(nn.Module):
    """Repeat pixels to twice H and W, or to `size`."""

    def forward(self, x: Tensor, size: tuple[int, int] | None) -> Tensor:
        return F.interpolate(x, size=size or (x.shape[-2] * 2, x.shape[-1] * 2), mode="nearest")


class Downsample(nn.Module):
    """Halve H and W with a strided convolution.

    The autoencoder pads at the right and at the bottom only (`padding=0`), the UNet on all sides (`padding=1`).
    """

    def __init__(self, channels: int, *, padding: int) -> None:
        super().__init__()
        self.pad = nn.Identity() if padding else nn.ZeroPad2d((0, 1, 0, 1))
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor, shifts: Sequence[Tensor] | None = None) -> Tensor:
        return self.conv(self.pad(x))


class Upsample(nn.Module):
    """Double H and W (or reach `size`) by repeating pixels, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enlarge = Double()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, shifts: Sequence[Tensor] | None = None, size: tuple[int, int] | None = None) -> Tensor:
        return self.conv(self.enlarge(x, size))
