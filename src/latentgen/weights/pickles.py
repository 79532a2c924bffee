"""Tensors out of a pickle, for `latentgen convert` alone: through torch's weights-only reader, which executes nothing.

Nothing else in the package opens a pickle. The reader builds tensors and plain containers; whatever else a file names is refused,
but for the classes that PyTorch Lightning leaves in checkpoints, which stand for an empty object here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentgen.weights.errors import WeightsError
from latentgen.weights.regular_file import RegularFile

ENDINGS = (".ckpt", ".pt", ".pth", ".bin")
LEFT_BY_TRAINING = ("pytorch_lightning.", "lightning.", "lightning_fabric.")
"""Modules whose classes stand in the checkpoints of LDM and Stable Diffusion, beside the weights."""

NESTED = ("state_dict", "module", "model")
"""Where checkpoints keep their weights, beside a training's counters."""


class _Nothing:
    """Stands for an object that is not needed."""

    def __init__(self, *parts: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_pickle(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a `.ckpt`, `.pt`, `.pth` or `.bin`, by their names in it; nothing in the file is executed.

    A1111's embeddings come as `emb_params`, the name that they have in a safetensors file.

    Raises:
        WeightsError: if the file cannot be read, names a class that is no weight's, or holds no tensors.
    """
    path = Path(path)
    RegularFile(path, settled=False).close()
    try:
        stubs: list[Any] = [(_Nothing, name) for name in _named(path) if name.startswith(LEFT_BY_TRAINING)]
        with torch.serialization.safe_globals(stubs):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # a reader of whatever a stranger wrote raises whatever it stumbles over
        told = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        unknown = [name for name in _named(path) if not name.startswith(LEFT_BY_TRAINING)]
        named = f" It names {', '.join(unknown[:5])}, which are no weights." if unknown else ""
        raise WeightsError(
            f"{path} cannot be read as a file of weights ({told}).{named} It was not executed. Fetch another one, in safetensors "
            "if there is one."
        ) from error
    tensors = dict(_tensors(content))
    if not tensors:
        raise WeightsError(f"{path} holds no tensors by name: it is no file of weights.")
    return tensors


def _named(path: Path) -> list[str]:
    """The classes and functions that a pickle names and the reader does not know."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # of another form, which the reader refuses by itself
        return []


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(content, Mapping):
        return
    embedding = content.get("string_to_param")
    if isinstance(embedding, Mapping) and isinstance(vectors := embedding.get("*"), Tensor):
        yield "emb_params", vectors.detach()
        return
    for name in NESTED:
        if isinstance(inner := content.get(name), Mapping) and any(isinstance(x, Tensor) for x in inner.values()):
            content = inner
            break
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            yield name, value.detach()
