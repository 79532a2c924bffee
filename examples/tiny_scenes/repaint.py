"""Paints anew what was read from a picture, and finds what that leaves unexplained: blots, holes, specks, ghosts.

painted = repaint("grey", amount, things)   # as scenes.render would have painted them
unexplained(picture, painted)               # a mask of the pixels that differ
"""

from __future__ import annotations

import numpy as np
from opponent import to_opponent
from PIL import Image, ImageFilter
from scenes import Thing, paint_things, shade

SLACK = 1 / 64
"""Outlines and the edges of stripes may be displaced by so much in x and y, as a fraction of the width."""

SOFTNESS = 1 / 128
"""Edges may be as soft as a Gaussian blur of this radius makes them, as a fraction of the width."""

TOLERANCE = 32.0
"""Colours less far apart than this in opponent colours count as the same. The nearest two backgrounds are 44 apart;
decoders leave faint clouds on black that differ by less, and that one has to look for to see."""

EDGE_TOLERANCE = 0.15
"""Near an edge colours may differ by this share of its contrast more: decoders leave fringes there."""


def repaint(background: str, amount: np.ndarray, things: tuple[Thing, ...]) -> Image.Image:
    """The background in the shades that `amount` (size, size) tells, 0 dark and 1 light, and the things before it."""
    picture = Image.fromarray(shade(background, amount))
    paint_things(picture, things)
    return picture


def unexplained(picture: Image.Image, painted: Image.Image) -> np.ndarray:
    """Mask (H, W) of the pixels that are unlike anything that was painted there or close by, be it sharp or soft.

    So outlines may wobble and edges may blur, while a flat place allows nothing but its own colour.
    """
    reach = round(SLACK * picture.width)
    pixels, sharp = to_opponent(np.asarray(picture)), to_opponent(np.asarray(painted))
    soft = to_opponent(np.asarray(painted.filter(ImageFilter.GaussianBlur(SOFTNESS * picture.width))))
    tolerance = TOLERANCE + EDGE_TOLERANCE * _contrast(painted, reach)
    rows, columns = np.nonzero(np.linalg.norm(pixels - sharp, axis=0) > tolerance)
    drawings = [np.pad(drawing, ((0, 0), (reach, reach), (reach, reach)), mode="edge") for drawing in (sharp, soft)]
    for dy, dx in np.ndindex(2 * reach + 1, 2 * reach + 1):
        for drawing in drawings:
            error = np.linalg.norm(pixels[:, rows, columns] - drawing[:, rows + dy, columns + dx], axis=0)
            left = error > tolerance[rows, columns]
            rows, columns = rows[left], columns[left]
    mask = np.zeros(tolerance.shape, dtype=bool)
    mask[rows, columns] = True
    return mask


def _contrast(painted: Image.Image, reach: int) -> np.ndarray:
    """How much the colours (H, W) vary, in the channel that varies most, at most `reach` rows and columns away."""
    least, most = (painted.filter(kind(2 * reach + 1)) for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
    return (np.asarray(most, dtype=np.float32) - np.asarray(least, dtype=np.float32)).max(axis=2)
