"""What the two kinds of first stage share: the settings of encoder and decoder, and the scale of their latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from latentgen.models.config import check_depth, check_fields, per_level
from latentgen.models.model import Model
from latentgen.nn.autoencoder_blocks import Decoder, Encoder

DOWN_BLOCKS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}  # name: attends?
UP_BLOCKS = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}


@dataclass(frozen=True, kw_only=True)
class FirstStageConfig:
    """Settings of an autoencoder; names and defaults are those of the folder layout's `config.json`.

    Attributes:
        block_out_channels: channels at each resolution; n entries make a factor of 2^(n-1).
        scaling_factor: 1 / std of the training set's latents: brings them to unit variance for the diffusion model.
        force_upcast: a note that the decoder may overflow in float16. Not acted on: a picture that does overflow is
            decoded again in float32, whatever stands here.
        sample_size: height and width that the model was trained on.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] = 32
    scaling_factor: float = 0.18215
    force_upcast: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        levels = len(self.block_out_channels)
        check_depth(levels, self.layers_per_block)
        for name, kinds, known in (
            ("down_block_types", self.down_block_types, DOWN_BLOCKS),
            ("up_block_types", self.up_block_types, UP_BLOCKS),
        ):
            per_level(kinds, levels, name)
            if wrong := [k for k in kinds if k not in known]:
                raise ValueError(f"{name} holds {', '.join(wrong)}; supported are {', '.join(known)}.")
        if wrong_widths := [c for c in self.block_out_channels if c % self.norm_num_groups]:
            raise ValueError(f"block_out_channels holds {wrong_widths}, which norm_num_groups={self.norm_num_groups} "
                             "must divide.")  # fmt: skip

    @property
    def factor(self) -> int:
        """How many pixels a latent's side stands for."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def embed_dim(self) -> int:
        """Channels of the latents."""
        return self.latent_channels

    @property
    def shift(self) -> float:
        """What is taken off the latents before they are scaled."""
        return 0.0


C = TypeVar("C", bound=FirstStageConfig)


class FirstStage(Model[C]):
    """Pictures in [-1, 1], (B, 3, H, W), to latents (B, C, H / f, W / f) and back; H and W are multiples of f."""

    encoder: Encoder

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), about in [-1, 1] and not clamped, from unscaled latents (B, C, h, w)."""
        raise NotImplementedError

    def scale(self, z: Tensor) -> Tensor:
        """Encoder latents to diffusion latents, of about unit variance (LDM, appendix G)."""
        return (z - self.config.shift) * self.config.scaling_factor

    def unscale(self, latents: Tensor) -> Tensor:
        """Diffusion latents to what `decode` takes."""
        return latents / self.config.scaling_factor + self.config.shift


def make_encoder(config: FirstStageConfig, out_channels: int) -> Encoder:
    """The encoder of these settings, with features of `out_channels`."""
    return Encoder(
        config.in_channels,
        out_channels,
        config.block_out_channels,
        attention=[DOWN_BLOCKS[kind] for kind in config.down_block_types],
        **_common(config),
    )


def make_decoder(config: FirstStageConfig) -> Decoder:
    """The decoder of these settings."""
    return Decoder(
        config.latent_channels,
        config.out_channels,
        config.block_out_channels[::-1],
        attention=[UP_BLOCKS[kind] for kind in config.up_block_types],
        **_common(config),
    )


def _common(config: FirstStageConfig) -> dict[str, Any]:
    return {
        "layers": config.layers_per_block,
        "groups": config.norm_num_groups,
        "mid_attention": config.mid_block_add_attention,
    }
