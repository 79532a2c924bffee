"""Finds the style of a background: which of all plain, striped and gradient ones lies nearest to what is seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from scenes import STRIPES, TURNS, backdrop_amount, way_along

MOST_DEVIATION = 0.2
"""A background that deviates from all styles by more than this, on average, has none; 1 is the distance of its two
shades. Noise and JPEG's blocks stay below; two flat halves are farther from any gradient, random pixels from any stripes."""


@dataclass(frozen=True)
class Backdrop:
    """A style, with what no caption says.

    Attributes:
        style: One of `scenes.STYLES`.
        amount: Where every pixel lies between the dark shade, 0, and the light one, 1, float (size, size).
        deviation: Mean distance of the picture from it.
    """

    style: str
    amount: np.ndarray
    deviation: float


def fit_backdrop(amount: np.ndarray, behind: np.ndarray) -> Backdrop | None:
    """The style that fits best; None where none does.

    Args:
        amount: Where every pixel lies between the dark shade, 0, and the light one, 1, float (size, size).
        behind: Mask (size, size) of the background.
    """
    if not behind.any():
        return None
    size, seen = amount.shape[0], amount[behind]
    fits = []
    for style, drawn in [("plain", np.full((size, size), np.median(seen).clip(0, 1), dtype=np.float32)),
                         ("striped", _stripes(amount, behind)),
                         *(("gradient", gradient) for gradient in _gradients(size))]:  # fmt: skip
        fits.append(Backdrop(style, drawn, float(np.abs(drawn[behind] - seen).mean())))
    best = min(fits, key=lambda fit: fit.deviation)
    return best if best.deviation <= MOST_DEVIATION else None


def _stripes(amount: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Stripes in the direction and at the phase of the strongest wave of their period."""
    size = amount.shape[0]
    swing = amount[behind] - amount[behind].mean()
    strength = {angle: complex(_wave(size, angle)[behind] @ swing) for angle in _angles("striped")}
    angle = max(strength, key=lambda angle: abs(strength[angle]))
    phase = math.atan2(strength[angle].imag, strength[angle].real) / (2 * math.pi)
    return backdrop_amount("striped", angle, size, phase)


def _angles(style: str) -> range:
    return range(0, 45 * TURNS[style], 45)


@cache
def _wave(size: int, angle: int) -> np.ndarray:
    """The complex wave (size, size) with the period of the stripes; its product with light stripes has their phase."""
    return np.exp(-2j * np.pi * STRIPES * way_along(angle, size)).astype(np.complex64)


@cache
def _gradients(size: int) -> list[np.ndarray]:
    return [backdrop_amount("gradient", angle, size) for angle in _angles("gradient")]
