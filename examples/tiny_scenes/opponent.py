"""Colours as the eye compares them: pictures and the palette in opponent colours, and distances there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from shapes import BACKGROUNDS, COLOURS, RGB

OPPONENT = np.array([(0.3, 0.59, 0.11), (0.75, -0.63, -0.12), (-0.26, -0.5, 0.76)], dtype=np.float32)
"""Luma and two weighted colour differences: distances there follow the eye better than in RGB, and as the change is
linear a half-covered pixel still lies half way between its two colours."""


def to_opponent(pixels: np.ndarray) -> np.ndarray:
    """RGB pixels (H, W, 3), 0..255, in opponent colours, float32 (3, H, W)."""
    return np.tensordot(OPPONENT, np.asarray(pixels, dtype=np.float32), axes=(1, 2))


def distance_to_segment(pixels: np.ndarray, dark: np.ndarray, light: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance (H, W) of pixels (3, H, W) to the line between two shades, and where along it, 0 dark and 1 light."""
    way = light - dark
    amount = (way * (pixels - dark)).sum(axis=0) / (way * way).sum()
    foot = dark + way * amount.clip(0, 1)
    return np.linalg.norm(pixels - foot, axis=0), amount


@cache
def palette() -> np.ndarray:
    """The object colours in opponent colours, (8, 3, 1, 1)."""
    return _columns(list(COLOURS.values()))


@cache
def shades() -> dict[str, np.ndarray]:
    """Both shades of every background in opponent colours, (2, 3, 1, 1) each."""
    return {name: _columns(pair) for name, pair in BACKGROUNDS.items()}


def _columns(colours: Sequence[RGB]) -> np.ndarray:
    return (np.array(colours, dtype=np.float32) @ OPPONENT.T)[:, :, None, None]
