"""Finds which shape a patch of colour is, by drawing all of them in its place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import ImageFilter
from shapes import SHAPES, shape_mask

BLURS = (0.0, 1 / 64)
"""Each shape is tried sharp and with a Gaussian blur of this radius, a fraction of the picture's width."""


@dataclass(frozen=True)
class Fit:
    """The best drawing of a patch.

    Attributes:
        shape: Name of the shape.
        agreement: Dice coefficient, 1 if the drawing equals the patch, 0 if they have nothing in common.
        x: Centre in pixels from the left border.
        y: Centre in pixels from the upper border.
        radius: Radius in pixels.
    """

    shape: str
    agreement: float
    x: float
    y: float
    radius: float


def fit_shape(coverage: np.ndarray) -> Fit:
    """Draws every shape with the area and the centroid of a patch and takes the one that agrees best.

    Both survive a blur, which eats the points of a star but moves neither. The patch may be soft for the same reason.

    Args:
        coverage: How much of each pixel the patch covers, float (H, W) in 0..1, not zero everywhere.
    """
    size = coverage.shape[1]
    left, top, window = _crop(coverage, pad=size // 16)
    height, width = window.shape
    area = float(window.sum())
    x = float(window.sum(axis=0) @ (np.arange(width) + 0.5)) / area
    y = float(window.sum(axis=1) @ (np.arange(height) + 0.5)) / area
    fits = []
    for shape in SHAPES:
        unit_area, offset_x, offset_y = _moments(shape)
        radius = math.sqrt(area / unit_area)
        centre = (x - offset_x * radius, y - offset_y * radius)
        drawing = shape_mask(shape, width, height, centre, radius)
        for blur in BLURS:
            drawn = np.asarray(drawing.filter(ImageFilter.GaussianBlur(blur * size)), dtype=np.float32) / 255
            fits.append(Fit(shape, _agreement(window, drawn), left + centre[0], top + centre[1], radius))
    return max(fits, key=lambda fit: fit.agreement)


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    """The Dice coefficient, for soft masks."""
    return float(2 * (a * b).sum() / ((a * a).sum() + (b * b).sum()))


def _crop(coverage: np.ndarray, pad: int) -> tuple[int, int, np.ndarray]:
    """The part (h, w) of an array (H, W) that is not zero, with some room around it, and its left and upper border."""
    rows, columns = np.nonzero(coverage)
    top, left = max(rows.min() - pad, 0), max(columns.min() - pad, 0)
    return int(left), int(top), coverage[top : rows.max() + 1 + pad, left : columns.max() + 1 + pad]


@cache
def _moments(shape: str) -> tuple[float, float, float]:
    """Area and centroid (x, y) of a shape of radius 1."""
    mask = np.asarray(shape_mask(shape, 256, 256, (128, 128), 100), dtype=np.float64) / 255
    place = (np.arange(256) + 0.5 - 128) / 100
    area = mask.sum()
    return area / 100**2, float(mask.sum(axis=0) @ place / area), float(mask.sum(axis=1) @ place / area)
