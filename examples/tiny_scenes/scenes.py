"""Tiny scenes: one or two coloured shapes on a background, with the sentence that describes them.

A `Scene` says everything about a picture in fractions of its width, so it can be drawn at any size. Scenes are drawn
at random by `sample_scene`, painted by `render` and put into words by `caption`. A few (colour, shape) pairs are
withheld from training, to ask afterwards whether a model can put together what it only ever saw apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from shapes import BACKGROUNDS, COLOURS, SHAPES, shape_mask

RADII = {"small": 0.125, "large": 0.205}
"""Mean radius of each size, as a fraction of the width."""

JITTER = 0.005
"""A radius differs from its mean by at most this."""

MARGIN = 0.03
"""Least distance of a thing from the border, as a fraction of the width."""

GAP = 0.04
"""Least distance between two things along the axis of their relation."""

STYLES = ("plain", "striped", "gradient")
TURNS = {"plain": 1, "striped": 4, "gradient": 8}
"""In how many directions, 45 degrees apart, each style may run."""

STRIPES = 7
"""Periods of the stripes across the width."""

INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(INVERSE)

WITHHELD = frozenset(
    {
        ("red", "star"),
        ("orange", "circle"),
        ("yellow", "heart"),
        ("green", "square"),
        ("cyan", "triangle"),
        ("blue", "ring"),
        ("purple", "diamond"),
        ("pink", "cross"),
        ("blue", "heart"),
    }
)
"""(colour, shape) pairs that no training scene holds."""

_EVERY_PAIR = [(colour, shape) for colour in COLOURS for shape in SHAPES]
_PAIRS = {
    "train": [pair for pair in _EVERY_PAIR if pair not in WITHHELD],
    "withheld": [pair for pair in _EVERY_PAIR if pair in WITHHELD],
    "any": _EVERY_PAIR,
}


@dataclass(frozen=True)
class Thing:
    """A coloured shape. `x`, `y` (its centre, y down) and `radius` are fractions of the picture's width."""

    size: str
    colour: str
    shape: str
    x: float
    y: float
    radius: float

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One or two things before a background.

    Attributes:
        things: The things; the relation tells where the first is, seen from the second.
        relation: One of `RELATIONS`, None when there is a single thing.
        background: Name of the background colour.
        style: One of `STYLES`.
        angle: Direction in degrees in which stripes or gradient run, 0 to the right and 90 down. No caption says it.
    """

    things: tuple[Thing, ...]
    relation: str | None
    background: str
    style: str
    angle: int = 0


def sample_scene(rng: np.random.Generator, *, things: int | None = None, pairs: str = "train") -> Scene:
    """Draws a scene at random.

    Args:
        rng: Source of randomness.
        things: 1 or 2; None takes one thing in a quarter of the scenes and two in the others.
        pairs: Which (colour, shape) pairs every thing is taken from: "train", "withheld" or "any".
    """
    count = things or (1 if rng.random() < 0.25 else 2)
    pool = _PAIRS[pairs]
    looks = [pool[i] for i in rng.choice(len(pool), size=count, replace=False)]
    sizes = [_pick(rng, tuple(RADII)) for _ in range(count)]
    radii = [RADII[size] + rng.uniform(-JITTER, JITTER) for size in sizes]
    relation = _pick(rng, RELATIONS) if count == 2 else None
    if relation is None:
        centres = [rng.uniform(MARGIN + radii[0], 1 - MARGIN - radii[0], size=2)]
    else:
        centres = _place_two(rng, radii, relation)
    parts = zip(sizes, looks, centres, radii, strict=True)
    style = _pick(rng, STYLES)
    return Scene(
        things=tuple(Thing(size, *look, float(x), float(y), float(r)) for size, look, (x, y), r in parts),
        relation=relation,
        background=_pick(rng, tuple(BACKGROUNDS)),
        style=style,
        angle=45 * int(rng.integers(TURNS[style])),
    )


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[rng.integers(len(choices))]


def _place_two(rng: np.random.Generator, radii: list[float], relation: str) -> list[np.ndarray]:
    """Centres (x, y) of two things of the given radii so that they stand apart along the relation's axis."""
    swap = relation in ("right of", "below")
    near, far = radii[::-1] if swap else radii
    along = rng.uniform(near + far + GAP, 1 - 2 * MARGIN - near - far)
    across = rng.uniform(-along / 2, along / 2)
    start = rng.uniform(MARGIN + near, 1 - MARGIN - far - along)
    side = rng.uniform(
        MARGIN + max(near, far - across),
        1 - MARGIN - max(near, far + across),
    )
    centres = [np.array([start, side]), np.array([start + along, side + across])]
    if relation in ("above", "below"):
        centres = [centre[::-1] for centre in centres]
    return centres[::-1] if swap else centres


