"""What all UNets are: a way down, a middle and a way up, with work that does not depend on the latents done beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.models.config import per_level
from latentgen.models.model import Model
from latentgen.nn.attention import KeyValue
from latentgen.nn.embeddings import TimestepEmbedding, timestep_embedding
from latentgen.nn.resnet import Downsample, ResnetBlock, Upsample
from latentgen.nn.unet_blocks import DownBlock, MakeAttention, MidBlock, UpBlock


class UNetSettings(Protocol):
    """The settings that every UNet has."""

    @property
    def in_channels(self) -> int: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def block_out_channels(self) -> tuple[int, ...]: ...
    @property
    def layers_per_block(self) -> int: ...
    @property
    def norm_num_groups(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def flip_sin_to_cos(self) -> bool: ...
    @property
    def freq_shift(self) -> float: ...
    @property
    def num_class_embeds(self) -> int | None: ...


C = TypeVar("C", bound=UNetSettings)

MakeResampler = Callable[[int], Downsample | Upsample | ResnetBlock]


class DenoisingUNet(Model[C]):
    """Noisy latents (B, in_channels, h, w) to the network's output (B, out_channels, h, w); h and w may be any size."""

    def _build(
        self,
        make_resnet: Callable[..., ResnetBlock],
        down: Sequence[tuple[MakeAttention | None, MakeResampler]],
        mid: MakeAttention | None,
        up: Sequence[tuple[MakeAttention | None, MakeResampler]],
    ) -> None:
        """Make the layers, in the order in which data meets them.

        Args:
            make_resnet: `(in_channels, out_channels)` to a block.
            down: for each level, the finest first, its attention, and what halves the resolution at its end.
            mid: the middle's attention.
            up: for each level, the coarsest first, the same, to double it.
        """
        config = self.config
        widths, layers = config.block_out_channels, config.layers_per_block
        levels = len(widths)
        self.time_embedding = TimestepEmbedding(widths[0], widths[0] * 4)
        if config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, widths[0] * 4)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)

        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]
        for level, ((attend, resample), (before, width)) in enumerate(
            zip(down, pairwise((widths[0], *widths)), strict=True)
        ):
            last = level == levels - 1
            change = None if last else resample(width)
            self.down_blocks.append(DownBlock(before, width, layers, make_resnet, attend, downsample=change))  # type: ignore[arg-type]
            skips += [width] * (layers + (not last))

        self.mid_block = MidBlock(widths[-1], make_resnet, mid)

        self.up_blocks = nn.ModuleList()
        before = widths[-1]
        for (attend, resample), level in zip(up, reversed(range(levels)), strict=True):
            taken = [skips.pop() for _ in range(layers + 1)]
            change = resample(widths[level]) if level else None
            self.up_blocks.append(UpBlock(before, widths[level], taken, make_resnet, attend, upsample=change))  # type: ignore[arg-type]
            before = widths[level]

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

        self._resnets = [m for m in self.modules() if isinstance(m, ResnetBlock)]
        for index, resnet in enumerate(self._resnets):
            resnet.index = index

    def prepare_time(self, timesteps: Tensor, class_labels: Tensor | None = None) -> list[Tensor]:
        """What the timesteps add to each residual block.

        Args:
            timesteps: (N,) numbers in [0, num_train_timesteps).
            class_labels: (N,) integers, for networks with `num_class_embeds`.

        Returns:
            For each residual block (N, C, 1, 1).
        """
        embedding = timestep_embedding(
            timesteps,
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        embedding = self.time_embedding(embedding.to(self.dtype))
        if (class_labels is None) != (self.config.num_class_embeds is None):
            raise ValueError(
                f"class_labels {'are missing' if class_labels is None else 'were given'}, but num_class_embeds is "
                f"{self.config.num_class_embeds}: labels go with a class embedding."
            )
        if class_labels is not None:
            embedding = embedding + self.class_embedding(class_labels)
        activated = F.silu(embedding)
        return [resnet.shift(activated) for resnet in self._resnets]

    def denoise(self, sample: Tensor, shifts: Sequence[Tensor], context: Sequence[KeyValue] = ()) -> Tensor:
        """The network itself, (B, in_channels, h, w) -> (B, out_channels, h, w).

        Args:
            sample: noisy latents, in the network's dtype.
            shifts: for each residual block (B, C, 1, 1), or (1, C, 1, 1) for the same timestep everywhere.
            context: for each cross-attention layer its keys and values, of batch B; none in networks without.
        """
        x = self.conv_in(sample)
        skips = [x]
        for down in self.down_blocks:
            x = down(x, skips, shifts, context)
        x = self.mid_block(x, shifts, context)
        for up in self.up_blocks:
            x = up(x, skips, shifts, context)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def timesteps_of(timestep: Tensor | float, sample: Tensor) -> Tensor:
    """A timestep, or one for each latent, as a float32 vector beside `sample`."""
    return torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).reshape(-1)


def check_unet(config: Any, kinds: Sequence[tuple[str, tuple[str, ...], Sequence[str]]]) -> None:
    """Hold the settings that all UNets have to their rules.

    Args:
        config: of a network.
        kinds: names, values and known values of the lists of block types.

    Raises:
        ValueError: naming the field, its value and the rule.
    """
    levels = len(config.block_out_channels)
    frequencies, odd = divmod(config.block_out_channels[0], 2)
    if odd:
        raise ValueError(
            f"block_out_channels begins with {config.block_out_channels[0]}; it is the width of the timestep's embedding "
            "too, half sines and half cosines, and must be even."
        )
    if not 0 <= config.freq_shift < frequencies:
        raise ValueError(
            f"freq_shift={config.freq_shift} does not fit; it must be at least 0 and below {frequencies}, half of the first "
            "of block_out_channels: 0 in Stable Diffusion, 1 in DDPM."
        )
    for name, types, known in kinds:
        per_level(types, levels, name)
        if wrong := [t for t in types if t not in known]:
            raise ValueError(f"{name} holds {', '.join(wrong)}; supported are {', '.join(known)}.")
