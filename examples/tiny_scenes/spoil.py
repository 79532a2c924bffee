"""Pictures and captions that nobody would call right, to try the checker on.

picture = SPOILERS["blot"](scene, rng)   # the scene's picture, 128 pixels wide, with something wrong in it
other = wrong_caption(scene, rng)        # the scene with one attribute changed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scenes import RADII, RELATIONS, STYLES, Scene, Thing, backdrop_amount, paint_things, render, sample_scene, shade
from shapes import BACKGROUNDS, COLOURS, RGB, SHAPES, shape_mask

SIZE = 128


def blot(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """A disc of 40 pixels in the plain colour of another background."""
    picture = render(scene, SIZE)
    name = rng.choice([name for name in BACKGROUNDS if name != scene.background])
    _disc(picture, rng.uniform(20, SIZE - 20, 2), 20, _plain(name))
    return picture


def specks(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Twenty dots of radius 3, or ten of radius 4, in all colours."""
    picture = render(scene, SIZE)
    radius, count = (3, 20) if rng.random() < 0.5 else (4, 10)
    for _ in range(count):
        _disc(picture, rng.uniform(radius, SIZE - radius, 2), radius, _any_colour(rng))
    return picture


def two_colours(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """A thing of which 30 to 45 % have another colour."""
    picture = render(scene, SIZE)
    thing, mask = _thing(scene, rng)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:SIZE, :SIZE]
    along = x * np.cos(angle) + y * np.sin(angle)
    inside = np.asarray(mask) > 127
    cut = np.quantile(along[inside], rng.uniform(0.3, 0.45))
    part = np.where(along < cut, np.asarray(mask), 0).astype(np.uint8)
    picture.paste(_any_colour(rng, but=thing.colour), (0, 0), Image.fromarray(part))
    return picture


def spot(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """A spot of 12 pixels well inside a thing: a hole, or of another colour."""
    picture = render(scene, SIZE)
    thing, mask = _thing(scene, rng)
    depth = np.asarray(mask.filter(ImageFilter.GaussianBlur(4)), dtype=np.float32)
    y, x = np.nonzero((depth >= 0.8 * depth.max()) & (np.asarray(mask) > 127))
    k = rng.integers(len(x))
    fill = _plain(scene.background) if rng.random() < 0.5 else _any_colour(rng, but=thing.colour)
    _disc(picture, np.array([x[k], y[k]]), 6, fill)
    return picture


def noise(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Random pixels of both shades for a background."""
    return _before(rng.integers(0, 2, (SIZE, SIZE)).astype(np.float32), scene)


def checkerboard(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Fields of 8 to 24 pixels in both shades for a background."""
    field = rng.integers(8, 25)
    return _before((np.indices((SIZE, SIZE)) // field).sum(axis=0) % 2, scene)


def halves(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Two flat halves, one in each shade, for a background."""
    return _before(backdrop_amount("gradient", int(rng.integers(8)) * 45, SIZE) > 0.5, scene)


def swapped_colours(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Each of two things in the other's colour."""
    first, second = scene.things
    things = (replace(first, colour=second.colour), replace(second, colour=first.colour))
    return render(replace(scene, things=things), SIZE)


SPOILERS: dict[str, Callable[[Scene, np.random.Generator], Image.Image]] = {
    spoiler.__name__: spoiler
    for spoiler in (blot, specks, two_colours, spot, noise, checkerboard, halves, swapped_colours)
}

PASSES_FOR = {"noise": "striped", "checkerboard": "striped", "halves": "gradient"}
"""The style that a spoilt background could most easily be taken for."""


def spoilt(name: str, count: int, rng: np.random.Generator) -> Iterator[tuple[Image.Image, Scene]]:
    """Pictures spoilt in one way, with the scenes that their captions tell of, of all kinds that can be spoilt so."""
    while count:
        scene = sample_scene(rng, things=2 if name == "swapped_colours" else None, pairs="any")
        alike = len({thing.colour for thing in scene.things}) < len(scene.things)
        if scene.style == PASSES_FOR.get(name, scene.style) and not (name == "swapped_colours" and alike):
            yield SPOILERS[name](scene, rng), scene
            count -= 1


def wrong_caption(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one attribute changed to another value."""
    looks = {"colour": COLOURS, "shape": SHAPES, "size": RADII}
    values = looks | {"background": BACKGROUNDS, "style": STYLES, "count": ()}
    if scene.relation:
        values["relation"] = RELATIONS
    attribute = rng.choice(list(values))

    def changed(owner):
        others = [value for value in values[attribute] if value != getattr(owner, attribute)]
        return replace(owner, **{attribute: others[rng.integers(len(others))]})

    if attribute == "count":
        if scene.relation:
            return replace(scene, things=scene.things[:1], relation=None)
        return replace(scene, things=scene.things + sample_scene(rng, things=1).things, relation="above")
    if attribute in looks:
        things = list(scene.things)
        index = rng.integers(len(things))
        things[index] = changed(things[index])
        return replace(scene, things=tuple(things))
    return changed(scene)


def _thing(scene: Scene, rng: np.random.Generator) -> tuple[Thing, Image.Image]:
    """One of the things, and its mask."""
    thing = scene.things[rng.integers(len(scene.things))]
    return thing, shape_mask(thing.shape, SIZE, SIZE, (thing.x * SIZE, thing.y * SIZE), thing.radius * SIZE)


def _before(amount: np.ndarray, scene: Scene) -> Image.Image:
    picture = Image.fromarray(shade(scene.background, amount))
    paint_things(picture, scene.things)
    return picture


def _disc(picture: Image.Image, centre: np.ndarray, radius: float, colour: RGB) -> None:
    """A disc of so many pixels across, 2 * radius, `centre` counted from the corner."""
    left, top = centre - radius - 0.5
    ImageDraw.Draw(picture).ellipse((left, top, left + 2 * radius, top + 2 * radius), fill=colour)


def _any_colour(rng: np.random.Generator, but: str = "") -> RGB:
    return COLOURS[rng.choice([name for name in COLOURS if name != but])]


def _plain(background: str) -> RGB:
    """The colour of a plain background."""
    return tuple(int(value) for value in shade(background, np.full((1, 1), 0.5))[0, 0])
