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
