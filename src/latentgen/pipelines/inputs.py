"""Checks of what a caller gave. Every message names the argument, its value and the rule."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from latentgen.diffusion.noise import MAX_SEED
from latentgen.schedulers.config import is_whole

MOST_PIXELS = 2**15
"""The longest side of a picture that is believed to be meant: no memory holds a larger one."""


def plain_number(value: Any) -> Any:
    """An integer of NumPy as one of Python; anything else as it is, for whoever checks it."""
    return int(value) if is_whole(value) else value


def as_list(value: Any) -> list[Any] | None:
    """A sequence or a one-dimensional array as a list of Python objects; None for anything else, a text included."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return list(value)
    if getattr(value, "ndim", None) == 1 and hasattr(value, "tolist"):
        return list(value.tolist())
    return None


def check_number(name: str, value: Any, low: float, high: float | None = None) -> float:
    """A finite number in [low, high] (no upper end if `high` is None), as a float."""
    rule = f"a number from {low} to {high}" if high is not None else f"a finite number of at least {low}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}={value!r} is a {type(value).__name__}; it must be {rule}.")
    try:
        number = float(value)
    except OverflowError:  # an int of Python may be larger than any float
        number = math.inf
    if not math.isfinite(number) or number < low or (high is not None and number > high):
        raise ValueError(f"{name}={value!r} must be {rule}.")
    return number


def check_count(name: str, value: Any) -> int:
    """A whole number of at least 1."""
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
    return int(value)


def check_component(name: str, value: Any, kind: str) -> None:
    """An object of the class `kind` or one derived from it, by name: no library is imported for this.

    Args:
        name: the component, for the error.
        value: the object.
        kind: the class as users import it, "library.Class" or "library.module.Class"; several with " or " between.
    """

    def full_name(cls: type) -> str:
        return f"{cls.__module__.split('.')[0]}.{cls.__name__}"

    parts = [one.split(".") for one in kind.split(" or ")]
    if not {f"{library}.{short}" for library, *_, short in parts} & set(map(full_name, type(value).__mro__)):
        raise ValueError(f"{name} is a {full_name(type(value))}; it must be a {kind}.")


def check_absent(name: str, value: Any) -> None:
    """None, for a component that code for other libraries names and that does not exist here."""
    if value is not None:
        raise ValueError(
            f"{name}={value!r} cannot be used: pictures are not checked or filtered here. Leave it out, and run a checker of "
            "your own on the pictures."
        )


def refuse(reason: str, **arguments: Any) -> None:
    """None, for arguments that a form of a pipeline has no use for."""
    if given := [name for name, value in arguments.items() if value is not None]:
        raise ValueError(
            f"{', '.join(given)} cannot be used: {reason}. Leave {'it' if len(given) == 1 else 'them'} out."
        )


