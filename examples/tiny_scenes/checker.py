"""Reads tiny scenes back from pictures, without a neural network, and compares them with what was asked for.

    reading = read(picture)          # background, style and things, as far as they can be seen
    verdict = check(picture, scene)  # {"count": True, "colour": False, ..., "all": False}

Every pixel goes to the nearest colour of the palette; the background is the colour most pixels have; the connected
regions of the rest are the things. The shape of a thing is the one whose drawing, in the same place and of the same
area, agrees with it best. Then all of it is painted anew: in a clean picture that explains nearly every pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from backdrops import Backdrop, fit_backdrop
from fitting import fit_shape
from opponent import distance_to_segment, palette, shades, to_opponent
from PIL import Image
from regions import connected_regions, grow
from repaint import repaint, unexplained
from scenes import RADII, Scene, Thing
from shapes import BACKGROUNDS, COLOURS

UNCLEAR = "unclear"
"""Stands for a shape that is none of ours, for the colour of something that has several, and the like."""

LEAST_AREA = 0.005
"""Smaller regions are specks, not things; a fraction of the picture. The smallest thing, a small star, has 0.017."""

LEAST_AGREEMENT = 0.93
"""A thing that no shape fits better than this has an unclear shape. Blurred scenes keep above it; most other figures
(a half disc, an upturned triangle, a six-pointed star) stay below, though a hexagon passes for a circle."""

LEAST_SHARE = 0.6
"""A thing, or a background, of which less than this has one colour has an unclear colour."""

SOFT_BORDER = 1 / 48
"""How far beyond its region a thing may still cover pixels in part, as a fraction of the width."""

MOST_UNEXPLAINED = 0.002
"""A clean picture has at most this share of pixels that painting anew does not explain: 32 of 128 x 128. What the
autoencoder does to a scene leaves fewer nearly always; a spot of 12 pixels across has more than three times as many."""

SIZE_BORDER = math.sqrt(RADII["small"] * RADII["large"])
"""Things of a smaller radius are small, the others large."""

LOOKS = ("size", "colour", "shape")


@dataclass(frozen=True)
class Reading:
    """What was seen in a picture.

    Attributes:
        things: The things, the largest first; `radius` is the one that fits the area best.
        relation: Where the first of exactly two things is, seen from the second; else None.
        background: Name of the background colour.
        style: One of the styles of a scene.
        agreements: How well the best drawing fits each thing, 0..1.
        unexplained: The share of pixels that are not as all this would be painted; 1 where it cannot be.
    """

    things: tuple[Thing, ...]
    relation: str | None
    background: str
    style: str
    agreements: tuple[float, ...]
    unexplained: float


def read(picture: Image.Image | np.ndarray, things: int | None = None) -> Reading:
    """Reads a picture.

    Args:
        picture: A PIL image or a uint8 array (H, W, 3).
        things: Keep at most this many things, the largest; None keeps all.
    """
    picture = _square(picture)
    pixels = to_opponent(np.asarray(picture))
    to_colour = np.stack([np.linalg.norm(pixels - colour, axis=0) for colour in palette()])
    to_any_colour = to_colour.min(axis=0)
    background, clear = _read_background(pixels, to_any_colour)
    to_background, amount = distance_to_segment(pixels, *shades()[background])
    backdrop = fit_backdrop(amount, behind=to_background < to_any_colour / 4)
    front = to_any_colour < to_background
    regions = connected_regions(front, least=int(LEAST_AREA * front.size))[:things]
    seen = [_read_thing(region, front, to_colour, to_background) for region in regions]
    found = tuple(thing for thing, _ in seen)
    return Reading(
        things=found,
        relation=relation_between(*found) if len(found) == 2 else None,
        background=background if clear else UNCLEAR,
        style=backdrop.style if backdrop else UNCLEAR,
        agreements=tuple(agreement for _, agreement in seen),
        unexplained=_unexplained(picture, background, backdrop, found) if clear and backdrop else 1.0,
    )


def check(picture: Image.Image | np.ndarray, scene: Scene) -> dict[str, bool]:
    """Tells which attributes of the scene the picture shows.

    Things are matched so that as many attributes as possible agree; "size", "colour" and "shape" must hold for every
    thing of the scene, and a thing that is missing has none of them.

    Returns:
        A truth value for "count", "background", "style", "clean" (nothing is there but what was read), "size",
        "colour", "shape", "relation" (with two things only), and for "all" of them together.
    """
    reading = read(picture)
    verdict = {
        "count": len(reading.things) == len(scene.things),
        "background": reading.background == scene.background,
        "style": reading.style == scene.style,
        "clean": reading.unexplained <= MOST_UNEXPLAINED,
    }
    verdict |= _check_things(reading.things, scene)
    return verdict | {"all": all(verdict.values())}


def relation_between(first: Thing, second: Thing) -> str:
    """Where the first thing is, seen from the second, along the axis on which they lie further apart."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _check_things(seen: tuple[Thing, ...], scene: Scene) -> dict[str, bool]:
    """The part of the verdict that is about things and their relation."""
    best = dict.fromkeys(LOOKS + (("relation",) if scene.relation else ()), False)
    most = -1
    for order in permutations(seen[:4], len(scene.things)):  # more than four are a mess, whichever we pick
        pairs = list(zip(order, scene.things, strict=True))
        same = {look: [getattr(a, look) == getattr(b, look) for a, b in pairs] for look in LOOKS}
        verdict = {look: all(values) for look, values in same.items()}
        if scene.relation:
            verdict["relation"] = relation_between(*order) == scene.relation
        agreeing = 2 * sum(map(sum, same.values())) + verdict.get("relation", False)  # the relation breaks ties
        if agreeing > most:
            best, most = verdict, agreeing
    return best


