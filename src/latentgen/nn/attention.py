"""Attention over tokens, and the transformer that the UNet runs on its feature maps.

Letters: B pictures, L = H * W tokens, S context tokens, C channels, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one cross-attention layer, each (B, h, S, C / h): they depend on the text alone."""


class Attention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, eq. 1).

    Keys and values are a step of their own (`keys_values`), so that those of a text are computed once and used at
    every denoising step.

    Args:
        channels: C, of the queries and of the result.
        context_channels: width of what is attended to.
        heads: h, must divide C.
        bias: whether the query, key and value projections have one.
        upcast: compute in float32 whatever the input's dtype: some weights overflow float16 here.
    """

    def __init__(self, channels: int, context_channels: int, heads: int, *, bias: bool = False, upcast: bool = False):
        super().__init__()
        self.index = -1  # where the UNet keeps this layer's keys and values; -1: attends to its own input
        self.heads = heads
        self.upcast = upcast
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context_channels, channels, bias=bias)
        self.to_v = nn.Linear(context_channels, channels, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, context: Tensor) -> KeyValue:
        """Project (B, S, context_channels) to keys and values."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def forward(self, x: Tensor, kv: KeyValue) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        q, (k, v) = self._split(self.to_q(x)), kv
        if self.upcast:
            q, k, v = q.float(), k.float(), v.float()
        out = F.scaled_dot_product_attention(q, k, v).to(x.dtype)
        return self.to_out[0](out.transpose(1, 2).flatten(2))


class SpatialAttention(Attention):
    """Attention over all positions of a (B, C, H, W) map, with its own norm and shortcut: in autoencoders, and in UNets that
    have no context (Ho et al. 2020)."""

    def __init__(self, channels: int, *, groups: int, eps: float, heads: int = 1) -> None:
        super().__init__(channels, channels, heads, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps)

    def forward(self, x: Tensor, context: Sequence[KeyValue] = ()) -> Tensor:  # type: ignore[override]
        """(B, C, H, W) -> (B, C, H, W); of the context, which other blocks attend to, it takes nothing."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        out = super().forward(tokens, self.keys_values(tokens))
        return x + out.transpose(1, 2).reshape(x.shape)


class GEGLU(nn.Module):
    """Linear layer with a GELU gate (Shazeer 2020), (..., in) -> (..., out)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, out_channels * 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Widen four times behind a gate and come back, (B, L, C) -> (B, L, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The empty place is where published networks have their dropout layer: names count from it.
        self.net = nn.Sequential(GEGLU(channels, channels * 4), nn.Identity(), nn.Linear(channels * 4, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the condition, feed-forward (Rombach et al. 2022, appendix E.2.1).

    With `only_cross_attention` the first attention looks at the condition too.
    """

    def __init__(
        self, channels: int, context_channels: int, heads: int, *, only_cross_attention: bool, upcast: bool
    ) -> None:
        super().__init__()
        self.only_cross_attention = only_cross_attention
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, context_channels if only_cross_attention else channels, heads, upcast=upcast)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, context_channels, heads, upcast=upcast)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def cross_attentions(self) -> list[Attention]:
        """The layers that attend to the condition, in the order in which data meets them."""
        return [self.attn1, self.attn2] if self.only_cross_attention else [self.attn2]

    def forward(self, x: Tensor, context: Sequence[KeyValue]) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, context[self.attn1.index] if self.only_cross_attention else self.attn1.keys_values(h))
        x = x + self.attn2(self.norm2(x), context[self.attn2.index])
        return x + self.ff(self.norm3(x))


class Transformer2D(nn.Module):
    """Transformer blocks on the positions of a feature map, (B, C, H, W) -> (B, C, H, W), with a shortcut.

    Args:
        linear: project with linear layers (Stable Diffusion 2) instead of 1 x 1 convolutions (LDM, Stable Diffusion 1).
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        heads: int,
        *,
        layers: int,
        groups: int,
        linear: bool,
        only_cross_attention: bool,
        upcast: bool,
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(
                channels, context_channels, heads, only_cross_attention=only_cross_attention, upcast=upcast
            )
            for _ in range(layers)
        )
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def _project(self, layer: nn.Linear | nn.Conv2d, tokens: Tensor) -> Tensor:
        # A 1 x 1 convolution is a linear layer on the channels: one path serves both spellings.
        return F.linear(tokens, layer.weight.flatten(1), layer.bias)

    def forward(self, x: Tensor, context: Sequence[KeyValue]) -> Tensor:
        tokens = self._project(self.proj_in, self.norm(x).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self._project(self.proj_out, tokens).transpose(1, 2).reshape(x.shape)
