"""One resolution of a UNet: residual blocks, each followed by attention where the level has any.

`shifts` and `context` are the step-independent inputs that `UNet2DConditionModel` prepares; see there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from latentgen.nn.attention import KeyValue, SpatialAttention, Transformer2D
from latentgen.nn.resnet import Downsample, ResnetBlock, Upsample

MakeResnet = Callable[[int, int], ResnetBlock]
MakeAttention = Callable[[], Transformer2D | SpatialAttention]


class NoAttention(nn.Module):
    """Stands where a level does not attend."""

    def forward(self, x: Tensor, context: Sequence[KeyValue]) -> Tensor:
        return x


def _attentions(make: MakeAttention | None, count: int) -> nn.ModuleList:
    return nn.ModuleList(NoAttention() if make is None else make() for _ in range(count))


class DownBlock(nn.Module):
    """(B, in, H, W) -> (B, out, H / 2, W / 2), or the same size at the last level; keeps what the way up will need."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        make_resnet: MakeResnet,
        make_attention: MakeAttention | None,
        *,
        downsample: Downsample | ResnetBlock | None,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (layers - 1)
        self.resnets = nn.ModuleList(make_resnet(width, out_channels) for width in widths)
        self.attentions = _attentions(make_attention, layers)
        self.downsamplers = nn.ModuleList([] if downsample is None else [downsample])

    def forward(self, x: Tensor, skips: list[Tensor], shifts: Sequence[Tensor], context: Sequence[KeyValue]) -> Tensor:
        """Append every feature map to `skips` and return the last."""
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x, shifts), context)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x, shifts)
            skips.append(x)
        return x


class MidBlock(nn.Module):
    """The coarsest level: residual block, attention where there is one, residual block."""

    def __init__(self, channels: int, make_resnet: MakeResnet, make_attention: MakeAttention | None) -> None:
        super().__init__()
        first, last = make_resnet(channels, channels), make_resnet(channels, channels)
        self.resnets = nn.ModuleList([first, last])
        self.attentions = _attentions(make_attention, 1)

    def forward(self, x: Tensor, shifts: Sequence[Tensor], context: Sequence[KeyValue]) -> Tensor:
        first, last = self.resnets
        x = self.attentions[0](first(x, shifts), context)
        return last(x, shifts)


class UpBlock(nn.Module):
    """(B, in, H, W) -> (B, out, 2H, 2W), or the same size at the last level; each block takes one kept map with it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        skip_channels: Sequence[int],
        make_resnet: MakeResnet,
        make_attention: MakeAttention | None,
        *,
        upsample: Upsample | ResnetBlock | None,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        self.resnets = nn.ModuleList(
            make_resnet(width + skip, out_channels) for width, skip in zip(widths, skip_channels, strict=True)
        )
        self.attentions = _attentions(make_attention, len(skip_channels))
        self.upsamplers = nn.ModuleList([] if upsample is None else [upsample])

    def forward(self, x: Tensor, skips: list[Tensor], shifts: Sequence[Tensor], context: Sequence[KeyValue]) -> Tensor:
        """Take maps from the end of `skips`; what is left there tells the size to come back to."""
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(torch.cat([x, skips.pop()], dim=1), shifts), context)
        for upsample in self.upsamplers:
            height, width = skips[-1].shape[-2:]
            x = upsample(x, shifts, (height, width))
        return x
