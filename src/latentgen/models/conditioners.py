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
        has_null_class: the last class stands for none; it is what guidance goes away from.
        class_names: of all classes but the null class, in order; None if they have numbers only.
    """

    num_classes: int = 1000
    embed_dim: int = 512
    has_null_class: bool = False
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.classes < 1:
            raise ValueError(
                f"num_classes={self.num_classes} leaves no class beside the null class; it must be at least 2."
            )
        names = self.class_names
        if names is not None and (len(names) != self.classes or len(set(names)) < len(names)):
            raise ValueError(
                f"class_names holds {len(names)} names, {len(set(names))} of them different; there are {self.classes} classes "
                "beside the null class, and each has a name of its own."
            )

    @property
    def classes(self) -> int:
        """How many classes can be asked for."""
        return self.num_classes - self.has_null_class


class ClassEmbedder(Model[ClassEmbedderConfig]):
    """A class as a context of one token, for cross-attention.

    Under classifier-free guidance (Ho and Salimans 2022) the unconditional half sees the null class, which is the last one.
    """

    config_class: ClassVar[type] = ClassEmbedderConfig

    def __init__(self, config: ClassEmbedderConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.num_classes, config.embed_dim)

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
    """A map of labels to a small map that is concatenated to the latents.

    LDM halves the map, one channel for each label, by bilinear interpolation, and then mixes its channels. Both are linear and
    one does not mind the other, so the channels are mixed first here: that is a table of the labels, and takes a fraction of the
    memory.
    """

    config_class: ClassVar[type] = SpatialRescalerConfig
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"method": ("bilinear",), "multiplier": (0.5,), "bias": (False,)}

    def __init__(self, config: SpatialRescalerConfig) -> None:
        super().__init__(config)
        self.channel_mapper = nn.Conv2d(config.in_channels, config.out_channels, 1, bias=False)

    def forward(self, labels: Tensor) -> Tensor:
        """(B, H, W) int64 labels in [0, in_channels) to (B, out_channels, H / 2^n, W / 2^n)."""
        mapped = F.embedding(labels, self.channel_mapper.weight[:, :, 0, 0].T).permute(0, 3, 1, 2)
        for _ in range(self.config.n_stages):
            mapped = F.interpolate(mapped, scale_factor=0.5, mode="bilinear")
        return mapped
