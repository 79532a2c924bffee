"""Tests of the tiny scenes: what is drawn is what is said, and the checker can tell."""

import io
import json
import time
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from checker import LOOKS, check, read, relation_between
from fitting import fit_shape
from make_dataset import make_dataset, make_example
from PIL import Image, ImageFilter
from regions import connected_regions, grow
from scenes import (
    GAP,
    JITTER,
    MARGIN,
    RADII,
    RELATIONS,
    STYLES,
    WITHHELD,
    Scene,
    Thing,
    caption,
    describe,
    render,
    sample_scene,
)
from shapes import BACKGROUNDS, COLOURS, SHAPES, shape_mask
from spoil import wrong_caption


def few_or_many(few: int, many: int = 2000) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.slow)])


def scenes(count: int, seed: int = 0, **options) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, **options) for _ in range(count)]


def degrade(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """What an autoencoder might do: blur (1 px of 128), noise, a colour cast and the blocks of JPEG."""
    blurred = picture.filter(ImageFilter.GaussianBlur(picture.width / 128))
    noise = rng.normal(0, 6, (picture.height, picture.width, 3)) + rng.uniform(-6, 6, 3)
    noisy = Image.fromarray(np.clip(np.asarray(blurred) + noise, 0, 255).astype(np.uint8))
    file = io.BytesIO()
    noisy.save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


def right_share(sample: list[Scene], draw) -> float:
    return float(np.mean([check(draw(scene), scene)["all"] for scene in sample]))


def test_withheld_pairs_are_spread():
    assert len(WITHHELD) == 9
    assert {colour for colour, _ in WITHHELD} == set(COLOURS)
    assert {shape for _, shape in WITHHELD} == set(SHAPES)
    assert max(Counter(part for pair in WITHHELD for part in pair).values()) == 2


@few_or_many(1000, 20_000)
def test_pairs_come_from_where_they_should(count):
    def pairs(**options):
        return {(thing.colour, thing.shape) for scene in scenes(count, **options) for thing in scene.things}

    assert not pairs() & WITHHELD
    assert pairs(pairs="withheld") == WITHHELD
    assert pairs(pairs="any") & WITHHELD
    assert len(pairs()) == 64 - 9


@few_or_many(1000, 20_000)
def test_things_lie_inside_and_apart(count):
    for scene in scenes(count, pairs="any"):
        for thing in scene.things:
            reach = thing.radius + MARGIN - 1e-9
            assert reach <= min(thing.x, thing.y)
            assert max(thing.x, thing.y) <= 1 - reach
            assert abs(thing.radius - RADII[thing.size]) <= JITTER
        for a, b in combinations(scene.things, 2):
            assert (a.colour, a.shape) != (b.colour, b.shape)
            assert relation_between(a, b) == scene.relation
            near, far = sorted((abs(a.x - b.x), abs(a.y - b.y)))
            assert far >= a.radius + b.radius + GAP - 1e-9
            assert near <= far / 2 + 1e-9


def test_mix_of_scenes():
    sample = scenes(2000)
    assert np.mean([len(scene.things) == 1 for scene in sample]) == pytest.approx(0.25, abs=0.04)
    assert {scene.relation for scene in sample} == {None, *RELATIONS}
    assert {(scene.background, scene.style) for scene in sample} == {(b, s) for b in BACKGROUNDS for s in STYLES}
    assert all(len(scene.things) == 2 for scene in scenes(50, things=2))
    assert all(len(scene.things) == 1 for scene in scenes(50, things=1))


def test_colour_names_and_values_are_distinct():
    assert not set(COLOURS) & set(BACKGROUNDS)
    values = [*COLOURS.values(), *(np.mean(shades, axis=0) for shades in BACKGROUNDS.values())]
    assert min(np.linalg.norm(np.subtract(a, b)) for a, b in combinations(values, 2)) > 40


def test_captions_name_everything():
    rng = np.random.default_rng(0)
    for scene in scenes(1000, pairs="any"):
        for text in (caption(scene, rng), describe(scene)):
            words = text.replace(",", "").split()
            assert text == text.lower()
            assert text.isascii()
            assert len(words) <= 28
            assert scene.background in words
            assert "background" in words
            assert scene.style in words or scene.style == "plain"
            assert all(str(thing) in text for thing in scene.things)
            assert bool(scene.relation) == bool({"left", "right", "above", "below"} & set(words))


def test_captions_vary_and_may_leave_out_plain():
    rng = np.random.default_rng(0)
    one = Scene((Thing("small", "red", "circle", 0.5, 0.5, 0.125),), None, "grey", "plain")
    other = Thing("large", "blue", "star", 0.7, 0.5, 0.205)
    two = Scene((replace(one.things[0], x=0.2), other), "left of", "olive", "striped")
    for scene in (one, two):
        texts = {caption(scene, rng) for _ in range(400)}
        assert len({text.replace("plain ", "") for text in texts}) >= 6
        assert len({"plain" in text for text in texts}) == (2 if scene is one else 1)
    assert "a large blue star with a small red circle to its left on an olive striped background" in texts
    assert "a large blue star to the right of a small red circle on a striped olive background" in texts
    assert describe(one) == "a small red circle on a plain grey background"
    assert describe(two) == "a small red circle to the left of a large blue star on a striped olive background"


def test_dataset_depends_on_seed_and_index_alone(tmp_path):
    for name, count, workers in (("a", 1003, 2), ("b", 1001, 1)):
        make_dataset(tmp_path / name, count=count, size=16, seed=5, workers=workers)
    lines, shorter = ((tmp_path / name / "train/metadata.jsonl").read_text().splitlines() for name in "ab")
    assert len(lines) == 1003
    assert lines[:1001] == shorter
    for index in (0, 999, 1000):
        entry = json.loads(lines[index])
        assert entry["file_name"] == f"{index // 1000:05d}/{index:06d}.png"
        files = [tmp_path / name / "train" / entry["file_name"] for name in "ab"]
        assert files[0].read_bytes() == files[1].read_bytes()
        picture, said = make_example(5, index, 16)
        assert entry == {"file_name": entry["file_name"], **said}
        assert np.array_equal(Image.open(files[0]), picture)
    assert make_example(6, 0, 16)[1] != make_example(5, 0, 16)[1]


def test_connected_regions():
    rows = ["##..#", "#..##", "....#", "###..", "#.#.#", "###.#"]
    mask = np.array([[letter == "#" for letter in row] for row in rows])
    regions = connected_regions(mask)
    assert [int(region.sum()) for region in regions] == [8, 4, 3, 2]
    assert np.array_equal(np.sum(regions, axis=0), mask)
    assert len(connected_regions(mask, least=4)) == 2
    assert connected_regions(np.zeros((3, 3), dtype=bool)) == []


def test_grow():
    mask = np.zeros((6, 8), dtype=bool)
    mask[1, 6] = True
    grown = grow(mask, steps=2)
    assert grown[:4, 4:].all()
    assert grown.sum() == 16


@pytest.mark.parametrize("shape", SHAPES)
def test_fit_finds_place_and_radius(shape):
    fit = fit_shape(np.asarray(shape_mask(shape, 128, 128, (50.3, 71.6), 20.0), dtype=np.float32) / 255)
    assert fit.shape == shape
    assert fit.agreement > 0.98
    assert (fit.x, fit.y, fit.radius) == pytest.approx((50.3, 71.6, 20.0), abs=0.3)


@few_or_many(150)
def test_checker_is_right_on_renders(count):
    assert right_share(scenes(count, pairs="any"), render) >= 0.995
    assert right_share(scenes(count, pairs="withheld"), render) >= 0.995


@few_or_many(150)
def test_checker_is_right_on_small_renders(count):
    assert right_share(scenes(count, pairs="any"), lambda scene: render(scene, 64)) >= 0.98


@few_or_many(150)
def test_checker_is_right_on_degraded_renders(count):
    rng = np.random.default_rng(1)
    assert right_share(scenes(count, pairs="any"), lambda scene: degrade(render(scene), rng)) >= 0.97


@few_or_many(150)
def test_checker_finds_wrong_captions(count):
    rng = np.random.default_rng(2)
    caught = [not check(render(scene), wrong_caption(scene, rng))["all"] for scene in scenes(count, pairs="any")]
    assert np.mean(caught) >= 0.99


def test_verdict_names_what_is_wrong():
    first = Thing("small", "red", "circle", 0.2, 0.5, 0.125)
    scene = Scene((first, Thing("large", "blue", "star", 0.7, 0.5, 0.205)), "left of", "navy", "striped")
    right = dict.fromkeys(["count", "background", "style", "clean", *LOOKS, "relation", "all"], True)
    picture = render(scene)
    assert check(picture, scene) == check(np.asarray(picture), scene) == right
    assert check(picture, replace(scene, style="plain")) == right | {"style": False, "all": False}
    assert check(picture, replace(scene, relation="above")) == right | {"relation": False, "all": False}
    green = (replace(first, colour="green"), scene.things[1])
    assert check(picture, replace(scene, things=green)) == right | {"colour": False, "all": False}
    alone = check(picture, replace(scene, things=(first,), relation=None))
    assert "relation" not in alone
    assert not alone["count"]
    assert alone["shape"]
    assert len(read(picture, things=1).things) == 1


def test_reading_of_pictures_that_are_no_scenes():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert read(noise).background == "unclear"
    assert read(Image.new("RGB", (64, 64), COLOURS["red"])).style == "unclear"
    assert read(Image.new("L", (64, 64))).things == ()
    scene = scenes(1, things=2)[0]
    assert not any(check(Image.new("RGB", (64, 64)), scene)[key] for key in ("count", "colour", "relation", "all"))


@pytest.mark.slow
def test_speed():
    sample = scenes(200)
    start = time.perf_counter()
    pictures = [render(scene) for scene in sample]
    drawn = time.perf_counter()
    for picture, scene in zip(pictures, sample, strict=True):
        check(picture, scene)
    assert (drawn - start) / len(sample) < 0.005
    assert (time.perf_counter() - drawn) / len(sample) < 0.030
