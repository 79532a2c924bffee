"""Every scheduler against diffusers 0.40: the same config, start and noise, and a toy in place of the network.

The latents after every step are compared, not only the last. diffusers' Euler and Heun work on `x / alpha`; theirs are
multiplied by alpha first. Most runs are float32, as in use. Where a run multiplies rounding errors (the cosine schedule
and zero terminal SNR start at a signal of 0.00005 and less), both sides run in float64, and the tolerance becomes 1e-9.

Where diffusers does something else than its own formulas say, ours does what they say. Each such place has a test below
that shows the difference, so that it is noticed when diffusers changes.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from latentgen.diffusion import Plan, sample, to_prediction
from latentgen.schedulers import SCHEDULERS

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "skip_prk_steps": True,
}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, with NumPy 2

KINDS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "linspace", "trailing")
REFUSE_SAMPLE = ("PNDMScheduler", "EulerAncestralDiscreteScheduler")
ON_LEVELS = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler")


def toy(x: Tensor, t: float) -> Tensor:
    """Something bounded, smooth and nonlinear in the place of a network."""
    return torch.tanh(0.8 * x + 0.3 * x.roll(1, -1) + math.sin(t / 150)) + 0.1 * math.cos(t / 90)


def start(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(dtype)


class _Double:
    """A module in which float32 means float64."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


@contextmanager
def in_double(module: Any) -> Iterator[None]:
    """Let `module`, one of theirs, which casts to float32 in many places, cast to float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "torch", _Double(torch))
        patch.setattr(module, "np", _Double(np))
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def build_theirs(name: str, config: dict[str, Any], double: bool = False) -> Any:
    if name in REFUSE_SAMPLE and config.get("prediction_type") == "sample":
        config = {**config, "prediction_type": "epsilon"}  # and `run_theirs` converts the output
    if name == "LCMScheduler":  # the only one of theirs that does not know the others' fields
        config = {key: value for key, value in config.items() if key != "skip_prk_steps"}
    scheduler = getattr(diffusers, name).from_config(config)
    if double:  # the tables are made in float32 by everyone; only what follows from them is float64
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        if hasattr(scheduler, "final_alpha_cumprod"):
            scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    return scheduler


def run_theirs(
    name: str, config: dict[str, Any], n: int, *, double: bool = False, true_gaps: bool = False, eta: float = 0.0,
    begin: int = 0, x: Tensor | None = None, told: tuple[float, ...] | None = None,
) -> list[Tensor]:  # fmt: skip
    """Run diffusers from `x` at step `begin` and return our kind of latents after each step.

    Args:
        true_gaps: tell DDIM and PNDM before each step how far the next timestep is; they take T // n for it.
        told: what the toy is told at each step, if not their own timestep.
    """
    scheduler = build_theirs(name, config, double)
    with in_double(sys.modules[type(scheduler).__module__]) if double else nullcontext():
        scheduler.set_timesteps(n)
        times = scheduler.timesteps[begin:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        keywords: dict[str, Any] = {"eta": eta} if eta else {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            keywords["generator"] = torch.Generator().manual_seed(1)
        if x is None:
            x = start(torch.float64 if double else torch.float32) * scheduler.init_noise_sigma
        gaps = [int(a - b) for a, b in pairwise(times)] + [int(times[-1]) + 1]
        reached = []
        for call, t in enumerate(times):
            if true_gaps:  # their T // num_inference_steps is then the gap; PNDM's second call redoes the first step
                gap = gaps[0] if name == "PNDMScheduler" and call == 1 else gaps[call]
                scheduler.num_inference_steps = Fraction(scheduler.config.num_train_timesteps, gap)
            scaled = scheduler.scale_model_input(x, t)
            output = toy(scaled, float(t) if told is None else told[call])
            if name in REFUSE_SAMPLE and config.get("prediction_type") == "sample":
                squared = float(scheduler.alphas_cumprod[t]) if name not in ON_LEVELS else None
                level = (1 / squared - 1) ** 0.5 if squared else float(scheduler.sigmas[call])
                output = ((1 + level**2) ** 0.5 * scaled - output) / level
            x = scheduler.step(output, t, x, **keywords).prev_sample
            last = call + 1 == len(times)
            if name in ON_LEVELS and not last:
                if getattr(scheduler, "state_in_first_order", True):
                    reached.append(x / (1 + float(scheduler.sigmas[scheduler.step_index]) ** 2) ** 0.5)
            elif not (name == "PNDMScheduler" and call == 0 and not last):
                reached.append(x)
    return reached


def run_ours(scheduler: Any, plan: Plan, *, double: bool = False, x: Tensor | None = None) -> list[Tensor]:
    """Run ours with the same toy and the same draws of noise; return the latents after each step."""
    generator = torch.Generator().manual_seed(1)
    x = start(torch.float64 if double else torch.float32) * plan.start_scale if x is None else x
    reached: list[Tensor] = []

    def keep(event: Any) -> Tensor:
        reached.append(event.latents)
        return event.latents

    def denoise(latents: Tensor, i: int) -> Any:
        output = toy(latents, plan.timesteps[i])
        return to_prediction(scheduler.prediction_type, output, latents, plan.alphas[i], plan.sigmas[i])

    sample(
        scheduler, denoise, x, plan,
        noise=lambda i: torch.randn(x.shape, generator=generator, dtype=x.dtype), on_step=keep,
    )  # fmt: skip
    return reached


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest relative difference after any step."""
    assert len(ours) == len(theirs)
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True))


