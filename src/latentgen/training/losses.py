"""What the first stage minimises. Terms are a sum of named parts: a further one (perceptual, adversarial) is one more entry."""

from __future__ import annotations

import torch
from torch import Tensor

from latentgen.models.autoencoder_kl import Posterior


def first_stage_loss(
    pictures: Tensor, reconstructions: Tensor, posterior: Posterior, *, kl_weight: float
) -> dict[str, Tensor]:
    """The weighted parts of the first stage's loss (LDM, appendix G), whose sum is minimised.

    Args:
        pictures: (B, 3, H, W) in [-1, 1].
        reconstructions: (B, 3, H, W).
        posterior: what the encoder said of `pictures`.
        kl_weight: of the divergence.

    Returns:
        "l1", the mean absolute error, and "kl", the weighted divergence in nats per value of the picture.
    """
    per_value = pictures[0].numel()
    # In float32: under mixed precision the posterior has too few digits for the differences in its divergence.
    posterior = Posterior(torch.cat([posterior.mean, posterior.logvar], dim=1).float())
    return {
        "l1": (pictures - reconstructions).abs().mean(),
        "kl": kl_weight * posterior.kl().mean() / per_value,
    }
