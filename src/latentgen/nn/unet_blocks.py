"""One resolution of the UNet: residual blocks, each followed by a transformer where the level attends to the condition.

`shifts` and `context` are the step-independent inputs that `UNet2DConditionModel` prepares; see there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from latentgen.nn.attention import KeyValue, Transformer2D
from latentgen.nn.resnet import Downsample, ResnetBlock, Upsample

MakeResnet = Callable[[int, int], ResnetBlock]
MakeTransformer = Callable[[], Transformer2D]


class NoAttention(nn.Module):
    """Stands where a level has no transformer."""

    def forward(self, x: Tensor, context: Sequence[KeyValue]) -> Tensor:
        return x


def _attentions(make: MakeTransformer | None, count: int) -> nn.ModuleList:
    return nn.ModuleList(NoAttention() if make is None else make() for _ in range(count))


class DownBlock(nn.Module):
    """(B, in, H, W) -> (B, out, H / 2, W / 2), or the same size at the last level; keeps what the way up will need."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        make_resnet: MakeResnet,
        make_transformer: MakeTransformer | None,
        *,
        downsample: bool,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (layers - 1)
        self.resnets = nn.ModuleList(make_resnet(width, out_channels) for width in widths)
        self.attentions = _attentions(make_transformer, layers)
        self.downsamplers = nn.ModuleList([Downsample(out_channels, padding=1)] if downsample else [])

    def forward(self, x: Tensor, skips: list[Tensor], shifts: Sequence[Tensor], context: Sequence[KeyValue]) -> Tensor:
        """Append every feature map to `skips` and return the last."""
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x, shifts), context)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x


class MidBlock(nn.Module):
    """The coarsest level: residual block, transformer, residual block."""

    def __init__(self, channels: int, make_resnet: MakeResnet, make_transformer: MakeTransformer) -> None:
        super().__init__()
        first, last = make_resnet(channels, channels), make_resnet(channels, channels)
        self.resnets = nn.ModuleList([first, last])
        self.attentions = nn.ModuleList([make_transformer()])

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
        make_transformer: MakeTransformer | None,
        *,
        upsample: bool,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        self.resnets = nn.ModuleList(
            make_resnet(width + skip, out_channels) for width, skip in zip(widths, skip_channels, strict=True)
        )
        self.attentions = _attentions(make_transformer, len(skip_channels))
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if upsample else [])

    def forward(self, x: Tensor, skips: list[Tensor], shifts: Sequence[Tensor], context: Sequence[KeyValue]) -> Tensor:
        """Take maps from the end of `skips`; what is left there tells the size to come back to."""
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(torch.cat([x, skips.pop()], dim=1), shifts), context)
        for upsample in self.upsamplers:
            height, width = skips[-1].shape[-2:]
            x = upsample(x, (height, width))
        return x
