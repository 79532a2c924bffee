"""The one loop that every task shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from latentgen.diffusion.plan import Plan
from latentgen.diffusion.prediction import Prediction

Denoise = Callable[[Tensor, int], Prediction]
"""`denoise(latents, i)`: what the network believes of (B, C, h, w) float32 latents at knot i of the plan."""

Noise = Callable[[int], Tensor]
"""`noise(i)`: fresh standard normal noise for step i, (B, C, h, w) float32. Called in order, at most once each time that a step
is taken or taken back."""


class Solver(Protocol):
    """What `sample` needs of a scheduler."""

    def step(
        self, denoise: Denoise, latents: Tensor, i: int, plan: Plan, carry: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        """Go from knot i to knot i + 1. `carry` is what the step before returned (None at first)."""
        ...


class StepEvent(NamedTuple):
    """A step that is done: its index, the timestep it started from, and the (B, C, h, w) latents it reached."""

    step: int
    timestep: float
    latents: Tensor


class StopSampling(Exception):
    """Raise it in a step callback to end the call after the step at hand; the latents reached so far are the result."""


def sample(
    scheduler: Solver,
    denoise: Denoise,
    latents: Tensor,
    plan: Plan,
    *,
    noise: Noise,
    constrain: Callable[[Tensor, int], Tensor] | None = None,
    repeats: Sequence[int] | None = None,
    on_step: Callable[[StepEvent], Tensor] | None = None,
) -> Tensor:
    """Walk `plan` from its noisiest knot to its cleanest and return the latents there, (B, C, h, w).

    Args:
        scheduler: the solver; nothing is stored on it.
        denoise: the guided network, `denoise(latents, i)` for knot i.
        latents: (B, C, h, w) float32, noisy as knot 0 of the plan says.
        plan: what `scheduler.plan(n)` gave, or its tail.
        noise: fresh noise for stochastic solvers.
        constrain: puts back what is known after a step: `constrain(latents, knot reached)`.
        repeats: (n,) how often each step is taken, its start made anew each time by putting noise back (Lugmayr et al. 2022,
            section 4.2); None is once. A solver that remembers steps begins anew each time.
        on_step: sees each `StepEvent` and returns the latents to go on with; may raise `StopSampling`.
    """
    carry = None  # a multistep solver's history: explicit, never on the scheduler
    for i in range(len(plan)):
        for left in reversed(range(repeats[i] if repeats else 1)):
            latents, carry = scheduler.step(denoise, latents, i, plan, carry, noise)
            if constrain is not None:
                latents = constrain(latents, i + 1)
            if left:
                latents, carry = plan.back(i, latents, noise(i)), None
        if on_step is not None:
            try:
                latents = on_step(StepEvent(i, plan.timesteps[i], latents))
            except StopSampling:
                break
    return latents
