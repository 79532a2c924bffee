"""The UNet without a context: unconditional models, and those whose condition is concatenated to the latents (LDM, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from latentgen.models.config import check_depth, check_fields, per_level
from latentgen.models.denoising_unet import DenoisingUNet, MakeResampler, check_unet, timesteps_of
from latentgen.nn.attention import SpatialAttention
from latentgen.nn.resnet import Double, Downsample, Halve, ResnetBlock, Upsample

DOWN_BLOCKS = {"DownBlock2D": False, "AttnDownBlock2D": True, "ResnetDownsampleBlock2D": False}  # name: attends?
UP_BLOCKS = {"UpBlock2D": False, "AttnUpBlock2D": True, "ResnetUpsampleBlock2D": False}
RESAMPLING = ("conv", "resnet")
TIME = ("default", "scale_shift")


@dataclass(frozen=True, kw_only=True)
class UNet2DConfig:
    """Settings of `UNet2DModel`; names and defaults are those of the folder layout's `config.json`.

    Attributes:
        sample_size: height and width of the latents that the model was trained on.
        attention_head_dim: channels of an attention head, one number for all levels or one each (which diffusers does not
            read); null is a single head.
        attn_norm_num_groups: of the normalisation of the middle's attention; null is `norm_num_groups`, which the others have.
            (diffusers leaves it out where it is null and `resnet_time_scale_shift` is "scale_shift"; published models have it.)
        add_attention: whether the middle attends.
        downsample_type, upsample_type: how levels that attend change the resolution: by a convolution, or in a residual block. A
            `ResnetDownsampleBlock2D` or `ResnetUpsampleBlock2D` has the latter in any case.
        resnet_time_scale_shift: "default" adds the timestep's share, "scale_shift" scales by it too.
        num_class_embeds: size of a class embedding that is added to the time embedding.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = ("DownBlock2D", *("AttnDownBlock2D",) * 3)
    up_block_types: tuple[str, ...] = (*("AttnUpBlock2D",) * 3, "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    attention_head_dim: int | tuple[int, ...] | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    num_class_embeds: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_depth(len(self.block_out_channels), self.layers_per_block)
        check_unet(
            self,
            [
                ("down_block_types", self.down_block_types, [*DOWN_BLOCKS]),
                ("up_block_types", self.up_block_types, [*UP_BLOCKS]),
                ("downsample_type", (self.downsample_type,) * len(self.block_out_channels), RESAMPLING),
                ("upsample_type", (self.upsample_type,) * len(self.block_out_channels), RESAMPLING),
                ("resnet_time_scale_shift", (self.resnet_time_scale_shift,) * len(self.block_out_channels), TIME),
            ],
        )
        for channels, size in zip(self.block_out_channels, self.head_sizes, strict=True):
            if channels % size or channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels holds {channels}, which heads of {size} channels (attention_head_dim) and "
                    f"norm_num_groups={self.norm_num_groups} must divide."
                )
        middle, groups = self.block_out_channels[-1], self.attn_norm_num_groups
        if groups and middle % groups:
            raise ValueError(f"attn_norm_num_groups={groups} must divide the middle's {middle} channels.")

    @property
    def head_sizes(self) -> tuple[int, ...]:
        """Channels of an attention head at each level."""
        if self.attention_head_dim is None:
            return self.block_out_channels
        return per_level(self.attention_head_dim, len(self.block_out_channels), "attention_head_dim")


class UNet2DModel(DenoisingUNet[UNet2DConfig]):
    """Latents of (B, in_channels, h, w) and timesteps to (B, out_channels, h, w); a condition is further input channels.

    As in `UNet2DConditionModel`, `prepare_time` and `denoise` are the two halves of a call.
    """

    config_class: ClassVar[type] = UNet2DConfig
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "act_fn": ("silu",), "center_input_sample": (False,), "downsample_padding": (1,), "dropout": (0, 0.0),
        "mid_block_scale_factor": (1, 1.0), "mid_block_type": ("UNetMidBlock2D",), "time_embedding_type": ("positional",),
        "time_embedding_dim": (None,), "class_embed_type": (None,), "num_train_timesteps": (None, 1000),
    }  # fmt: skip

    def __init__(self, config: UNet2DConfig) -> None:
        super().__init__(config)
        widths = config.block_out_channels
        levels = len(widths)
        make_resnet = partial(
            ResnetBlock,
            groups=config.norm_num_groups,
            eps=config.norm_eps,
            time_channels=widths[0] * 4,
            scale_shift=config.resnet_time_scale_shift == "scale_shift",
        )

        def attention(level: int, attends: bool, groups: int | None = None) -> partial[SpatialAttention] | None:
            if not attends:
                return None
            heads, groups = widths[level] // config.head_sizes[level], groups or config.norm_num_groups
            return partial(SpatialAttention, widths[level], groups=groups, eps=config.norm_eps, heads=heads)

        def halving(kind: str) -> MakeResampler:
            if kind == "ResnetDownsampleBlock2D" or (DOWN_BLOCKS[kind] and config.downsample_type == "resnet"):
                return lambda width: make_resnet(width, width, resample=Halve())
            return partial(Downsample, padding=1)

        def doubling(kind: str) -> MakeResampler:
            if kind == "ResnetUpsampleBlock2D" or (UP_BLOCKS[kind] and config.upsample_type == "resnet"):
                return lambda width: make_resnet(width, width, resample=Double())
            return Upsample

        self._build(
            make_resnet,
            [(attention(k, DOWN_BLOCKS[kind]), halving(kind)) for k, kind in enumerate(config.down_block_types)],
            attention(levels - 1, config.add_attention, config.attn_norm_num_groups),
            [
                (attention(levels - 1 - k, UP_BLOCKS[kind]), doubling(kind))
                for k, kind in enumerate(config.up_block_types)
            ],
        )

    def forward(self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """Predict, (B, in_channels, h, w) -> (B, out_channels, h, w).

        Args:
            sample: noisy latents, and whatever is concatenated to them.
            timestep: (B,), or one number for the whole batch.
            class_labels: (B,) integers, for networks with `num_class_embeds`.
        """
        return self.denoise(sample, self.prepare_time(timesteps_of(timestep, sample), class_labels))
