"""Random masks, for a model that learns to draw what is under them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

EVERYTHING = 0.1
STROKES = 0.3
"""How often a mask covers the whole picture, and how often it is made of strokes; the others are of boxes."""


def random_mask(random: np.random.Generator, size: int) -> np.ndarray:
    """A mask (size, size) bool, True where the picture is to be drawn anew; never empty.

    One box or two, as programs give them, or one or two strokes of a thick brush, as people paint them (both as in Suvorov et
    al. 2022, section 2.3), or everything, so that the model also knows what to do with nothing to go by.
    """
    kind = random.random()
    if kind < EVERYTHING:
        return np.ones((size, size), bool)
    mask = Image.new("1", (size, size))
    for _ in range(random.integers(1, 3)):
        (_stroke if kind < EVERYTHING + STROKES else _box)(ImageDraw.Draw(mask), random, size)
    return np.array(mask)


def _box(draw: ImageDraw.ImageDraw, random: np.random.Generator, size: int) -> None:
    """A box of 0.15 to 0.8 of each side, wholly inside."""
    width, height = (max(1, round(size * side)) for side in random.uniform(0.15, 0.8, 2))
    left, top = random.integers(0, size - width + 1), random.integers(0, size - height + 1)
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=1)


def _stroke(draw: ImageDraw.ImageDraw, random: np.random.Generator, size: int) -> None:
    """A crooked line through two to five points, 0.05 to 0.25 of the side wide, with round ends and corners."""
    points = random.uniform(0, size, (random.integers(2, 6), 2))
    width = max(1, round(size * random.uniform(0.05, 0.25)))
    draw.line([tuple(point) for point in points], fill=1, width=width)
    for x, y in points:
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=1)
