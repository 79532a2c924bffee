"""What a `scheduler_config.json` may say: the rule of every field, and what becomes of keys that a class does not have.

Names and meanings are those of the folder layout. The tables are closed: a key is in one of them, or it is unknown.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import Any

from latentgen.diffusion.noise_schedule import BETA_SCHEDULES
from latentgen.diffusion.prediction import PREDICTION_TYPES

Rule = tuple[str, Callable[[Any], bool]]
"""What a value must be, in words that follow "it must be", and the test."""


def is_whole(value: Any) -> bool:
    """True for an integer of Python or NumPy that is not a bool (True would count as 1)."""
    return isinstance(value, Integral) and not isinstance(value, bool)


LARGEST = sys.float_info.max


def _is_number(value: Any) -> bool:
    # A whole number may be larger than any fraction.
    return isinstance(value, Real) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST  # type: ignore[operator]


def plain(value: Any) -> Any:
    """A number of NumPy as one of Python, and a list or an array as a tuple of such; anything else as it is."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    return value


def _one_of(*allowed: Any) -> Rule:
    return "one of " + ", ".join(map(repr, allowed)), lambda value: any(
        type(value) is type(a) and value == a for a in allowed
    )


_BOOL: Rule = ("True or False", lambda value: isinstance(value, bool))
_BETA: Rule = ("a number between 0 and 1", lambda value: _is_number(value) and 0 < value < 1)
_WHOLE: Rule = ("a whole number of at least 1", lambda value: is_whole(value) and value >= 1)
_POSITIVE: Rule = ("a number above 0", lambda value: _is_number(value) and value > 0)

MOST_TIMESTEPS = 2**16
"""The longest noise schedule that is believed of a file; those in use have 1000."""

SPACINGS = ("leading", "linspace", "trailing")

