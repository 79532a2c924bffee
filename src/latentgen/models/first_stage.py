"""What the two kinds of first stage share: the settings of encoder and decoder, and the scale of their latents."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from latentgen.models.config import check_depth, check_fields, per_level, read_config
from latentgen.models.model import Model
from latentgen.nn.autoencoder_blocks import Decoder, Encoder
from latentgen.runtime.device import resolve_device, resolve_dtype
from latentgen.weights.checksums import verifying_file, write_sum
from latentgen.weights.compvis.first_stage import first_stage_config, first_stage_table
from latentgen.weights.compvis.single_file import read_first_stage, restore
from latentgen.weights.errors import WeightsError
from latentgen.weights.safetensors_io import write_tensors
from latentgen.weights.stored import StoredTensor
from latentgen.weights.strict import fill

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


NOT_SHOWN = ("scaling_factor", "sample_size", "force_upcast")
"""Settings that a single file of an autoencoder does not say, and that its reader gives or does not need."""

C = TypeVar("C", bound=FirstStageConfig)


class FirstStage(Model[C]):
    """Pictures in [-1, 1], (B, 3, H, W), to latents (B, C, H / f, W / f) and back; H and W are multiples of f."""

    encoder: Encoder

    @classmethod
    def from_single_file(
        cls,
        path: str | os.PathLike[str],
        *,
        scaling_factor: float | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        verify: bool | str = False,
    ) -> Self:
        """Load the autoencoder of a `.safetensors` file in the layout of CompVis and Stability: alone, or in a whole model.

        Args:
            path: of the file.
            scaling_factor: of the latents. None is what a whole model's file says or its family has; for an autoencoder alone
                0.18215 if it is of Stable Diffusion's form (KL, f = 8), else 1.
            device, dtype: as in `from_pretrained`.
            verify: the file's SHA-256, or True for the one that is recorded beside it or by the Hub's cache.

        Raises:
            WeightsError: for a file that cannot be read, or holds no autoencoder of this class.
        """
        place = resolve_device(device)
        kind = resolve_dtype(dtype, place)
        with nullcontext() if verify is False else verifying_file(Path(path), verify):
            part = read_first_stage(path)
        if part.network != cls.__name__:
            raise WeightsError(
                f"{path} holds a {part.network}, not a {cls.__name__}: use {part.network}.from_single_file."
            )
        scale = {} if scaling_factor is None else {"scaling_factor": scaling_factor}
        model = cls.on_meta({**part.config, **scale}, str(path))
        fill(
            model,
            part.tensors,
            dtype=kind,
            device=place,
            source=str(path),
            settings="the settings that its shapes show",
        )
        return model

    def save_single_file(self, path: str | os.PathLike[str], *, checksum: bool = False) -> None:
        """Write the weights in the layout of CompVis and Stability, as a file of an autoencoder alone.

        Args:
            path: ends in ".safetensors".
            checksum: write its SHA-256 beside it, into `<file>.sha256`.

        Raises:
            ValueError: for another ending than ".safetensors", and for an autoencoder that would be read back as another one.
            OSError: if the file cannot be written.
        """
        tensors = {name: StoredTensor.of(tensor) for name, tensor in self.state_dict().items()}
        restored = restore([("", first_stage_table(asdict(self.config)), tensors)])
        _, shown = first_stage_config({name: tuple(tensor.shape) for name, tensor in restored.items()})
        read = asdict(read_config(self.config_class, shown, {}))
        differing = [
            name for name, value in asdict(self.config).items() if name not in NOT_SHOWN and value != read[name]
        ]
        if differing:
            told = ", ".join(f"{name}={getattr(self.config, name)!r}" for name in differing)
            raise ValueError(
                f"a single file does not say {told}: it would be read as another model. Use save_pretrained."
            )
        write_tensors(path, restored)
        if checksum:
            write_sum(Path(path))

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