def check(name: str, config: dict[str, Any], n: int, *, double: bool = False, eta: float = 0.0, **how: Any) -> None:
    scheduler = SCHEDULERS[name].from_config(config)
    if eta:
        scheduler = dataclasses.replace(scheduler, eta=eta)
    theirs = run_theirs(name, config, n, double=double, eta=eta, **how)
    ours = run_ours(scheduler, scheduler.plan(n), double=double)
    assert difference(ours, theirs) <= (1e-9 if double else 1e-5)


@pytest.mark.parametrize("n", [1, 2, 10, 50])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_stable_diffusions_settings(name: str, spacing: str, kind: str, n: int) -> None:
    config = {**SD, "timestep_spacing": spacing, "prediction_type": kind}
    gaps = spacing == "linspace" and name in ("DDIMScheduler", "PNDMScheduler")
    # At these two, diffusers' own float32 and float64 results are 1.2e-5 and 1.1e-5 apart (ours 3e-7 and 1e-6).
    rounded = [("PNDMScheduler", "linspace", "v_prediction", 2), ("HeunDiscreteScheduler", "linspace", "sample", 2)]
    check(name, config, n, double=(name, spacing, kind, n) in rounded, true_gaps=gaps)


@pytest.mark.parametrize("n", [3, 7, 30])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_steps_that_do_not_divide_the_timesteps(name: str, spacing: str, n: int) -> None:
    gaps = spacing != "leading" and name in ("DDIMScheduler", "PNDMScheduler")
    check(name, {**SD, "timestep_spacing": spacing}, n, true_gaps=gaps)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_timesteps_of_every_step_count(spacing: str) -> None:
    """Half of the counts put some timestep halfway between two whole ones; they must be rounded the same way."""
    config = {**SD, "timestep_spacing": spacing}
    ours, theirs = SCHEDULERS["DDIMScheduler"].from_config(config), build_theirs("DDIMScheduler", config)
    for n in range(1, 1000):
        theirs.set_timesteps(n)
        given = theirs.timesteps.tolist()[:n]  # see test_their_trailing_has_a_step_too_many
        assert [int(t) for t in ours.plan(n).timesteps] == given


