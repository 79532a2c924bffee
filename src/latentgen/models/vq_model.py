"""The first stage with a codebook: latents that are rounded to its nearest entries before they are decoded (LDM, section 3.1).

The diffusion model is trained on the latents before that: `encode` gives them, and `decode` rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from latentgen.models.first_stage import FirstStage, FirstStageConfig, make_decoder, make_encoder

AT_ONCE = 2**24
"""Most distances, pairs of a latent and an entry, that are computed at a time: 64 MiB."""


@dataclass(frozen=True, kw_only=True)
class VQConfig(FirstStageConfig):
    """Settings of `VQModel`; names and defaults are those of the folder layout's `config.json`.

    Attributes:
        num_vq_embeddings: entries of the codebook.
        vq_embed_dim: channels of the latents, None for `latent_channels`, which are those inside encoder and decoder.
        scaling_factor: LDM does not scale these latents, and published files leave it out; diffusers takes 0.18215 then, an
            AutoencoderKL's, and draws blurs.
    """

    latent_channels: int = 3
    num_vq_embeddings: int = 256
    vq_embed_dim: int | None = None
    scaling_factor: float = 1.0
    force_upcast: bool = False

    @property
    def embed_dim(self) -> int:
        """Channels of the latents."""
        return self.vq_embed_dim or self.latent_channels


class Codebook(nn.Module):
    """Vectors that latents are rounded to (van den Oord et al. 2017, eq. 1 and 2)."""

    def __init__(self, entries: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(entries, channels)

    def indices(self, z: Tensor) -> Tensor:
        """Number of the nearest entry to each of the latents (B, C, h, w), (B, h, w) int64."""
        entries = self.embedding.weight
        vectors = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        parts = vectors.split(max(1, AT_ONCE // len(entries)))
        nearest = [torch.cdist(part.float(), entries.float()).argmin(dim=1) for part in parts]
        return torch.cat(nearest).view(z.shape[0], *z.shape[2:])

    def forward(self, z: Tensor) -> Tensor:
        """The nearest entry in place of each of the latents, (B, C, h, w)."""
        return self.embedding(self.indices(z)).permute(0, 3, 1, 2)


class VQModel(FirstStage[VQConfig]):
    """Pictures in [-1, 1], (B, 3, H, W), to latents (B, C, H / f, W / f) and back through a codebook."""

    config_class: ClassVar[type] = VQConfig
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "act_fn": ("silu",), "norm_type": ("group",), "lookup_from_codebook": (False,),
    }  # fmt: skip

    def __init__(self, config: VQConfig) -> None:
        super().__init__(config)
        self.encoder = make_encoder(config, config.latent_channels)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.quantize = Codebook(config.num_vq_embeddings, config.embed_dim)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1)
        self.decoder = make_decoder(config)

    def encode(self, pictures: Tensor) -> Tensor:
        """Unscaled latents (B, C, h, w), not yet rounded, of pictures in [-1, 1], (B, 3, H, W)."""
        return self.quant_conv(self.encoder(pictures))

    def decode(self, z: Tensor, *, quantize: bool = True) -> Tensor:
        """Pictures (B, 3, H, W), about in [-1, 1] and not clamped, from unscaled latents (B, C, h, w).

        Args:
            z: latents, as a diffusion model draws them.
            quantize: round them to the codebook first; False decodes them as they are.
        """
        return self.decoder(self.post_quant_conv(self.quantize(z) if quantize else z))

    def forward(self, pictures: Tensor) -> Tensor:
        """Encode, round, decode."""
        return self.decode(self.encode(pictures))
