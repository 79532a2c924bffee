"""The cases that image to image and inpainting are measured on."""

import evaluate_tasks
import numpy as np
import pytest
from scenes import render


def cases(make, count=60):
    rng = np.random.default_rng(0)
    return [make(rng) for _ in range(count)]


def test_another_colour_and_nothing_else():
    for before, wanted, text in cases(evaluate_tasks.recoloured):
        old, new = before.things[0], wanted.things[0]
        assert new.colour != old.colour
        assert (new.shape, new.size, new.x, new.y, new.radius) == (old.shape, old.size, old.x, old.y, old.radius)
        assert (wanted.background, wanted.style) == (before.background, before.style)
        assert new.colour in text
        assert old.colour not in text


def test_another_thing_of_the_same_size():
    for before, wanted, text in cases(evaluate_tasks.replaced):
        old, new = before.things[0], wanted.things[0]
        assert new.colour != old.colour
        assert new.shape != old.shape
        assert (new.size, new.x, new.y) == (old.size, old.x, old.y)
        assert f"{new.size} {new.colour} {new.shape}" in text


def test_the_mask_covers_the_thing_and_little_else():
    for before, wanted, _ in cases(evaluate_tasks.replaced):
        mask = np.asarray(evaluate_tasks.box_of(before, 128)) > 0
        bare = np.asarray(render(evaluate_tasks.replace(before, things=()), 128)).astype(int)
        for scene in (before, wanted):
            touched = np.abs(np.asarray(render(scene, 128)).astype(int) - bare).max(axis=2) > 0
            assert touched.any()
            assert not (touched & ~mask).any()
        assert mask.mean() < 0.3


@pytest.mark.parametrize(
    ("make", "measure", "settings", "names"),
    [
        ("recoloured", "measure_img2img", {"steps": 2, "guidance": 2.0}, {"new colour", "background kept"}),
        ("replaced", "measure_inpainting", {"task": "text", "num_inference_steps": 2, "guidance_scale": 2.0},
         {"new thing", "pixels outside the mask kept"}),
        ("replaced", "measure_inpainting", {"task": "inpainting", "num_inference_steps": 2, "guidance_scale": 2.0},
         {"new thing", "pixels outside the mask kept"}),
    ],
)  # fmt: skip
def test_all_are_measured(make, measure, settings, names):
    shares, drawn = getattr(evaluate_tasks, measure)(cases(getattr(evaluate_tasks, make), 3), **settings)
    assert shares.keys() == names
    assert len(drawn) == 3
    assert shares.get("pixels outside the mask kept", 1.0) == 1.0
