"""What it is measured on, and how fast that multiplies matrices."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pairing import take_turns

LIBRARIES = ("latentgen", "diffusers", "torch", "transformers", "safetensors", "numpy")


def describe(device: str) -> dict[str, Any]:
    """The machine and the versions."""
    machine: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }
    if device == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return machine


def _version(name: str) -> str:
    """The module's own word: a library that runs from its source tree is not installed."""
    module = __import__(name)
    return str(getattr(module, "__version__", None) or version(name))


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def synchronizer(device: str) -> Callable[[], None]:
    """What waits for the device; nothing for a CPU, whose calls return when they are done."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def matmul_rate(device: str, dtype: torch.dtype, side: int, *, rounds: int = 7) -> float:
    """FLOP/s of a product of two matrices of side x side, the fastest of the ways to ask for one.

    PyTorch hands a product, a linear layer and a 1 x 1 convolution to different libraries; on some CPUs one takes a third
    longer than another, and a network could seem to be faster than the machine. Medians, after a warm-up.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    picture = a.view(1, side, -1, side).transpose(1, 3)  # the rows of a are its pixels, channels last
    kernels = b.view(side, side, 1, 1)
    ways: dict[str, Callable[[], Tensor]] = {
        "product": lambda: a @ b,
        "linear": lambda: F.linear(a, b),
        "convolution": lambda: F.conv2d(picture, kernels),
    }
    calls = 10 if device == "cuda" else 1
    synchronize = synchronizer(device)
    take_turns(ways, 2, calls=calls, synchronize=synchronize)
    turns = take_turns(ways, rounds, calls=calls, synchronize=synchronize)
    return 2 * side**3 / min(median(seconds) for seconds in turns.seconds.values())
