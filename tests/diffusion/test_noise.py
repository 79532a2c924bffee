import numpy as np
import pytest
import torch

from latentgen.diffusion import NoiseStream
from latentgen.diffusion.noise import MAX_SEED

SHAPE = (4, 6, 5)


def draws(seeds, steps=3):
    """(1 + steps, B, C, h, w): the start and the noise of each step."""
    stream = NoiseStream(seeds, SHAPE)
    return torch.stack([stream.draw(), *(stream(i) for i in range(steps))])


@pytest.mark.parametrize("seeds", [[7], [7, 8], [1, 7, 3], [5, 6, 4, 7], [9, 9, 7]])
def test_an_images_noise_does_not_depend_on_its_neighbours(seeds):
    k = seeds.index(7)
    assert torch.equal(draws(seeds)[:, k], draws([7])[:, 0])


def test_the_start_is_what_torch_draws_from_the_seed():
    expected = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(7))
    assert torch.equal(NoiseStream([7], SHAPE).draw(), expected)


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


def test_a_small_seeds_noise_is_that_of_torch_at_every_step():
    """The pictures of seeds below 2**32 are known; those have one 32-bit word, all that torch's generator reads."""
    for seed in (0, 7, 2**32 - 1):
        generator = torch.Generator().manual_seed(seed)
        expected = torch.stack([torch.randn((1, *SHAPE), generator=generator) for _ in range(4)])
        assert torch.equal(draws([seed]), expected)


LARGE = [2**32, 5 + 2**32, 5 + 2**33, 5 + 2**63, 2**32 + 2**33, MAX_SEED]


def test_large_seeds_are_seeds_of_their_own():
    small = [0, 1, 5, 2**32 - 1]
    drawn = draws([*small, *LARGE]).transpose(0, 1)
    for k, image in enumerate(drawn):
        for other in drawn[:k]:
            correlation = torch.corrcoef(torch.stack([image.flatten(), other.flatten()]))[0, 1]
            assert abs(correlation) < 0.2  # 4.4 standard deviations of independent noise


def test_a_large_seeds_noise_is_standard_normal_and_the_same_each_time():
    noise = NoiseStream([5 + 2**32], (4, 100, 100))
    start = noise.draw()
    assert start.shape == (1, 4, 100, 100)
    assert start.dtype == torch.float32
    for draw in (start, noise(0)):
        assert abs(draw.mean()) < 0.02
        assert draw.std().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(start, NoiseStream([5 + 2**32], (4, 100, 100)).draw())
    # Of Mersenne Twister seeded with the words 5 and 1; NumPy promises never to change these numbers (NEP 19).
    expected = np.random.RandomState([5, 1]).standard_normal(3).astype(np.float32)
    assert start.flatten()[:3].tolist() == expected.tolist()