def render(scene: Scene, size: int = 128) -> Image.Image:
    """Paints a scene as an antialiased RGB picture of size x size pixels."""
    picture = Image.fromarray(shade(scene.background, backdrop_amount(scene.style, scene.angle, size)))
    paint_things(picture, scene.things)
    return picture


def paint_things(picture: Image.Image, things: tuple[Thing, ...]) -> None:
    """Paints things into a square RGB picture."""
    size = picture.width
    for thing in things:
        left, top = (int((centre - thing.radius) * size) - 1 for centre in (thing.x, thing.y))
        box = math.ceil(2 * thing.radius * size) + 3
        centre = (thing.x * size - left, thing.y * size - top)
        mask = shape_mask(thing.shape, box, box, centre, thing.radius * size)
        picture.paste(COLOURS[thing.colour], (left, top), mask)


def shade(background: str, amount: np.ndarray) -> np.ndarray:
    """A background, uint8 (size, size, 3); `amount` (size, size) is 0 for its dark shade and 1 for its light one."""
    dark, light = (np.array(colour, dtype=np.float32) for colour in BACKGROUNDS[background])
    return np.rint(dark + (light - dark) * amount[..., None]).clip(0, 255).astype(np.uint8)


def backdrop_amount(style: str, angle: int, size: int, phase: float = 0.0) -> np.ndarray:
    """How light a background is, float (size, size) in 0..1; `phase` moves stripes by that many periods."""
    way = way_along(angle, size)
    if style == "striped":
        wave = np.abs((way * STRIPES + phase) % 1 - 0.5) - 0.25  # 0 on every edge between two stripes
        return np.clip(wave * size / STRIPES + 0.5, 0, 1)
    if style == "gradient":
        return way / (abs(math.cos(math.radians(angle))) + abs(math.sin(math.radians(angle)))) + 0.5
    return np.full((size, size), 0.5, dtype=np.float32)


def way_along(angle: int, size: int) -> np.ndarray:
    """How far every pixel lies from the centre in a direction, (size, size), -0.5..0.5 and more on a diagonal."""
    radians = math.radians(angle)
    x = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    return x[None, :] * math.cos(radians) + x[:, None] * math.sin(radians)


_ONE = (
    "{a} on {bg}",
    "{bg}, {a} in front",
    "{bg} with {a}",
    "{a}, {bg}",
    "there is {a} on {bg}",
    "a picture of {a} on {bg}",
    "one {a_bare} on {bg}",
    "{a}, the background is {look}",
)
_TWO = (
    "{a} {relation} {b} on {bg}",
    "{bg}, {a} {relation} {b}",
    "{bg} with {a} {relation} {b}",
    "{b} {inverse} {a} on {bg}",
    "{b} with {a} {beside} on {bg}",
    "{bg}, {b} with {a} {beside}",
    "there is {a} {relation} {b} on {bg}",
    "a picture of {a} {relation} {b}, {bg}",
    "{a} {relation} {b}, the background is {look}",
)
_RELATION_WORDS = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}
_BESIDE = {"left of": "to its left", "right of": "to its right", "above": "above it", "below": "below it"}


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Puts a scene into words, in one of many phrasings; all of them name every attribute.

    The word "plain" may be left out: a background of which no style is told is plain.
    """
    forms = _TWO if scene.relation else _ONE
    look = f"{scene.style} {scene.background}"
    turn = rng.random()
    if turn < 0.4 and scene.style == "plain":
        look = scene.background
    elif turn > 0.7 and scene.style != "plain":
        look = f"{scene.background} {scene.style}"
    return _phrase(scene, _pick(rng, forms), look)


def describe(scene: Scene) -> str:
    """The canonical caption, such as "a small red circle above a large blue star on a plain grey background"."""
    return _phrase(scene, (_TWO if scene.relation else _ONE)[0], f"{scene.style} {scene.background}")


def _phrase(scene: Scene, form: str, look: str) -> str:
    first, second = scene.things[0], scene.things[-1]
    article = "an" if look[0] == "o" else "a"
    words = {"a": f"a {first}", "a_bare": first, "b": f"a {second}", "look": look, "bg": f"{article} {look} background"}
    if scene.relation:
        inverse = INVERSE[scene.relation]
        words |= {"relation": _RELATION_WORDS[scene.relation], "inverse": _RELATION_WORDS[inverse]}
        words |= {"beside": _BESIDE[scene.relation]}
    return form.format(**words)
