"""What every scheduler promises about `plan` and `step`."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from latentgen.diffusion import Plan, Prediction, sample, to_prediction
from latentgen.schedulers import SCHEDULERS, SHORT_NAMES, DDIMScheduler, LCMScheduler, Scheduler, scheduler_by_name

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "skip_prk_steps": True,
}
SPACINGS = ("leading", "linspace", "trailing")
EVALUATIONS = {"PNDMScheduler": lambda n: n + (n > 1), "HeunDiscreteScheduler": lambda n: 2 * n - 1}
STOCHASTIC = ("DDPMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler")


def toy(plan: Plan, kind: str = "epsilon") -> Callable[[Tensor, int], Prediction]:
    def denoise(x: Tensor, i: int) -> Prediction:
        assert 0 <= i < len(plan)
        output = torch.tanh(x + plan.timesteps[i] / 300)
        return to_prediction(kind, output, x, plan.alphas[i], plan.sigmas[i])

    return denoise


def run(scheduler: Scheduler, n: int, seed: int) -> Tensor:
    generator, plan = torch.Generator().manual_seed(seed), scheduler.plan(n)

    def draw(i: int = 0) -> Tensor:
        return torch.randn(1, 4, 4, 4, generator=generator)

    return sample(scheduler, toy(plan), draw() * plan.start_scale, plan, noise=draw)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 30, 48, 50, 61, 500, 600, 998, 999, 1000])
@pytest.mark.parametrize("name", SHORT_NAMES)
def test_plans(name: str, n: int) -> None:
    for spacing in SPACINGS:
        scheduler = scheduler_by_name(name, {**SD, "timestep_spacing": spacing})
        if isinstance(scheduler, LCMScheduler) and n > 50:
            continue
        plan = scheduler.plan(n)
        assert len(plan) == n == len(plan.alphas) - 1 == len(plan.sigmas) - 1
        values = (*plan.timesteps, *plan.alphas, *plan.sigmas, plan.start_scale)
        assert all(type(value) is float and math.isfinite(value) for value in values)
        assert all(0 <= t <= 999 for t in plan.timesteps)
        assert all(abs(a**2 + s**2 - 1) < 1e-12 for a, s in zip(plan.alphas, plan.sigmas, strict=True))
        if "karras" not in name:  # whose levels are distinct, and their rounded timesteps need not be
            assert all(a > b for a, b in zip(plan.timesteps, plan.timesteps[1:], strict=False))
        falling = list(zip(plan.sigmas, plan.sigmas[1:], strict=False))
        assert all(a > b for a, b in falling[:-1])
        assert falling[-1][0] >= falling[-1][1]


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("n", [0, -3, 1001, True, 10.0, "10", None])
def test_step_counts_that_do_not_fit(name: str, n: Any) -> None:
    with pytest.raises(
        ValueError, match=f"num_inference_steps={n!r} does not fit; it must be a whole number from 1 to"
    ):
        SCHEDULERS[name].from_config(SD).plan(n)


def test_lcm_has_no_more_steps_than_it_was_distilled_with() -> None:
    with pytest.raises(ValueError, match=r"num_inference_steps=51 does not fit.*original_inference_steps=50"):
        LCMScheduler().plan(51)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_evaluations_and_noise(name: str, n: int) -> None:
    """The network is asked at knots in order; noise at most once a step, and not for the clean latents at the end."""
    scheduler = SCHEDULERS[name].from_config({**SD, "steps_offset": 0})
    plan, knots, noises = scheduler.plan(n), [], []
    denoise = toy(plan)

    def counted(x: Tensor, i: int) -> Prediction:
        knots.append(i)
        return denoise(x, i)

    def noise(i: int) -> Tensor:
        noises.append(i)
        return torch.ones(1, 4, 4, 4)

    sample(scheduler, counted, torch.ones(1, 4, 4, 4), plan, noise=noise)
    assert len(knots) == EVALUATIONS.get(name, lambda n: n)(n)
    assert noises == (list(range(n - 1)) if name in STOCHASTIC else [])


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_data_of_one_point_is_reached_exactly(name: str, kind: str) -> None:
    """A perfect network always says x0 = 0.3, and so must the result, for every step count, spacing and start."""
    if name == "PNDMScheduler" and kind == "v_prediction":
        return  # v turns along the path even here, and PNDM extrapolates it (see the orders of convergence)
    for spacing in SPACINGS:
        config = {**SD, "set_alpha_to_one": True, "timestep_spacing": spacing, "prediction_type": kind}
        scheduler = SCHEDULERS[name].from_config(config)
        for n in (1, 2, 3, 4, 9, 15, 50):
            for plan in (scheduler.plan(n), scheduler.plan(n).tail(n // 2)):
                x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(1, 1, 2, 4) * plan.start_scale

                def perfect(x: Tensor, i: int, plan: Plan = plan) -> Prediction:
                    x0 = torch.full_like(x, 0.3)
                    return Prediction(x0, (x - plan.alphas[i] * x0) / plan.sigmas[i])

                result = sample(scheduler, perfect, x, plan, noise=lambda i, x=x: torch.ones_like(x))
                assert result.dtype == torch.float64
                tolerance = 1e-5 if name == "LCMScheduler" else 1e-9  # a millionth of x is mixed in: its c_skip
                assert (result - 0.3).abs().max() < tolerance


@pytest.mark.parametrize("name", SCHEDULERS)
def test_one_object_in_many_threads(name: str) -> None:
    scheduler = SCHEDULERS[name].from_config(SD)
    jobs = [(n, seed) for seed in range(4) for n in (4, 7, 11, 20)]
    alone = [run(scheduler, *job) for job in jobs]
    before = dict(scheduler.__dict__)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: run(scheduler, *job), jobs))
    assert all(a.equal(b) for a, b in zip(alone, together, strict=True))
    assert scheduler.__dict__ == before


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_step_changes_nothing_that_it_is_given(name: str) -> None:
    scheduler = SCHEDULERS[name].from_config({**SD, "clip_sample": True})
    plan, x = scheduler.plan(5), torch.linspace(-2, 2, 64).reshape(1, 4, 4, 4)
    carry: Any = None
    for i in range(5):
        kept = x.clone()
        history = [past.clone() for past in carry or ()]
        first = scheduler.step(toy(plan), x, i, plan, carry, lambda _: torch.ones(1, 4, 4, 4))
        again = scheduler.step(toy(plan), x, i, plan, carry, lambda _: torch.ones(1, 4, 4, 4))
        assert x.equal(kept)
        assert all(a.equal(b) for a, b in zip(history, carry or (), strict=True))
        assert first[0].equal(again[0])
        x, carry = first


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_step_reads_no_tensor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.item()`, `float(tensor)` or `if tensor`: on a GPU each would wait for all work before it."""
    scheduler = SCHEDULERS[name].from_config({**SD, "clip_sample": True})
    plan = scheduler.plan(6)

    def refuse(self: Tensor, *_: Any) -> Any:
        raise AssertionError("a step read a tensor's value")

    for method in ("item", "tolist", "__float__", "__int__", "__bool__", "__index__", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, method, refuse)
    sample(scheduler, toy(plan), torch.ones(1, 4, 4, 4), plan, noise=lambda i: torch.ones(1, 4, 4, 4))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_tail_is_the_rest_of_the_walk(name: str) -> None:
    """For one-step solvers, walking the plan in two parts is walking it whole."""
    scheduler = SCHEDULERS[name].from_config(SD)
    plan = scheduler.plan(10)
    reached: list[Tensor] = []

    def keep(event: Any) -> Tensor:
        reached.append(event.latents)
        return event.latents

    whole = sample(
        scheduler, toy(plan), torch.ones(1, 4, 4, 4), plan, noise=lambda i: torch.ones(1, 4, 4, 4), on_step=keep
    )
    tail = plan.tail(4)
    rest = sample(scheduler, toy(tail), reached[3], tail, noise=lambda i: torch.ones(1, 4, 4, 4))
    multistep = name in ("PNDMScheduler", "DPMSolverMultistepScheduler")
    assert rest.equal(whole) != multistep
    assert ((rest - whole).norm() / whole.norm()) < 0.2  # a multistep solver begins anew, and comes out near


def test_offsets_beyond_the_trained_timesteps_are_cut() -> None:
    plan = DDIMScheduler(**{k: v for k, v in SD.items() if k != "skip_prk_steps"} | {"steps_offset": 100}).plan(20)
    assert plan.timesteps[0] == 999
    assert plan.timesteps[-1] == 49


def test_zero_terminal_snr_starts_from_pure_noise() -> None:
    config = {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    for name, cls in SCHEDULERS.items():
        scheduler = cls.from_config(config)
        plan = scheduler.plan(8)
        on_levels = name.startswith(("Euler", "Heun", "DPM"))
        assert plan.alphas[0] == (pytest.approx(2**-12, rel=1e-6) if on_levels else 0.0)
        x = sample(
            scheduler, toy(plan, "v_prediction"), torch.ones(1, 4, 4, 4), plan, noise=lambda i: torch.ones(1, 4, 4, 4)
        )
        assert x.isfinite().all()
    epsilon = DDIMScheduler.from_config({**config, "prediction_type": "epsilon"})
    with pytest.raises(ValueError, match="zero terminal SNR"):
        epsilon.step(toy(epsilon.plan(8)), torch.ones(1, 4, 4, 4), 0, epsilon.plan(8), None, lambda i: torch.ones(1))