RULES: dict[str, Rule] = {
    "num_train_timesteps": (
        f"a whole number from 1 to {MOST_TIMESTEPS}",
        lambda value: is_whole(value) and 1 <= value <= MOST_TIMESTEPS,
    ),
    "beta_start": _BETA,
    "beta_end": _BETA,
    "beta_schedule": _one_of(*BETA_SCHEDULES),
    "trained_betas": (
        "None, or one number between 0 and 1 per training timestep",
        lambda value: value is None or (isinstance(value, tuple) and all(map(_BETA[1], value))),
    ),
    "prediction_type": _one_of(*PREDICTION_TYPES),
    "steps_offset": ("a whole number of at least 0", lambda value: is_whole(value) and value >= 0),
    "timestep_spacing": _one_of(*SPACINGS),
    "rescale_betas_zero_snr": _BOOL,
    "set_alpha_to_one": _BOOL,
    "clip_sample": _BOOL,
    "clip_sample_range": _POSITIVE,
    "ldm": _BOOL,
    "eta": ("a number in [0, 1]", lambda value: _is_number(value) and 0 <= value <= 1),
    "variance_type": _one_of("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    "skip_prk_steps": ("True: the Runge-Kutta start of PNDM is not implemented", lambda value: value is True),
    "use_karras_sigmas": _BOOL,
    "final_sigmas_type": _one_of("zero", "sigma_min"),
    "solver_order": _one_of(1, 2, 3),
    "algorithm_type": _one_of("dpmsolver++", "sde-dpmsolver++"),
    "solver_type": _one_of("midpoint", "heun"),
    "lower_order_final": _BOOL,
    "euler_at_final": _BOOL,
    "original_inference_steps": _WHOLE,
    "timestep_scaling": _POSITIVE,
}
"""Every field of every scheduler."""

TRAINED = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
"""What the checkpoint was trained with: facts that go along to any other scheduler, given in a file or not."""

ALWAYS_WRITTEN = (*TRAINED, "skip_prk_steps")
"""And the field whose default here is not the folder layout's (see `PNDMScheduler`)."""

_NOT_LEARNED = (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
_CLIPPING = ("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "LCMScheduler")
_KARRAS = ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler")
_EULER = ("EulerDiscreteScheduler",)
_DPM = ("DPMSolverMultistepScheduler",)

NEUTRAL: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "thresholding": ((False, None), _CLIPPING),
    "timestep_values": ((None,), ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")),
    "use_exponential_sigmas": ((False, None), _KARRAS),
    "use_beta_sigmas": ((False, None), _KARRAS),
    "interpolation_type": (("linear",), _EULER),
    "timestep_type": (("discrete",), _EULER),
    "sigma_min": ((None,), _KARRAS),
    "sigma_max": ((None,), _KARRAS),
    "use_lu_lambdas": ((False, None), _DPM),
    "use_flow_sigmas": ((False, None), _DPM),
    "use_dynamic_shifting": ((False, None), _DPM),
    "lambda_min_clipped": ((-math.inf, None), _DPM),
    "variance_type": (_NOT_LEARNED, _DPM),
}
"""Keys that change the mathematics and are not implemented: the values at which they do nothing, and the classes that
they concern. Any other class carries them along unread."""

INERT = frozenset(
    {
        "disable_corrector",
        "dynamic_thresholding_ratio",
        "flow_shift",
        "noise_sampler_seed",
        "predict_x0",
        "sample_max_value",
        "shift_terminal",
        "solver_p",
        "tensor_format",
        "time_shift_type",
    }
)
"""Keys that change nothing by themselves, or that only schedulers elsewhere have."""

RENAMED: dict[str, dict[str, str]] = {
    "algorithm_type": {"deis": "dpmsolver++"},
    "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
}
"""Values that the files of related solvers (DEIS, UniPC) have, and what DPM-Solver makes of them."""

UNIPC = ("bh1", "bh2")
"""`solver_type`s of a solver with a corrector."""


def sort_keys(
    class_name: str, own: Collection[str], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Sort the keys of a `scheduler_config.json`.

    Args:
        class_name: the scheduler that is to be built.
        own: its fields.
        config: the file's content, or another scheduler's `config`.

    Returns:
        The values of the class's own fields, the keys that it only carries for other schedulers, and what a user should
        be warned of.

    Raises:
        ValueError: for a value that asks this class for what is not implemented.
    """
    defaulted = keys_not_said(config)
    mine: dict[str, Any] = {}
    carried: dict[str, Any] = {}
    unknown: list[str] = []
    renamed: dict[str, str] = {}
    for key, value in config.items():
        if key.startswith("_") or key in defaulted:
            continue
        neutral, concerned = NEUTRAL.get(key, ((), ()))
        if class_name in concerned and value not in neutral:
            raise ValueError(
                f"{key}={value!r} changes the result and {class_name} does not implement it. "
                f"Set it to {neutral[0]!r}, or use another scheduler."
            )
        if key in own:
            if value is not None or key == "trained_betas":  # null elsewhere means "not given"
                mine[key] = value
            if isinstance(value, str) and value in RENAMED.get(key, {}):
                mine[key] = renamed[key] = RENAMED[key][value]
        elif key in RULES or key in NEUTRAL or key in INERT:
            carried[key] = value
        else:
            unknown.append(key)
    remarks = []
    if unknown:
        remarks.append(
            f"{class_name} does not know {', '.join(map(repr, unknown))} and ignores it; "
            "remove the key from the config, or look for a slip in its spelling."
        )
    if renamed:
        remarks.append(
            f"{class_name} does not implement {_listed({key: config[key] for key in renamed})} and takes {_listed(renamed)} "
            "instead: the config is of a related solver, whose pictures differ a little."
            + (" UniPC's corrector is left out." if config.get("solver_type") in UNIPC else "")
        )
    return mine, carried, remarks


OF_LATENTS: dict[str, Any] = {"steps_offset": 1, "clip_sample": False}
"""What a latent model's scheduler config means by leaving these out. The classes' own defaults are those of pixels; diffusers
corrects them when it puts a pipeline together, and older files rely on that."""


def for_latents(config: Mapping[str, Any], defaults: Mapping[str, Any] = OF_LATENTS) -> dict[str, Any]:
    """A scheduler's config as that of a latent model: what it does not say of `defaults` is said.

    Raises:
        ValueError: as `keys_not_said`.
    """
    left_out = keys_not_said(config) | {key for key, value in config.items() if value is None}
    said = {key: config[key] for key in defaults if key in config and key not in left_out}
    marked = [key for key in config.get("_use_default_values") or () if key not in defaults]
    return {**config, **defaults, **said, "_use_default_values": marked}


def keys_not_said(config: Mapping[str, Any]) -> set[str]:
    """The keys that a config of diffusers holds although its file did not say them: it marks those.

    Raises:
        ValueError: if the mark is not a list of names.
    """
    marked = config.get("_use_default_values") or ()
    if not isinstance(marked, list | tuple | set | frozenset) or not all(isinstance(name, str) for name in marked):
        raise ValueError(
            f"_use_default_values={marked!r} does not fit; it must be a list of field names. Remove it from the config."
        )
    return set(marked)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in values.items())
