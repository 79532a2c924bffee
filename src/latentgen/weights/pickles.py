"""Tensors out of a pickle, for `latentgen convert` alone: through torch's weights-only reader, which executes nothing.

Nothing else in the package opens a pickle. The reader builds tensors and plain containers; whatever else a file names is refused,
but for classes that trainings leave in checkpoints beside the weights, by name: an empty object of ours stands for each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentgen.weights.errors import WeightsError
from latentgen.weights.regular_file import RegularFile

ENDINGS = (".ckpt", ".pt", ".pth", ".bin")
LIGHTNING = ("pytorch_lightning.", "lightning.", "lightning_fabric.")
"""Modules whose classes stand in the checkpoints of LDM and Stable Diffusion, beside the weights."""

COUNTERS = re.compile(
    r"numpy(\.core|\._core)?\.multiarray\.(scalar|_reconstruct)|numpy\.(ndarray|dtype|dtypes\.\w+)|_codecs\.encode|"
    r"argparse\.Namespace|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|builtins\.(list|dict|int|float)"
)
"""Numbers of NumPy, options, paths and what a defaultdict makes, beside the weights of other trainings."""

MAPPING = "collections.defaultdict"

PARAMETERS = "torch.nn.modules.container.ParameterDict"
"""Holds the vectors of the first embeddings (textual inversion)."""

NESTED = ("state_dict", "module", "model")
"""Where checkpoints keep their weights, beside a training's counters."""


class _Nothing:
    """Stands for an object that is not needed."""

    def __init__(self, *parts: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _mapping(*parts: Any) -> dict[Any, Any]:
    """Stands for a defaultdict: the reader fills plain ones alone."""
    return {}


class _Parameters(dict[str, Any]):
    """Stands for a ParameterDict: what is in it, by name."""

    def __setstate__(self, state: Any) -> None:
        inner = state.get("_parameters") if isinstance(state, Mapping) else None
        self.update(inner if isinstance(inner, Mapping) else {})


def _stub(name: str) -> Callable[..., Any] | None:
    """What stands for a class that the reader does not know; None for one that is not let pass."""
    if name in (PARAMETERS, MAPPING):
        return _Parameters if name == PARAMETERS else _mapping
    return _Nothing if name.startswith(LIGHTNING) or COUNTERS.fullmatch(name) else None


def read_pickle(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a `.ckpt`, `.pt`, `.pth` or `.bin`, by their names in it; nothing in the file is executed.

    A1111's embeddings come as `emb_params`, the name that they have in a safetensors file.

    Raises:
        WeightsError: if the file cannot be read, names a class that is no weight's, or holds no tensors.
    """
    path = Path(path)
    RegularFile(path, settled=False).close()
    try:
        stubs: list[Any] = [(stub, name) for name in _named(path) if (stub := _stub(name)) is not None]
        with torch.serialization.safe_globals(stubs):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # a reader of whatever a stranger wrote raises whatever it stumbles over
        unknown = [name for name in _named(path) if _stub(name) is None]
        told = (
            f"it names {', '.join(map(ascii, unknown[:5]))}, which are no weights" if unknown else type(error).__name__
        )
        raise WeightsError(
            f"{path} cannot be read as a file of weights ({told}). It was not executed. Fetch another one, in safetensors if "
            "there is one."
        ) from error
    tensors = dict(_tensors(content))
    if not tensors:
        raise WeightsError(f"{path} holds no tensors by name: it is no file of weights.")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise WeightsError(f"{path}: {name[:100]!r} is sparse or quantised, which a safetensors file cannot hold.")
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise WeightsError(
                f"{path}: {name[:100]!r} is {tuple(tensor.shape)} and repeats fewer numbers than that: it is no weight."
            )
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