def _read_background(pixels: np.ndarray, to_any_colour: np.ndarray) -> tuple[str, bool]:
    """The background colour that most pixels (3, H, W) are nearest to, and whether it clearly leads."""
    to_shades = np.stack([distance_to_segment(pixels, *shades)[0] for shades in shades().values()])
    behind = to_shades.min(axis=0) < to_any_colour
    votes = np.bincount(to_shades.argmin(axis=0)[behind], minlength=len(BACKGROUNDS))
    return tuple(BACKGROUNDS)[votes.argmax()], votes.max() > LEAST_SHARE * votes.sum()


def _read_thing(
    region: np.ndarray, front: np.ndarray, to_colour: np.ndarray, to_background: np.ndarray
) -> tuple[Thing, float]:
    """Names colour, shape and size of one region; the number tells how well the shape fits.

    Args:
        region: Mask (H, W) of the thing.
        front: Mask (H, W) of all things.
        to_colour: Distances (8, H, W) to the object colours.
        to_background: Distances (H, W) to the background.
    """
    core = region & (to_background >= np.median(to_background[region]))  # the inside, away from blended edges
    names, counts = np.unique(to_colour[:, core].argmin(axis=0), return_counts=True)
    colour = names[counts.argmax()]
    clear = counts.max() >= LEAST_SHARE * counts.sum()
    width = region.shape[1]
    near = grow(region, steps=math.ceil(SOFT_BORDER * width)) & (region | ~front)
    coverage = to_background / (to_background + to_colour[colour] + 1e-6)
    fit = fit_shape(np.where(near, coverage, 0))
    thing = Thing(
        size="small" if fit.radius / width < SIZE_BORDER else "large",
        colour=tuple(COLOURS)[colour] if clear else UNCLEAR,
        shape=fit.shape if fit.agreement >= LEAST_AGREEMENT else UNCLEAR,
        x=fit.x / width,
        y=fit.y / width,
        radius=fit.radius / width,
    )
    return thing, fit.agreement


def _unexplained(picture: Image.Image, background: str, backdrop: Backdrop, things: tuple[Thing, ...]) -> float:
    """The share of pixels that painting anew does not explain; a thing of unclear shape or colour is not painted."""
    clear = tuple(thing for thing in things if UNCLEAR not in (thing.colour, thing.shape))
    return float(unexplained(picture, repaint(background, backdrop.amount, clear)).mean())


def _square(picture: Image.Image | np.ndarray) -> Image.Image:
    """The picture as PIL's, in RGB."""
    picture = (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).convert("RGB")
    if picture.width != picture.height:
        raise ValueError(f"the picture is {picture.width} x {picture.height}; scenes are square: crop or resize it")
    return picture