@pytest.mark.parametrize("n", [1, 10])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_other_noise_schedules(name: str, betas: str, spacing: str, kind: str, n: int) -> None:
    config = {"beta_schedule": betas, "beta_start": 0.0001, "beta_end": 0.02, "skip_prk_steps": True,
              "clip_sample": False, "timestep_spacing": spacing, "prediction_type": kind}  # fmt: skip
    check(name, config, n, double=True)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_given_betas_and_fewer_timesteps(name: str) -> None:
    betas = [0.002 + 0.0005 * k for k in range(40)]
    config = {"trained_betas": betas, "num_train_timesteps": 40, "original_inference_steps": 20, "skip_prk_steps": True}
    check(name, config, 8, true_gaps=name == "DDIMScheduler")


@pytest.mark.parametrize("n", [1, 2, 10])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name[:4] not in ("PNDM", "Heun")])
def test_zero_terminal_snr(name: str, spacing: str, n: int) -> None:
    config = {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": spacing}
    check(name, config, n, double=True)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_ddim_with_fresh_noise(kind: str, to_one: bool, eta: float) -> None:
    for n in (1, 2, 10, 50):
        check("DDIMScheduler", {**SD, "prediction_type": kind, "set_alpha_to_one": to_one}, n, eta=eta)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "HeunDiscreteScheduler", "LCMScheduler"])
def test_clipping(name: str, kind: str) -> None:
    for reach in (1.0, 0.6):
        check(name, {**SD, "clip_sample": True, "clip_sample_range": reach, "prediction_type": kind}, 10)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_ddpm_variances(variance_type: str) -> None:
    for n in (1, 10, 50):  # offset 0: see test_their_ddpm_adds_noise_in_the_last_step
        check("DDPMScheduler", {**SD, "steps_offset": 0, "variance_type": variance_type}, n)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_karras_levels(name: str, spacing: str, kind: str) -> None:
    for n in (1, 2, 10, 50):
        config = {**SD, "use_karras_sigmas": True, "timestep_spacing": spacing, "prediction_type": kind}
        check(name, config, n, double=n == 2)  # theirs rounds too much there, as above


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_an_end_at_the_lowest_trained_level(name: str) -> None:
    for n in (1, 2, 10, 50):
        for karras in (False, True):
            check(name, {**SD, "final_sigmas_type": "sigma_min", "use_karras_sigmas": karras}, n)


ODE, SDE = "dpmsolver++", "sde-dpmsolver++"


@pytest.mark.parametrize(
    "ending",
    [
        {},
        {"euler_at_final": True},
        {"lower_order_final": False},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
    ],
)
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize(("algorithm", "order"), [(ODE, 1), (ODE, 2), (ODE, 3), (SDE, 1), (SDE, 2)])
def test_dpm_solver_variants(algorithm: str, order: int, solver_type: str, ending: dict[str, Any]) -> None:
    # Their stochastic order 3 is wrong: see test_their_stochastic_order_3_has_a_wrong_sign.
    for kind, n in zip(
        ("epsilon", "v_prediction", "sample", "epsilon", "v_prediction"), (1, 2, 3, 14, 20), strict=True
    ):
        config = {**SD, **ending, "algorithm_type": algorithm, "solver_order": order, "solver_type": solver_type}
        check("DPMSolverMultistepScheduler", {**config, "prediction_type": kind}, n)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_lcm_settings(n: int) -> None:
    check("LCMScheduler", {**SD, "original_inference_steps": 30, "timestep_scaling": 0.01}, n)


@pytest.mark.parametrize(
    "name", [name for name in SCHEDULERS if name not in ("PNDMScheduler", "HeunDiscreteScheduler")]
)
def test_a_tail_from_a_noised_picture(name: str) -> None:
    """Image to image: both begin at step 6 of 20, from the same picture noised to that step's level."""
    scheduler = SCHEDULERS[name].from_config(SD)
    plan = scheduler.plan(20).tail(6)
    noised = plan.alphas[0] * torch.linspace(-1, 1, 128).reshape(2, 4, 4, 4) + plan.sigmas[0] * start()
    scale = 1 / plan.alphas[0] if name in ON_LEVELS else 1.0
    theirs = run_theirs(name, SD, 20, begin=6, x=noised * scale)
    assert difference(run_ours(scheduler, plan, x=noised), theirs) <= 1e-5


