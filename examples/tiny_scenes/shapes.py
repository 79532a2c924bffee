"""What tiny scenes are made of: colours and shapes.

The object colours and the background colours share no name and lie well apart in RGB, so a picture can be read back
without guessing. Every background colour has two shades; stripes and gradients run from one to the other.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (226, 36, 40),
    "orange": (250, 132, 16),
    "yellow": (255, 220, 32),
    "green": (40, 178, 76),
    "cyan": (40, 206, 226),
    "blue": (44, 92, 240),
    "purple": (150, 56, 206),
    "pink": (255, 122, 190),
}
"""Object colours, sRGB 0..255."""

BACKGROUNDS: dict[str, tuple[RGB, RGB]] = {
    "white": ((220, 221, 226), (254, 254, 255)),
    "grey": ((118, 120, 124), (158, 160, 164)),
    "black": ((10, 10, 12), (50, 50, 54)),
    "brown": ((92, 56, 32), (134, 88, 56)),
    "navy": ((14, 20, 68), (40, 52, 112)),
    "olive": ((92, 96, 26), (132, 136, 56)),
    "maroon": ((78, 8, 26), (120, 28, 50)),
    "cream": ((230, 208, 160), (253, 240, 206)),
}
"""Background colours as (dark shade, light shade), sRGB 0..255. A plain background is the mean of the two."""

SUPERSAMPLING = 4


def _circle(radius: float = 1.0) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _star(points: int = 5, inner: float = 0.46) -> np.ndarray:
    angle = np.arange(2 * points) * np.pi / points - np.pi / 2
    radius = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _cross(arm: float = 0.34) -> np.ndarray:
    a, b = arm, 1.0
    return np.array([(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a),
                     (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)])  # fmt: skip


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1)


def _fit(outline: np.ndarray, reach: float) -> np.ndarray:
    """Centres an outline (N, 2) on its bounding box and scales it so that its longer half side is `reach`."""
    low, high = outline.min(axis=0), outline.max(axis=0)
    return (outline - (low + high) / 2) * (2 * reach / (high - low).max())


OUTLINES: dict[str, np.ndarray] = {
    "circle": _circle(0.96),
    "square": _fit(np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]), 0.86),
    "triangle": _fit(np.array([(0, -1), (1, 0.76), (-1, 0.76)]), 1.0),
    "star": _fit(_star(), 1.0),
    "diamond": _fit(np.array([(0, -1), (0.74, 0), (0, 1), (-0.74, 0)]), 1.0),
    "cross": _fit(_cross(), 0.96),
    "ring": _circle(0.98),
    "heart": _fit(_heart(), 0.98),
}
"""Polygons (N, 2) inside the box -1..1, x to the right and y down, each centred on its own bounding box."""

HOLES: dict[str, np.ndarray] = {"ring": _circle(0.54)}
"""Polygons cut out of the outline of the same name."""

SHAPES = tuple(OUTLINES)


def shape_mask(shape: str, width: int, height: int, centre: tuple[float, float], scale: float) -> Image.Image:
    """Draws one shape as an antialiased mask.

    Args:
        shape: One of `SHAPES`.
        width: Width of the mask in pixels.
        height: Height of the mask in pixels.
        centre: (x, y) of the centre in pixels.
        scale: Pixels per unit of the outline, that is the radius of the thing.

    Returns:
        An 8-bit image ("L"), 255 inside and 0 outside.
    """
    fine = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    draw = ImageDraw.Draw(fine)
    for outline, value in ((OUTLINES[shape], 255), (HOLES.get(shape), 0)):
        if outline is not None:
            # The half pixel: PIL names a pixel by its centre, we count from the corner.
            corners = (outline * scale + centre) * SUPERSAMPLING - 0.5
            draw.polygon([tuple(corner) for corner in corners.tolist()], fill=value)
    return fine.reduce(SUPERSAMPLING)