def check_finite(values: Tensor, what: str, remedy: str) -> None:
    """Numbers that are neither infinite nor NaN."""
    if not bool(values.isfinite().all()):
        raise FloatingPointError(f"{what} are not finite: {remedy}.")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """One of a few words, or True or False."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}.")


def check_side(name: str, value: int | None, default: int | None, factor: int) -> int:
    """A picture's height or width in pixels: a positive multiple of the autoencoder's `factor`."""
    if value is None:
        if default is None:
            raise ValueError(f"{name} must be given: the model's config does not say what size it was trained on.")
        return default
    if not is_whole(value):
        raise ValueError(f"{name}={value!r} must be a whole number of pixels.")
    value = int(value)
    if value > MOST_PIXELS:
        raise ValueError(f"{name}={value} is too large for a picture; it must be at most {MOST_PIXELS} pixels.")
    if value <= 0 or value % factor:
        below = value // factor * factor
        good = f"{below} or {below + factor}" if below > 0 else f"{factor}"
        raise ValueError(
            f"{name}={value} is not a positive multiple of {factor} (a latent stands for {factor} x {factor} pixels); "
            f"use {good}."
        )
    return value


def check_size(height: int | None, width: int | None, sample_size: Any, factor: int) -> tuple[int, int]:
    """A picture's height and width in latents; None is what `sample_size`, the UNet's, says that it was trained on."""
    sides = sample_size if isinstance(sample_size, tuple) else (sample_size, sample_size)
    default_height, default_width = (None if side is None else side * factor for side in sides)
    return (
        check_side("height", height, default_height, factor) // factor,
        check_side("width", width, default_width, factor) // factor,
    )


def count_pairs(prompts: int, pictures: int) -> int:
    """How many pairs of prompt and picture there are; one of either goes with all of the other."""
    if prompts != pictures and 1 not in (prompts, pictures):
        raise ValueError(
            f"there are {prompts} prompts and {pictures} pictures; give as many of each, or one of either for all of the other."
        )
    return max(prompts, pictures)


def check_prompts(prompt: Any, name: str = "prompt") -> list[str]:
    """One prompt, or a sequence or array of them, as a list."""
    prompts = [prompt] if isinstance(prompt, str) else as_list(prompt)
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f"{name}={prompt!r} must be a text or a non-empty list of texts; '' is the empty prompt.")
    return prompts


def check_tensor(
    name: str, value: Any, shape: Sequence[int | None], device: torch.device, finite_in: torch.dtype | None = None
) -> Tensor:
    """A floating-point tensor of `shape` (None fits any length from 1) on `device`.

    Args:
        name: the argument, for errors.
        value: what was given.
        shape: what it must be.
        device: where it must be.
        finite_in: the dtype that it will be cast to, in which every value must be finite; None does not look (on a GPU,
            looking waits for it).

    Returns:
        The tensor as it was given.
    """
    wanted = f"({', '.join('any' if n is None else str(n) for n in shape)})"
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}; it must be a tensor of shape {wanted}.")
    fits = value.ndim == len(shape) and all(
        m == n or (n is None and m) for n, m in zip(shape, value.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be {wanted}.")
    if not value.is_floating_point():
        raise ValueError(f"{name} of shape {tuple(value.shape)} is {value.dtype}; it must be floating-point.")
    if value.device.type != device.type or (device.index is not None and value.device != device):
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} is on {value.device} and the pipeline on {device}: "
            f"use {name}.to({str(device)!r})."
        )
    if finite_in is not None and not bool(value.to(finite_in).isfinite().all()):
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} has values that are not finite in {finite_in}; all must be."
        )
    return value


def resolve_seeds(seed: Any, generator: Any, count: int) -> list[int]:
    """A seed for each of `count` images.

    Args:
        seed: an int s for s, s + 1, ...; a sequence or array with one for each; None for random ones.
        generator: instead of `seed`, a `torch.Generator` (or a list with one for each image) that seeds are drawn from.
    """
    if seed is not None and generator is not None:
        raise ValueError("seed and generator were both given; give one of them.")
    if generator is not None:
        generators = [generator] * count if isinstance(generator, torch.Generator) else as_list(generator)
        if generators is None or not all(isinstance(g, torch.Generator) for g in generators):
            raise ValueError(f"generator={generator!r} must be a torch.Generator, or a list of them.")
        if len(generators) != count:
            raise ValueError(f"generator has {len(generators)} entries; this call makes {count} images.")
        return [int(torch.randint(2**63 - 1, (), generator=g, device=g.device)) for g in generators]
    if seed is None:
        return [secrets.randbits(32) for _ in range(count)]
    seeds = [int(seed) + k for k in range(count)] if is_whole(seed) else as_list(seed)
    if seeds is None:
        raise ValueError(f"seed={seed!r} must be a whole number or a list of them.")
    if len(seeds) != count:
        raise ValueError(f"seed has {len(seeds)} entries; this call makes {count} images.")
    for value in seeds:
        if not is_whole(value) or not 0 <= value <= MAX_SEED:
            raise ValueError(f"seed={value!r} must be a whole number from 0 to {MAX_SEED}.")
    return [int(value) for value in seeds]
