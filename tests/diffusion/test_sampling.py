"""The loop itself, with a solver that can be followed by hand."""

import pytest
import torch

from latentgen.diffusion import Plan, Prediction, StopSampling, sample


class Halver:
    """Takes half of what the network says is left, and adds the noise it is given."""

    def step(self, denoise, latents, i, plan, carry, noise):
        return latents - denoise(latents, i).eps / 2 + noise(i), (carry or 0) + 1


def plan(n=4):
    knots = range(n + 1)
    return Plan(
        tuple(float(900 - 100 * i) for i in range(n)), tuple(i / n for i in knots), tuple(1 - i / n for i in knots)
    )


def denoise(latents, i):
    return Prediction(torch.zeros_like(latents), latents)


def run(start=16.0, n=4, **options):
    options = {"noise": lambda i: 0.0, **options}
    return sample(Halver(), denoise, torch.full((1, 1, 1, 1), start), plan(n), **options).item()


def test_every_step_is_walked_once_in_order():
    seen = []
    assert (
        run(on_step=lambda event: seen.append((event.step, event.timestep, event.latents.item())) or event.latents) == 1
    )
    assert seen == [(0, 900, 8), (1, 800, 4), (2, 700, 2), (3, 600, 1)]


def test_carry_goes_from_step_to_step_and_starts_empty():
    carries = []

    class Spy(Halver):
        def step(self, denoise, latents, i, plan, carry, noise):
            carries.append(carry)
            return super().step(denoise, latents, i, plan, carry, noise)

    sample(Spy(), denoise, torch.ones(1, 1, 1, 1), plan(), noise=lambda i: 0.0)
    assert carries == [None, 1, 2, 3]


def test_the_constraint_sees_the_knot_that_was_reached_and_comes_before_the_event():
    knots = []

    def constrain(latents, knot):
        knots.append(knot)
        return latents + 1

    seen = []
    assert run(n=2, constrain=constrain, on_step=lambda e: seen.append(e.latents.item()) or e.latents) == 5.5
    assert knots == [1, 2]
    assert seen == [9, 5.5]


def test_what_on_step_returns_goes_on():
    assert run(n=2, on_step=lambda event: event.latents * 0 + 2) == 2


def test_stopping_keeps_the_step_at_hand():
    def stop(event):
        if event.step == 1:
            raise StopSampling
        return event.latents

    assert run(on_step=stop) == 4


def test_other_errors_of_the_callback_come_through():
    def fail(event):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(on_step=fail)


def test_noise_is_asked_for_by_step():
    asked = []
    run(noise=lambda i: asked.append(i) or 0.0)
    assert asked == [0, 1, 2, 3]


def test_a_tail_is_the_rest_of_the_plan():
    whole = plan()
    tail = whole.tail(1)
    assert len(tail) == 3
    assert (tail.timesteps, tail.alphas, tail.sigmas) == (whole.timesteps[1:], whole.alphas[1:], whole.sigmas[1:])
    assert whole.tail(0) == whole


@pytest.mark.parametrize("start", [-1, 4, 5])
def test_a_tail_begins_at_a_knot_with_a_step(start):
    with pytest.raises(ValueError, match=rf"start={start} is outside the plan's knots 0 to 3"):
        plan().tail(start)


def test_a_walked_tail_is_the_end_of_the_walk():
    assert sample(Halver(), denoise, torch.full((1, 1, 1, 1), 8.0), plan().tail(1), noise=lambda i: 0.0).item() == run()


def test_a_step_back_has_the_noise_of_its_knot():
    """From x = a1 x0 + s1 e1 to knot i: the part of x0 is a0, and the variance of the rest s0^2."""
    places = Plan((500.0, 250.0), (0.3, 0.6, 0.9), (0.95, 0.8, 0.43))
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(1, 1, 500, 500, generator=generator) for _ in range(2))
    for i in range(2):
        latents = places.alphas[i + 1] * 7 + places.sigmas[i + 1] * first
        back = places.back(i, latents, second)
        assert float(back.mean()) == pytest.approx(places.alphas[i] * 7, abs=0.01)
        assert float(back.std()) == pytest.approx(places.sigmas[i], abs=0.01)


def test_from_a_start_in_pure_noise_nothing_is_kept():
    noise = torch.randn(1, 1, 4, 4)
    assert torch.equal(Plan((999.0,), (0.0, 0.5), (1.0, 0.87)).back(0, torch.randn(1, 1, 4, 4), noise), noise)


def test_repeated_steps_begin_anew():
    """Step 1 is taken three times: what it has reached goes back by the plan's own rule, and its solver forgets."""
    knots, calls = plan(), []

    class Remembering(Halver):
        def step(self, denoise, latents, i, plan, carry, noise):
            calls.append((i, latents.item(), carry))
            return latents / 2, (carry or 0) + 1

    x = 16.0
    expected = [(0, x, None)]
    x /= 2
    for again in range(3):
        expected.append((1, pytest.approx(x), 1 if again == 0 else None))
        x /= 2
        if again < 2:
            x = knots.back(1, torch.tensor(x), torch.tensor(0.0)).item()
    expected.append((2, pytest.approx(x), 1))
    sample(
        Remembering(),
        denoise,
        torch.full((1, 1, 1, 1), 16.0),
        Plan(knots.timesteps[:3], knots.alphas[:4], knots.sigmas[:4]),
        noise=lambda i: torch.zeros(1, 1, 1, 1),
        repeats=[1, 3, 1],
    )
    assert calls == expected
