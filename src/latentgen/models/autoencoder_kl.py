"""The first stage: a picture to a small latent and back, with a KL term towards a standard normal (LDM, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.models.config import check_depth, check_fields, per_level
from latentgen.models.model import Model
from latentgen.nn.attention import SpatialAttention
from latentgen.nn.resnet import Downsample, ResnetBlock, Upsample

EPS = 1e-6  # of every normalisation in the published autoencoders


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Settings of `AutoencoderKL`; names and defaults are those of the folder layout's `config.json`.

    Attributes:
        block_out_channels: channels at each resolution; n entries make a factor of 2^(n-1).
        scaling_factor: 1 / std of the training set's latents: brings them to unit variance for the diffusion model.
        shift_factor: mean of the latents, subtracted before scaling.
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
    shift_factor: float | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        levels = len(self.block_out_channels)
        check_depth(levels, self.layers_per_block)
        for name, kinds, known in (
            ("down_block_types", self.down_block_types, "DownEncoderBlock2D"),
            ("up_block_types", self.up_block_types, "UpDecoderBlock2D"),
        ):
            per_level(kinds, levels, name)
            if wrong := [k for k in kinds if k != known]:
                raise ValueError(f"{name} holds {', '.join(wrong)}; supported is {known}.")
        if wrong_widths := [c for c in self.block_out_channels if c % self.norm_num_groups]:
            raise ValueError(f"block_out_channels holds {wrong_widths}, which norm_num_groups={self.norm_num_groups} "
                             "must divide.")  # fmt: skip

    @property
    def factor(self) -> int:
        """How many pixels a latent's side stands for."""
        return int(2 ** (len(self.block_out_channels) - 1))


class Posterior:
    """What the encoder says of a picture: a diagonal Gaussian over latents (Kingma and Welling 2014).

    Attributes:
        mean: (B, C, h, w).
        logvar: (B, C, h, w), clamped to [-30, 20].
    """

    def __init__(self, moments: Tensor) -> None:
        """`moments` is (B, 2C, h, w): means, then log variances."""
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def repeated(self, each: int) -> Posterior:
        """Each picture's for so many latents, one after the other."""
        return Posterior(torch.cat([self.mean, self.logvar], dim=1).repeat_interleave(each, 0))

    def expanded(self, count: int) -> Posterior:
        """One picture's for `count` latents; as it is if there are several."""
        return self.repeated(count) if len(self.mean) == 1 else self

    def sample(self, noise: Tensor) -> Tensor:
        """Latents for standard normal `noise` of the mean's shape."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def mode(self) -> Tensor:
        """The likeliest latents."""
        return self.mean

    def kl(self) -> Tensor:
        """Divergence from the standard normal for each picture, (B,), in nats, summed over the latent."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1.0 - self.logvar).sum(dim=(1, 2, 3))


class Level(nn.Module):
    """Residual blocks at one resolution, then a change of it (or none)."""

    def __init__(self, widths: list[int], groups: int, change: Downsample | Upsample | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(a, b, groups=groups, eps=EPS) for a, b in pairwise(widths))
        if isinstance(change, Downsample):
            self.downsamplers = nn.ModuleList([change])
        elif isinstance(change, Upsample):
            self.upsamplers = nn.ModuleList([change])

    def forward(self, x: Tensor) -> Tensor:
        for layers in self.children():
            for layer in layers:  # type: ignore[attr-defined]
                x = layer(x)
        return x


class MidBlock(nn.Module):
    """The coarsest level: residual block, attention where there is one, residual block."""

    def __init__(self, channels: int, groups: int, *, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups=groups, eps=EPS) for _ in range(2))
        self.attentions = nn.ModuleList(
            [SpatialAttention(channels, groups=groups, eps=EPS) if attention else nn.Identity()]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    """Picture (B, in_channels, H, W) to features (B, 2 * latent_channels, H / f, W / f)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups, layers = config.block_out_channels, config.norm_num_groups, config.layers_per_block
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, (before, width) in enumerate(pairwise((widths[0], *widths))):
            change = Downsample(width, padding=0) if level < len(widths) - 1 else None
            self.down_blocks.append(Level([before] + [width] * layers, groups, change))
        self.mid_block = MidBlock(widths[-1], groups, attention=config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents (B, latent_channels, h, w) to a picture (B, out_channels, h * f, w * f)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups, layers = config.block_out_channels[::-1], config.norm_num_groups, config.layers_per_block
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups, attention=config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList()
        for level, (before, width) in enumerate(pairwise((widths[0], *widths))):
            change = Upsample(width) if level < len(widths) - 1 else None
            self.up_blocks.append(Level([before] + [width] * (layers + 1), groups, change))
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            z = block(z)
        return self.conv_out(F.silu(self.conv_norm_out(z)))


class AutoencoderKL(Model[AutoencoderConfig]):
    """Pictures in [-1, 1], (B, 3, H, W), to latents (B, C, H / f, W / f) and back; H and W are multiples of f."""

    config_class: ClassVar[type] = AutoencoderConfig
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "act_fn": ("silu",), "latents_mean": (None,), "latents_std": (None,),
    }  # fmt: skip

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else nn.Identity()
        self.decoder = Decoder(config)

    def encode(self, pictures: Tensor) -> Posterior:
        """The posterior over unscaled latents of pictures in [-1, 1], (B, 3, H, W)."""
        return Posterior(self.quant_conv(self.encoder(pictures)))

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), about in [-1, 1] and not clamped, from unscaled latents (B, C, h, w)."""
        return self.decoder(self.post_quant_conv(z))

    def scale(self, z: Tensor) -> Tensor:
        """Encoder latents to diffusion latents, of about unit variance (LDM, appendix G)."""
        return (z - (self.config.shift_factor or 0.0)) * self.config.scaling_factor

    def unscale(self, latents: Tensor) -> Tensor:
        """Diffusion latents to what `decode` takes."""
        return latents / self.config.scaling_factor + (self.config.shift_factor or 0.0)

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Posterior]:
        """Encode, draw latents with `noise` (B, C, h, w), decode: what first-stage training runs."""
        posterior = self.encode(pictures)
        return self.decode(posterior.sample(noise)), posterior
