"""Where networks run, and in which number format."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from latentgen.runtime.warn import warn_user

DTYPE_NAMES = {
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "fp32": torch.float32,
}
"""The spellings that users know, and the formats that networks can run in."""

NATIVE_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "sve_bf16", "svebf16"})
"""Names under which PyTorch (x86, ARM) and Linux list a processor's bfloat16 arithmetic."""


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Turn what a user gave into a device that exists.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps", ...; None is the current CUDA device where there is one, else the CPU.

    Returns:
        The device; a CUDA device always with its index, so that it equals the `.device` of the tensors on it.

    Raises:
        ValueError: if it is not a device's name, or this machine does not have it.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not isinstance(device, str | torch.device):
        raise ValueError(f'device={device!r} is not a device: give "cpu", "cuda", "cuda:1" or None to have one chosen.')
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f'device={device!r} is not a device that PyTorch knows: give "cpu", "cuda", "cuda:1" or None to have one '
            "chosen."
        ) from error
    if resolved.type == "meta":
        raise ValueError('device="meta" holds no numbers, so nothing can run there: give "cpu", "cuda" or None.')
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            'device="mps" was asked for, but this machine has no Apple GPU that PyTorch can use: use "cpu".'
        )
    if resolved.type == "cpu":
        return torch.device("cpu")  # without an index, as tensors on it have none
    return _existing_cuda_device(resolved) if resolved.type == "cuda" else _usable(resolved)


def _usable(device: torch.device) -> torch.device:
    """The device, if this PyTorch can put a tensor there: most of the kinds that it names need a build of their own."""
    try:
        return torch.empty(0, device=device).device
    except Exception as error:  # AssertionError, RuntimeError, NotImplementedError: each kind has its own
        raise ValueError(
            f'device="{device}" was asked for, but this PyTorch cannot use it: use "cpu", or None to have one chosen.'
        ) from error


def _existing_cuda_device(device: torch.device) -> torch.device:
    if not torch.cuda.is_available():
        why = (
            "this PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch finds no usable NVIDIA GPU"
        )
        remedy = (
            "install a CUDA build (https://pytorch.org/get-started)"
            if torch.version.cuda is None
            else "check `nvidia-smi` and CUDA_VISIBLE_DEVICES"
        )
        raise ValueError(f'device="{device}" was asked for, but {why}: use device="cpu", or {remedy}.')
    index = torch.cuda.current_device() if device.index is None else device.index
    count = torch.cuda.device_count()
    if index >= count:
        raise ValueError(f'device="{device}" was asked for, but there are {count} CUDA devices: use 0 to {count - 1}.')
    return torch.device("cuda", index)


def one_dtype(dtype: str | torch.dtype | None, torch_dtype: str | torch.dtype | None) -> str | torch.dtype | None:
    """What was given under either of the two names that users know for it."""
    if dtype is not None and torch_dtype is not None:
        raise ValueError("dtype and torch_dtype were both given; they mean the same: give dtype.")
    return dtype if dtype is not None else torch_dtype


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Turn what a user gave into the number format that a network runs in on `device`.

    Args:
        dtype: a name ("float16", "fp16", "half", "bfloat16", "bf16", "float32", "fp32") or a `torch.dtype`; None is
            float16 on CUDA, bfloat16 on a CPU with native bfloat16 arithmetic, float32 elsewhere.
        device: what `resolve_device` gave.

    Raises:
        ValueError: for any other format.
    """
    if dtype is None:
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if device.type == "cpu" and cpu_has_native_bfloat16() else torch.float32
    resolved = DTYPE_NAMES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved is None or resolved not in DTYPE_NAMES.values():
        raise ValueError(
            f"dtype={dtype!r} is not a format that networks run in. Allowed: {', '.join(DTYPE_NAMES)}, the torch.dtype "
            "of that name, or None to have one chosen."
        )
    warn_of_slow_dtype(resolved, device)
    return resolved


def warn_of_slow_dtype(dtype: torch.dtype, device: torch.device) -> None:
    """Warn the user if networks are to run in float16 on a CPU."""
    if dtype == torch.float16 and device.type == "cpu":
        warn_user(
            "dtype=float16 on a CPU is about a thousand times slower than float32, as CPUs have no such arithmetic: "
            "use bfloat16 or float32, or dtype=None to have one chosen. Files in float16 are converted on loading."
        )


@cache
def cpu_has_native_bfloat16() -> bool:
    """Whether the processor calculates in bfloat16 itself, where it is faster than float32 and not emulated."""
    flags = _flags_from_torch()
    return not NATIVE_BFLOAT16_FLAGS.isdisjoint(_flags_from_linux() if flags is None else flags)


def _flags_from_torch() -> set[str] | None:
    """What PyTorch found out about the processor; None from a PyTorch that does not tell."""
    get_capabilities = getattr(torch.cpu, "get_capabilities", None)  # public from PyTorch 2.11 on
    if get_capabilities is None:
        return None
    return {name for name, present in get_capabilities().items() if present is True}


def _flags_from_linux(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux: float32 is always right
        return set()
    return {word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split()}
