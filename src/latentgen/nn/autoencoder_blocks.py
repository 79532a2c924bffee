"""Encoder and decoder of the first stage: residual blocks at falling and rising resolution (LDM, appendix E.1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.nn.attention import SpatialAttention
from latentgen.nn.resnet import Downsample, ResnetBlock, Upsample

EPS = 1e-6  # of every normalisation in the published autoencoders


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if the level has any."""

    def __init__(self, widths: Sequence[int], groups: int, *, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(a, b, groups=groups, eps=EPS) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList(
            SpatialAttention(width, groups=groups, eps=EPS) if attention else nn.Identity() for width in widths[1:]
        )

    def forward(self, x: Tensor) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x))
        return x


class DownLevel(Level):
    """A level of the encoder, at whose end the resolution is halved unless it is the last."""

    def __init__(self, widths: Sequence[int], groups: int, *, attention: bool, last: bool) -> None:
        super().__init__(widths, groups, attention=attention)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(widths[-1], padding=0)])

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        for downsample in self.downsamplers:
            x = downsample(x)
        return x


class UpLevel(Level):
    """A level of the decoder, at whose end the resolution is doubled unless it is the last."""

    def __init__(self, widths: Sequence[int], groups: int, *, attention: bool, last: bool) -> None:
        super().__init__(widths, groups, attention=attention)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(widths[-1])])

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


class MidBlock(nn.Module):
    """The coarsest level: residual block, attention where there is one, residual block."""

    def __init__(self, channels: int, groups: int, *, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups=groups, eps=EPS) for _ in range(2))
        self.attentions = nn.ModuleList(
            [SpatialAttention(channels, groups=groups, eps=EPS) if attention else nn.Identity()]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    """Picture (B, in_channels, H, W) to features (B, out_channels, H / f, W / f); f is 2 to the number of levels less one.

    Args:
        in_channels: of the picture.
        out_channels: of the features.
        widths: channels of each level, the finest first.
        layers: residual blocks a level.
        groups: of every normalisation.
        attention: whether each level attends.
        mid_attention: whether the coarsest block does.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        *,
        layers: int,
        groups: int,
        attention: Sequence[bool],
        mid_attention: bool,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, (before, width) in enumerate(pairwise((widths[0], *widths))):
            last = level == len(widths) - 1
            self.down_blocks.append(
                DownLevel([before] + [width] * layers, groups, attention=attention[level], last=last)
            )
        self.mid_block = MidBlock(widths[-1], groups, attention=mid_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents (B, in_channels, h, w) to a picture (B, out_channels, h * f, w * f).

    Its arguments are the encoder's, the coarsest level first; a level has one residual block more.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        *,
        layers: int,
        groups: int,
        attention: Sequence[bool],
        mid_attention: bool,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups, attention=mid_attention)
        self.up_blocks = nn.ModuleList()
        for level, (before, width) in enumerate(pairwise((widths[0], *widths))):
            last = level == len(widths) - 1
            self.up_blocks.append(
                UpLevel([before] + [width] * (layers + 1), groups, attention=attention[level], last=last)
            )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            z = block(z)
        return self.conv_out(F.silu(self.conv_norm_out(z)))
