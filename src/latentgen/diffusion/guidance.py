"""Classifier-free guidance (Ho and Salimans 2022) on the network's raw output."""

from __future__ import annotations

from torch import Tensor


def guide(unconditional: Tensor, conditional: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Push the output away from the unconditional one: `u + scale * (c - u)`.

    Args:
        unconditional: (B, C, h, w) output under the empty or negative prompt.
        conditional: (B, C, h, w) output under the prompt.
        scale: 1 gives `conditional`; larger follows the prompt more closely.
        rescale: in [0, 1], how far each image's standard deviation is brought back to that of `conditional`, against
            overexposure (Lin et al. 2024, eq. 15 and 16).
    """
    guided = unconditional + scale * (conditional - unconditional)
    if rescale == 0.0:
        return guided
    dims = tuple(range(1, guided.ndim))
    matched = guided * (conditional.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True))
    return rescale * matched + (1 - rescale) * guided
