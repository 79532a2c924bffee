"""The UNet with cross-attention: noisy latents, a timestep and a text to the network's output (LDM, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from latentgen.models.config import check_depth, check_fields, per_level
from latentgen.models.denoising_unet import DenoisingUNet, check_unet, timesteps_of
from latentgen.nn.attention import KeyValue, Transformer2D, TransformerBlock
from latentgen.nn.resnet import Downsample, ResnetBlock, Upsample

DOWN_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}  # name: attends to the condition?
UP_BLOCKS = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Settings of `UNet2DConditionModel`; names and defaults are those of the folder layout's `config.json`.

    Attributes:
        sample_size: height and width of the latents that the model was trained on.
        attention_head_dim: despite its name the number of heads, one for all levels or one each.
        only_cross_attention: on the way down and up; the coarsest level always attends to itself too.
        num_class_embeds: size of a class (or noise level) embedding that is added to the time embedding.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    only_cross_attention: bool | tuple[bool, ...] = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int = 1
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    upcast_attention: bool = False
    num_class_embeds: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        levels = len(self.block_out_channels)
        check_depth(levels, self.layers_per_block, self.transformer_layers_per_block)
        check_unet(
            self,
            [
                ("down_block_types", self.down_block_types, [*DOWN_BLOCKS]),
                ("up_block_types", self.up_block_types, [*UP_BLOCKS]),
            ],
        )
        for channels, heads in zip(
            self.block_out_channels, per_level(self.attention_head_dim, levels, "attention_head_dim"), strict=True
        ):
            if channels % heads or channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels holds {channels}, which {heads} heads (attention_head_dim) and "
                    f"{self.norm_num_groups} groups (norm_num_groups) must divide."
                )
        per_level(self.only_cross_attention, levels, "only_cross_attention")


class UNet2DConditionModel(DenoisingUNet[UNetConfig]):
    """Latents of (B, in_channels, h, w), timesteps and a context of (B, S, cross_attention_dim) to (B, out_channels, h, w).

    h and w may be any size; trained pictures look best near `sample_size`.

    What does not depend on the step is a call of its own, for a sampler to make once:

        context = unet.prepare_context(text_embeddings)
        shifts = unet.prepare_time(all_timesteps)              # per residual block: (n, C, 1, 1)
        output = unet.denoise(latents, [s[i : i + 1] for s in shifts], context)

    `unet(latents, timestep, text_embeddings)` does all three.
    """

    config_class: ClassVar[type] = UNetConfig
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "act_fn": ("silu",), "center_input_sample": (False,), "downsample_padding": (1,), "dual_cross_attention": (False,),
        "mid_block_scale_factor": (1, 1.0), "mid_block_type": ("UNetMidBlock2DCrossAttn",), "dropout": (0, 0.0),
        "mid_block_only_cross_attention": (None, False), "reverse_transformer_layers_per_block": (None,),
        "encoder_hid_dim": (None,), "encoder_hid_dim_type": (None,), "num_attention_heads": (None,),
        "addition_embed_type": (None,), "addition_time_embed_dim": (None,), "addition_embed_type_num_heads": (64,),
        "class_embed_type": (None,), "class_embeddings_concat": (False,), "projection_class_embeddings_input_dim": (None,),
        "resnet_time_scale_shift": ("default",), "resnet_skip_time_act": (False,), "resnet_out_scale_factor": (1, 1.0),
        "time_embedding_type": ("positional",), "time_embedding_dim": (None,), "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,), "time_cond_proj_dim": (None,), "conv_in_kernel": (3,), "conv_out_kernel": (3,),
        "attention_type": ("default",), "cross_attention_norm": (None,),
    }  # fmt: skip

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths = config.block_out_channels
        levels = len(widths)
        heads = per_level(config.attention_head_dim, levels, "attention_head_dim")
        only_cross = per_level(config.only_cross_attention, levels, "only_cross_attention")
        make_resnet = partial(
            ResnetBlock, groups=config.norm_num_groups, eps=config.norm_eps, time_channels=widths[0] * 4
        )

        def transformer(level: int, *, only_cross: bool) -> partial[Transformer2D]:
            return partial(
                Transformer2D,
                widths[level],
                config.cross_attention_dim,
                heads[level],
                layers=config.transformer_layers_per_block,
                groups=config.norm_num_groups,
                linear=config.use_linear_projection,
                only_cross_attention=only_cross,
                upcast=config.upcast_attention,
            )

        def attention(level: int, attends: bool) -> partial[Transformer2D] | None:
            return transformer(level, only_cross=only_cross[level]) if attends else None

        self._build(
            make_resnet,
            [
                (attention(k, DOWN_BLOCKS[kind]), partial(Downsample, padding=1))
                for k, kind in enumerate(config.down_block_types)
            ],
            transformer(levels - 1, only_cross=False),
            [(attention(levels - 1 - k, UP_BLOCKS[kind]), Upsample) for k, kind in enumerate(config.up_block_types)],
        )
        self._cross_attentions = [
            a for m in self.modules() if isinstance(m, TransformerBlock) for a in m.cross_attentions()
        ]
        for index, attention in enumerate(self._cross_attentions):
            attention.index = index

    def prepare_context(self, encoder_hidden_states: Tensor) -> list[KeyValue]:
        """Keys and values of a (B, S, cross_attention_dim) context for each cross-attention layer."""
        return [attention.keys_values(encoder_hidden_states) for attention in self._cross_attentions]

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Predict, (B, in_channels, h, w) -> (B, out_channels, h, w).

        Args:
            sample: noisy latents.
            timestep: (B,), or one number for the whole batch.
            encoder_hidden_states: (B, S, cross_attention_dim).
            class_labels: (B,) integers, for networks with `num_class_embeds`.
        """
        shifts = self.prepare_time(timesteps_of(timestep, sample), class_labels)
        return self.denoise(sample, shifts, self.prepare_context(encoder_hidden_states))
