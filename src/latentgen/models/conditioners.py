"""Small networks that make a condition: of a class, and of a map of labels (LDM, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.models.config import check_fields
from latentgen.models.model import Model


@dataclass(frozen=True, kw_only=True)
class ClassEmbedderConfig:
    """Settings of `ClassEmbedder`.

    Attributes:
        num_classes: classes, the null class included where there is one: 1001 in LDM's model with guidance.
        embed_dim: width of the context.
    """

    num_classes: int = 1000
    embed_dim: int = 512

    def __post_init__(self) -> None:
        check_fields(self)


class ClassEmbedder(Model[ClassEmbedderConfig]):
    """A class as a context of one token, for cross-attention.

    Under classifier-free guidance (Ho and Salimans 2022) the unconditional half sees the null class, which is the last one.
    """

    config_class: ClassVar[type] = ClassEmbedderConfig

    def __init__(self, config: ClassEmbedderConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.num_classes, config.embed_dim)

    @property
    def null_class(self) -> int:
        """The number of the last class, which stands for none in models that were trained with one."""
        return self.config.num_classes - 1

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) int64 labels in [0, num_classes) to (B, 1, embed_dim)."""
        return self.embedding(labels)[:, None]


@dataclass(frozen=True, kw_only=True)
class SpatialRescalerConfig:
    """Settings of `SpatialRescaler`; the defaults are LDM's landscapes, with 182 labels at 4 times a latent's size.

    Attributes:
        n_stages: how often the map is halved.
        in_channels: number of labels.
        out_channels: of the condition.
    """

    n_stages: int = 2
    in_channels: int = 182
    out_channels: int = 3

    def __post_init__(self) -> None:
        check_fields(self)


class SpatialRescaler(Model[SpatialRescalerConfig]):
    """A one-hot map of labels to a small map that is concatenated to the latents."""

    config_class: ClassVar[type] = SpatialRescalerConfig
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"method": ("bilinear",), "multiplier": (0.5,), "bias": (False,)}

    def __init__(self, config: SpatialRescalerConfig) -> None:
        super().__init__(config)
        self.channel_mapper = nn.Conv2d(config.in_channels, config.out_channels, 1, bias=False)

    def forward(self, labels: Tensor) -> Tensor:
        """(B, in_channels, H, W), 1 in the channel of each place's label, to (B, out_channels, H / 2^n, W / 2^n)."""
        for _ in range(self.config.n_stages):
            labels = F.interpolate(labels, scale_factor=0.5, mode="bilinear")
        return self.channel_mapper(labels)
