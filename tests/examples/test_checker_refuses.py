"""Tests that the checker refuses what is spoilt, and forgives what a decoder does to a picture."""

from dataclasses import replace

import numpy as np
import pytest
from backdrops import fit_backdrop
from checker import MOST_UNEXPLAINED, check, read
from measure_checker import measure
from PIL import Image, ImageDraw
from repaint import repaint, unexplained
from scenes import Scene, Thing, backdrop_amount, render
from shapes import BACKGROUNDS, COLOURS
from spoil import SPOILERS

CIRCLE = Thing("large", "red", "circle", 0.35, 0.5, 0.205)
STAR = Thing("small", "blue", "star", 0.8, 0.5, 0.125)
BEHIND = np.ones((128, 128), dtype=bool)


@pytest.mark.parametrize("name", SPOILERS)
@pytest.mark.parametrize("count", [12, pytest.param(250, marks=pytest.mark.slow)])
def test_spoilt_pictures_are_refused(name, count):
    assert measure(name, count) >= 0.99


@pytest.mark.parametrize("count", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_renders_through_the_autoencoder_are_accepted(count):
    assert measure("autoencoder", count) >= 0.96


@pytest.mark.parametrize("style", ["plain", "striped", "gradient"])
@pytest.mark.parametrize("other", [name for name in BACKGROUNDS if name != "grey"])
def test_a_disc_in_any_other_background_colour_is_a_blot(other, style):
    scene = Scene((CIRCLE,), None, "grey", style)
    picture = render(scene)
    assert all(check(picture, scene).values())
    colour = tuple(int(value) for value in np.mean(BACKGROUNDS[other], axis=0))
    ImageDraw.Draw(picture).ellipse((80, 10, 119, 49), fill=colour)
    verdict = check(picture, scene)
    assert not verdict["clean"]
    assert not verdict["all"]


@pytest.mark.parametrize("second", [STAR, Thing("large", "blue", "circle", 0.76, 0.5, 0.205)], ids=str)
def test_two_things_with_their_colours_swapped_are_refused(second):
    scene = Scene((CIRCLE, second), "left of", "white", "plain")
    swapped = replace(scene, things=(replace(CIRCLE, colour="blue"), replace(second, colour="red")))
    assert check(render(swapped), swapped)["all"]
    verdict = check(render(swapped), scene)
    assert verdict["clean"]
    assert not verdict["all"]


def test_a_thing_of_unclear_shape_is_not_clean():
    picture = render(Scene((), None, "white", "plain"))
    ImageDraw.Draw(picture).rectangle((20, 20, 110, 50), fill=COLOURS["red"])
    reading = read(picture)
    assert reading.things[0].shape == "unclear"
    assert reading.unexplained == pytest.approx(91 * 31 / 128**2, rel=0.2)


def test_what_has_no_style_is_not_clean():
    reading = read(
        Image.fromarray(np.random.default_rng(0).integers(0, 2, (64, 64, 1), dtype=np.uint8).repeat(3, 2) * 40)
    )
    assert reading.style == "unclear"
    assert reading.unexplained == 1 > MOST_UNEXPLAINED


def test_edges_may_be_soft_and_displaced_but_flat_places_may_not_change():
    amount = backdrop_amount("striped", 45, 128)
    painted = repaint("navy", amount, (CIRCLE, STAR))
    assert np.array_equal(painted, render(Scene((CIRCLE, STAR), "left of", "navy", "striped", 45)))
    for offset, few in ((0.0, True), (1.5, True), (6.0, False)):
        moved = tuple(replace(thing, x=thing.x + offset / 128) for thing in (CIRCLE, STAR))
        share = unexplained(repaint("navy", amount, moved), painted).mean()
        assert bool(share <= MOST_UNEXPLAINED) is few
    dot = painted.copy()
    ImageDraw.Draw(dot).rectangle((40, 60, 45, 65), fill=COLOURS["orange"])
    mask = np.zeros((128, 128), dtype=bool)
    mask[60:66, 40:46] = True
    assert np.array_equal(unexplained(dot, painted), mask)


@pytest.mark.parametrize(
    ("colour", "fringe"), [((226, 90, 70), False), (COLOURS["orange"], True), (COLOURS["pink"], True)]
)
def test_a_fringe_may_be_a_little_off_in_colour_but_not_another_colour(colour, fringe):
    painted = render(Scene((CIRCLE,), None, "navy", "plain"))
    amount = np.full((128, 128), 0.5)
    rim = np.asarray(render(Scene((replace(CIRCLE, radius=0.203),), None, "navy", "plain")))
    core = np.asarray(repaint("navy", amount, (replace(CIRCLE, radius=0.187),)))
    picture = np.asarray(painted).copy()
    picture[(rim == COLOURS["red"]).all(axis=2) & (core != COLOURS["red"]).any(axis=2)] = colour
    assert bool(unexplained(Image.fromarray(picture), painted).mean() > MOST_UNEXPLAINED) is fringe


@pytest.mark.parametrize(
    ("style", "angle", "phase"),
    [("plain", 0, 0.0)]
    + [("striped", angle, phase) for angle in (0, 45, 90, 135) for phase in (0.0, 0.3)]
    + [("gradient", angle, 0.0) for angle in range(0, 360, 45)],
)
def test_backdrop_is_found(style, angle, phase):
    amount = backdrop_amount(style, angle, 128, phase)
    behind = BEHIND.copy()
    behind[30:70, 50:90] = False  # a thing stands there
    fit = fit_backdrop(np.where(behind, amount, 5.0), behind)
    assert fit.style == style
    assert np.abs(fit.amount - amount).mean() < 0.03


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("field", [1, 8, 16, 24])
def test_checkerboards_and_halves_have_no_style(field):
    assert fit_backdrop((np.indices((128, 128)) // field).sum(axis=0) % 2 * 1.0, BEHIND) is None
    assert fit_backdrop((backdrop_amount("gradient", 45, 128) > 0.5) * 1.0, BEHIND) is None
    assert fit_backdrop(np.zeros((128, 128)), ~BEHIND) is None


def test_half_a_period_on_stripes_are_the_other_way_round():
    stripes, moved = (backdrop_amount("striped", 45, 128, phase) for phase in (0.0, 0.5))
    assert np.allclose(stripes, 1 - moved, atol=1e-3)


def test_a_picture_that_is_not_square_is_an_error():
    with pytest.raises(ValueError, match="the picture is 64 x 32; scenes are square"):
        read(Image.new("RGB", (64, 32)))
