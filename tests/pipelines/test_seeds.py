"""Image k has its own seed: alone, in a batch and at another position it is the same image, with any scheduler."""

import numpy as np
import pytest
import torch

from latentgen.diffusion.noise import MAX_SEED
from latentgen.pipelines import text2image

CALL = {"num_inference_steps": 4, "output_type": "pt"}
RUNS = {
    "euler_a": ({"scheduler": "euler_a"}, 4),
    "ddpm": ({"scheduler": "ddpm"}, 4),
    "lcm": ({"scheduler": "lcm"}, 4),
    "ddim eta 1": ({"scheduler": "ddim", "eta": 1.0}, 5),
    "dpm++_karras": ({"scheduler": "dpm++_karras"}, 1),
    "pndm": ({}, 1),
}
"""What is asked for, and how often an image then draws: for the start, and in each step that adds noise."""


@pytest.fixture
def noises(monkeypatch):
    """For every call, what its noise stream drew: (draws, B, C, h, w)."""
    calls = []

    class Spy(text2image.NoiseStream):
        def __init__(self, *arguments):
            calls.append([])
            super().__init__(*arguments)

        def draw(self):
            drawn = super().draw()
            calls[-1].append(drawn.clone())
            return drawn

    monkeypatch.setattr(text2image, "NoiseStream", Spy)
    return lambda: [torch.stack(draws) for draws in calls]


@pytest.mark.parametrize(("run", "draws"), RUNS.values(), ids=RUNS.keys())
def test_an_image_does_not_depend_on_its_neighbours(pipe, noises, run, draws):
    alone = pipe("a cat", seed=42, **run, **CALL)
    batch = pipe(["a dog", "a cat", "a bird"], seed=[1, 42, 7], **run, **CALL)
    elsewhere = pipe(["a cat"] * 2, num_images_per_prompt=2, seed=[3, 9, 42, 8], **run, **CALL)
    for other, position in ((batch, 1), (elsewhere, 2)):
        assert torch.allclose(other.images[position], alone.images[0], rtol=0, atol=1e-5)
    drawn, *others = noises()
    assert len(drawn) == draws
    for other, position in zip(others, (1, 2), strict=True):
        assert torch.equal(other[:, position], drawn[:, 0])
    assert not torch.allclose(batch.images[0], batch.images[1], atol=1e-3)


def test_a_seed_counts_on(pipe):
    assert pipe(["a", "b"], num_images_per_prompt=2, seed=40, **CALL).seeds == [40, 41, 42, 43]
    assert pipe("a", num_images_per_prompt=2, seed=(9, 4), **CALL).seeds == [9, 4]


@pytest.mark.parametrize(
    "seeds", [range(4, 6), np.array([4, 5]), np.array([4, 5], dtype=np.uint64), torch.tensor([4, 5])]
)
def test_seeds_in_any_sequence_or_array(pipe, seeds):
    output = pipe("a", num_images_per_prompt=np.int64(2), seed=seeds, **{**CALL, "num_inference_steps": np.int32(1)})
    assert output.seeds == [4, 5]
    assert all(type(seed) is int for seed in output.seeds)


def test_a_seed_of_numpy_counts_beyond_its_own_width(pipe):
    seeds = pipe("a", num_images_per_prompt=2, seed=np.uint8(255), **{**CALL, "num_inference_steps": 1}).seeds
    assert seeds == [255, 256]


def test_seeds_that_were_drawn_make_the_images_again(pipe):
    first = pipe("a cat", num_images_per_prompt=2, **CALL)
    assert len(set(first.seeds)) == 2
    assert first.seeds != pipe("a cat", num_images_per_prompt=2, **CALL).seeds
    assert torch.equal(pipe("a cat", num_images_per_prompt=2, seed=first.seeds, **CALL).images, first.images)
    again = pipe("a cat", seed=first.seeds[1], **CALL).images[0]
    assert torch.allclose(again, first.images[1], rtol=0, atol=1e-5)


def test_a_generator_gives_the_seeds(pipe):
    def generator():
        return torch.Generator().manual_seed(3)

    first = pipe("a cat", num_images_per_prompt=2, generator=generator(), **CALL)
    again = pipe("a cat", num_images_per_prompt=2, generator=generator(), **CALL)
    assert first.seeds == again.seeds
    assert len(set(first.seeds)) == 2
    assert torch.equal(first.images, again.images)
    assert torch.equal(pipe("a cat", num_images_per_prompt=2, seed=first.seeds, **CALL).images, first.images)
    each = pipe("a cat", num_images_per_prompt=2, generator=[generator(), generator()], **CALL).seeds
    assert each == [first.seeds[0]] * 2


def test_the_global_generators_are_neither_read_nor_moved(pipe):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = pipe("a cat", seed=1, scheduler="euler_a", **CALL).images
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(pipe("a cat", seed=1, scheduler="euler_a", **CALL).images, first)


def test_the_largest_seed_is_a_seed(pipe):
    assert pipe("a cat", seed=MAX_SEED, **{**CALL, "num_inference_steps": 1}).seeds == [MAX_SEED]
