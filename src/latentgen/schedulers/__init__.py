"""Solvers, one per file: a frozen config, `plan(n)` and a pure `step`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentgen.schedulers.ddim import DDIMScheduler
from latentgen.schedulers.ddpm import DDPMScheduler
from latentgen.schedulers.dpm_solver import DPMSolverMultistepScheduler
from latentgen.schedulers.euler import EulerDiscreteScheduler
from latentgen.schedulers.euler_ancestral import EulerAncestralDiscreteScheduler
from latentgen.schedulers.heun import HeunDiscreteScheduler
from latentgen.schedulers.lcm import LCMScheduler
from latentgen.schedulers.pndm import PNDMScheduler
from latentgen.schedulers.scheduler import Scheduler

SCHEDULERS: dict[str, type[Scheduler]] = {
    cls.__name__: cls
    for cls in (
        DDPMScheduler,
        DDIMScheduler,
        PNDMScheduler,
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler,
        DPMSolverMultistepScheduler,
        LCMScheduler,
    )
}
"""Every class that a file may name. Nothing else is ever looked up by a name from a file."""

_DPM_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2}

SHORT_NAMES: dict[str, tuple[type[Scheduler], dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {}),
    "ddim": (DDIMScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpm++": (DPMSolverMultistepScheduler, {**_DPM_2M, "use_karras_sigmas": False}),
    "dpm++_karras": (DPMSolverMultistepScheduler, {**_DPM_2M, "use_karras_sigmas": True}),
    "lcm": (LCMScheduler, {}),
}
"""Names for a command line: the class, and the fields that the name stands for."""


def scheduler_by_name(name: str, config: Mapping[str, Any]) -> Scheduler:
    """Build a scheduler from its short or class name and another scheduler's `config`.

    Raises:
        ValueError: for an unknown name, or as in `Scheduler.from_config`.
    """
    if name in SCHEDULERS:
        return SCHEDULERS[name].from_config(config)
    if name not in SHORT_NAMES:
        raise ValueError(f"scheduler={name!r} is not known; use one of {', '.join(SHORT_NAMES)}.")
    cls, settings = SHORT_NAMES[name]
    return cls.from_config({**config, **settings})


__all__ = [
    "SCHEDULERS",
    "SHORT_NAMES",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "Scheduler",
    "scheduler_by_name",
]
