import pytest
import torch

from latentgen.diffusion import NoiseStream
from latentgen.diffusion.noise import MAX_SEED

SHAPE = (4, 6, 5)


def draws(seeds, steps=3):
    """(1 + steps, B, C, h, w): the start and the noise of each step."""
    stream = NoiseStream(seeds, SHAPE)
    return torch.stack([stream.initial, *(stream(i) for i in range(steps))])


@pytest.mark.parametrize("seeds", [[7], [7, 8], [1, 7, 3], [5, 6, 4, 7], [9, 9, 7]])
def test_an_images_noise_does_not_depend_on_its_neighbours(seeds):
    k = seeds.index(7)
    assert torch.equal(draws(seeds)[:, k], draws([7])[:, 0])


def test_the_start_is_what_torch_draws_from_the_seed():
    expected = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(7))
    assert torch.equal(NoiseStream([7], SHAPE).initial, expected)


def test_other_seeds_and_other_steps_draw_other_noise():
    start, first, second, _ = draws([7, 8])
    assert not torch.equal(start[0], start[1])
    assert not torch.equal(start[0], first[0])
    assert not torch.equal(first[0], second[0])


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    draws([7])
    assert torch.equal(torch.get_rng_state(), state)


def test_every_seed_up_to_the_largest_can_be_used():
    assert not torch.equal(draws([MAX_SEED]), draws([0]))