def test_class_defaults() -> None:
    """A file that leaves a field out means the same to both. PNDM's start is the exception, and is never left out."""
    for name, cls in SCHEDULERS.items():
        theirs = getattr(diffusers, name)().config
        for field in cls._fields(runtime=False):
            if field in theirs and (name, field) != ("PNDMScheduler", "skip_prk_steps"):
                assert getattr(cls(), field) == theirs[field], (name, field)
    assert SCHEDULERS["PNDMScheduler"]().config["skip_prk_steps"] is True


# Where diffusers does not do what its formulas say. Ours is held against the formula.


def walk(plan: Plan, rule: Callable[[float, float, float, float], tuple[float, float]]) -> list[Tensor]:
    """Apply `x1 = c0 * x0 + c1 * eps` with `(c0, c1) = rule(a, s, a1, s1)` from knot to knot, for an epsilon toy."""
    x, reached = start() * plan.start_scale, []
    for i, t in enumerate(plan.timesteps):
        eps = toy(x, t)
        c0, c1 = rule(plan.alphas[i], plan.sigmas[i], plan.alphas[i + 1], plan.sigmas[i + 1])
        x = c0 * (x - plan.sigmas[i] * eps) / plan.alphas[i] + c1 * eps
        reached.append(x)
    return reached


def test_their_ddim_cannot_take_every_timestep() -> None:
    """1000 steps with an offset of 1 ask for timestep 1000. Ours takes each of 0 to 999 once, as offset 0 does."""
    with pytest.raises(IndexError):
        run_theirs("DDIMScheduler", SD, 1000)
    scheduler = SCHEDULERS["DDIMScheduler"].from_config(SD)
    plan = scheduler.plan(1000)
    assert plan.timesteps == tuple(float(t) for t in range(999, -1, -1))
    theirs = run_theirs("DDIMScheduler", {**SD, "steps_offset": 0}, 1000, double=True)
    assert difference(run_ours(scheduler, plan, double=True), theirs) <= 1e-9


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_timestep_is_taken_once(name: str, spacing: str) -> None:
    """Theirs has timesteps 1000 to 1 (Euler, leading), all 1 (DPM-Solver, leading) or one twice (linspace)."""
    scheduler = SCHEDULERS[name].from_config({**SD, "timestep_spacing": spacing})
    assert scheduler.plan(1000).timesteps == tuple(float(t) for t in range(999, -1, -1))
    assert all(x.isfinite().all() for x in run_ours(scheduler, scheduler.plan(1000)))
    theirs = build_theirs(name, {**SD, "timestep_spacing": spacing})
    theirs.set_timesteps(1000)
    given = [float(t) for t in theirs.timesteps]
    wrong = {"leading": True, "linspace": name[:3] == "DPM", "trailing": False}[spacing]
    assert (len(set(given)) < 1000 or max(given) > 999) == wrong


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler"])
def test_their_previous_timestep_is_not_the_next_knot(name: str, spacing: str) -> None:
    """They go from t to t - T // n, where the network is then told another timestep. Ours goes to the next knot."""
    config = {**SD, "timestep_spacing": spacing}
    scheduler = SCHEDULERS[name].from_config(config)
    plan = scheduler.plan(30)
    ours = run_ours(scheduler, plan)
    assert difference(ours, run_theirs(name, config, 30)) > 1e-3
    if name == "DDIMScheduler":
        assert difference(ours, walk(plan, lambda a, s, a1, s1: (a1, s1))) <= 1e-5


