"""Training of both stages: the same networks and mathematics as everywhere, plus gradients.

config = load_config(DiffusionTraining, "diffusion.toml")
folder = train_diffusion(config, resume=True)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentgen.training.autoencoder import train_autoencoder
    from latentgen.training.config import AutoencoderTraining, DiffusionTraining, load_config
    from latentgen.training.diffusion import train_diffusion

__all__ = ["AutoencoderTraining", "DiffusionTraining", "load_config", "train_autoencoder", "train_diffusion"]

_HOMES = {
    "train_autoencoder": "autoencoder",
    "train_diffusion": "diffusion",
    "AutoencoderTraining": "config",
    "DiffusionTraining": "config",
    "load_config": "config",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and only that (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
