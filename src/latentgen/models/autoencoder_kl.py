"""The first stage: a picture to a small latent and back, with a KL term towards a standard normal (LDM, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from latentgen.models.first_stage import FirstStage, FirstStageConfig, make_decoder, make_encoder


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(FirstStageConfig):
    """Settings of `AutoencoderKL`; names and defaults are those of the folder layout's `config.json`.

    Attributes:
        shift_factor: mean of the latents, subtracted before scaling.
        use_quant_conv, use_post_quant_conv: whether a 1 x 1 convolution follows the encoder, and one precedes the decoder.
    """

    shift_factor: float | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    @property
    def shift(self) -> float:
        """What is taken off the latents before they are scaled."""
        return self.shift_factor or 0.0


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


class AutoencoderKL(FirstStage[AutoencoderConfig]):
    """Pictures in [-1, 1], (B, 3, H, W), to latents (B, C, H / f, W / f) and back; H and W are multiples of f."""

    config_class: ClassVar[type] = AutoencoderConfig
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "act_fn": ("silu",), "latents_mean": (None,), "latents_std": (None,),
    }  # fmt: skip

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        channels = config.latent_channels
        self.encoder = make_encoder(config, 2 * channels)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else nn.Identity()
        self.decoder = make_decoder(config)

    def encode(self, pictures: Tensor) -> Posterior:
        """The posterior over unscaled latents of pictures in [-1, 1], (B, 3, H, W)."""
        return Posterior(self.quant_conv(self.encoder(pictures)))

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), about in [-1, 1] and not clamped, from unscaled latents (B, C, h, w)."""
        return self.decoder(self.post_quant_conv(z))

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Posterior]:
        """Encode, draw latents with `noise` (B, C, h, w), decode: what first-stage training runs."""
        posterior = self.encode(pictures)
        return self.decode(posterior.sample(noise)), posterior