@pytest.mark.parametrize("n", [61, 103, 122])
def test_their_trailing_has_a_step_too_many(n: int) -> None:
    """For 62 of the step counts up to 1000, rounding gives a timestep more: -1, which they read as the noisiest."""
    theirs = build_theirs("DDIMScheduler", {**SD, "timestep_spacing": "trailing"})
    theirs.set_timesteps(n)
    plan = SCHEDULERS["DDIMScheduler"].from_config({**SD, "timestep_spacing": "trailing"}).plan(n)
    assert [int(t) for t in plan.timesteps] == theirs.timesteps.tolist()[:n]
    assert theirs.timesteps.tolist()[n:] == [-1]


def test_their_ddpm_adds_noise_in_the_last_step() -> None:
    """With "fixed_large" and a last timestep above 0. The last step's mean is the picture (Ho et al., algorithm 2)."""
    config = {**SD, "variance_type": "fixed_large"}
    scheduler = SCHEDULERS["DDPMScheduler"].from_config(config)
    ours, theirs = run_ours(scheduler, scheduler.plan(10)), run_theirs("DDPMScheduler", config, 10)
    assert difference(ours[:-1], theirs[:-1]) <= 1e-5
    assert difference(ours[-1:], theirs[-1:]) > 1e-3
    plan = scheduler.plan(10)
    x0 = (ours[-2] - plan.sigmas[-2] * toy(ours[-2], plan.timesteps[-1])) / plan.alphas[-2]
    assert difference(ours[-1:], [x0]) <= 1e-5  # the posterior of clean latents is a point


def test_their_ddpm_takes_the_root_of_a_logarithm() -> None:
    """ "fixed_large_log" is NaN there. It names the variance by its logarithm, so the result is that of "fixed_large"."""
    log, plain = ({**SD, "variance_type": kind} for kind in ("fixed_large_log", "fixed_large"))
    assert run_theirs("DDPMScheduler", log, 10)[-1].isnan().all()
    a, b = (SCHEDULERS["DDPMScheduler"].from_config(config) for config in (log, plain))
    assert difference(run_ours(a, a.plan(10)), run_ours(b, b.plan(10))) == 0


def test_their_stochastic_order_3_has_a_wrong_sign() -> None:
    """The weight of the second difference tends to -1 with the step size there, not to 0 as in every other form."""
    scheduler = SCHEDULERS["DPMSolverMultistepScheduler"].from_config(
        {**SD, "algorithm_type": "sde-dpmsolver++", "solver_order": 3}
    )
    plan = scheduler.plan(50)
    m = [start(torch.float64), start(torch.float64).roll(1), start(torch.float64).roll(2)]
    i, x = 20, start(torch.float64).roll(3)
    rates = [math.log(a / s) for a, s in zip(plan.alphas[:-1], plan.sigmas[:-1], strict=True)]
    h, h0, h1 = (rates[i + 1 - j] - rates[i - j] for j in range(3))
    # x0 as the parabola through the three predictions, written out once more: Lagrange instead of differences, and the
    # exact integrals of 2 exp(2 (u - h)) u^p over a step, with the published halving of the square's.
    second = (m[0] / (h0 * (h0 + h1)) - m[1] / (h0 * h1) + m[2] / (h1 * (h0 + h1))) * h**2
    first = (m[0] - m[1]) / h0 * h + second * h0 / h
    k = 2 * h
    constant = 1 - math.exp(-k)
    linear = 1 - constant / k
    square = (1 - 2 * linear / k) / 2
    want = plan.sigmas[i + 1] / plan.sigmas[i] * math.exp(-h) * x
    want = want + plan.alphas[i + 1] * (constant * m[0] + linear * first + square * second)
    prediction = to_prediction("sample", m[0], x, plan.alphas[i], plan.sigmas[i])
    got, _ = scheduler.step(lambda *_: prediction, x, i, plan, tuple(m[1:]), lambda _: torch.zeros_like(x))
    assert difference([got], [want]) <= 1e-12

    theirs = build_theirs("DPMSolverMultistepScheduler", {**SD, "algorithm_type": "sde-dpmsolver++", "solver_order": 3})
    theirs.set_timesteps(50)
    theirs.sigmas, theirs._step_index = theirs.sigmas.double(), i
    wrong = theirs.multistep_dpm_solver_third_order_update(m[::-1], sample=x, noise=torch.zeros_like(x))
    assert difference([wrong + plan.alphas[i + 1] * second], [want]) <= 1e-5


def test_their_karras_timesteps_are_cut_for_the_cosine_schedule() -> None:
    """Fractional timesteps are cut to integers there, elsewhere rounded. Told the same timesteps, both agree."""
    config = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}
    plan = SCHEDULERS["DPMSolverMultistepScheduler"].from_config(config).plan(10)
    check("DPMSolverMultistepScheduler", config, 10, double=True, told=plan.timesteps)
    theirs = build_theirs("DPMSolverMultistepScheduler", config)
    theirs.set_timesteps(10)
    assert max(abs(a - float(b)) for a, b in zip(plan.timesteps, theirs.timesteps, strict=True)) == 1


def test_their_pndm_falls_out_of_step_in_a_tail() -> None:
    """The second call redoes the first step, and only a whole list has its timestep twice: one too far from then on.

    Ours starts a tail as it starts a whole plan, so it is the whole plan of a table that ends where the tail begins.
    """
    scheduler = SCHEDULERS["PNDMScheduler"].from_config(SD)
    whole = scheduler.plan(20)
    plan = whole.tail(6)
    noised = plan.alphas[0] * torch.linspace(-1, 1, 128).reshape(2, 4, 4, 4) + plan.sigmas[0] * start()
    ours = run_ours(scheduler, plan, x=noised)
    theirs = run_theirs("PNDMScheduler", SD, 20, begin=7, x=noised)  # their list has the second timestep twice
    assert len(theirs) == len(ours) - 1
    assert difference(ours[:1], theirs[:1]) <= 1e-5
    assert difference(ours[1:], theirs[1:] + theirs[-1:]) > 1e-3

    betas = [float(b) for b in torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2][:700]
    short = {**SD, "trained_betas": betas, "num_train_timesteps": 700}
    assert difference(ours, run_theirs("PNDMScheduler", short, 14, x=noised)) <= 1e-5


def test_their_pndm_and_heun_do_not_read_zero_terminal_snr() -> None:
    config = {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    for name in ("PNDMScheduler", "HeunDiscreteScheduler"):
        scheduler = SCHEDULERS[name].from_config(config)
        assert scheduler.plan(10).alphas[0] <= 2**-12 < build_theirs(name, config).alphas_cumprod[-1].sqrt()
    # Heun's step from there is Euler's: its mean of two slopes is over a step as long as the number that stands for infinity.
    heun, euler = (SCHEDULERS[name].from_config(config) for name in ("HeunDiscreteScheduler", "EulerDiscreteScheduler"))
    ours = run_ours(heun, heun.plan(10))
    assert difference(ours[:1], run_ours(euler, euler.plan(10))[:1]) == 0
    assert difference(ours[1:2], run_ours(euler, euler.plan(10))[1:2]) > 1e-3


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_their_karras_levels_begin_where_there_is_no_signal(name: str) -> None:
    """With zero terminal SNR, at 4096: half of 10 steps are then spent on latents of noise. Ours begin after that knot."""
    config = {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "use_karras_sigmas": True}
    config["timestep_spacing"] = "trailing"
    theirs = build_theirs(name, config)
    theirs.set_timesteps(10)
    plan = SCHEDULERS[name].from_config(config).plan(10)
    levels = [sigma / alpha for sigma, alpha in zip(plan.sigmas, plan.alphas, strict=True)]
    assert levels[0] == pytest.approx(float(theirs.sigmas[0]), rel=1e-5)
    assert levels[1] < 20 < float(theirs.sigmas[4])
