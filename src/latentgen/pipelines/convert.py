"""From one form of a model's files to another: single file, folder, pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentgen.pipelines.class2image import Class2ImagePipeline
from latentgen.pipelines.folder import INDEX, LOADED_BY, How
from latentgen.pipelines.inpaint import InpaintPipeline
from latentgen.pipelines.layout2image import Layout2ImagePipeline
from latentgen.pipelines.pipeline import Pipeline
from latentgen.pipelines.semantic2image import Semantic2ImagePipeline
from latentgen.pipelines.single_file import make_network, model_spec
from latentgen.pipelines.superres import SuperResPipeline
from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.pipelines.unconditional import UnconditionalPipeline
from latentgen.runtime.device import DTYPE_NAMES
from latentgen.weights.atomic import check_writable
from latentgen.weights.compvis.recognise import AVERAGE, UNET, what_it_is
from latentgen.weights.compvis.single_file import SingleFile, interpret, restore
from latentgen.weights.config_files import read_json
from latentgen.weights.errors import WeightsError
from latentgen.weights.pickles import ENDINGS, read_pickle
from latentgen.weights.safetensors_io import open_with_metadata, write_tensors
from latentgen.weights.stored import StoredTensor

CPU = torch.device("cpu")
ENDING = ".safetensors"

PIPELINES: tuple[type[Pipeline], ...] = (
    Text2ImagePipeline, InpaintPipeline, SuperResPipeline, UnconditionalPipeline, Class2ImagePipeline, Layout2ImagePipeline,
    Semantic2ImagePipeline,
)  # fmt: skip
"""The first that loads a class of folder loads it whole."""

STALE = (
    "format",
    "modelspec.hash_sha256",
    "modelspec.prediction_type",
    "modelspec.architecture",
    "modelspec.sai_model_spec",
)
"""Metadata that is not true of another file, or is written anew."""


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    family: str | None = None,
    prediction_type: str | None = None,
    weights: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    loras: Sequence[tuple[str | os.PathLike[str], float]] = (),
    variant: str | None = None,
) -> Path:
    """Write a model in another form.

    Args:
        source: a single file, a model folder, or a pickle (`.ckpt`, `.pt`, `.pth`, `.bin`), which torch's weights-only reader
            opens; of an adapter or a component alone the tensors are written as they are.
        target: a name that ends in ".safetensors" is a single file, any other a folder.
        dtype: of the weights that are written; None keeps them as they are.
        family, prediction_type, weights, tokenizer: as in `Text2ImagePipeline.from_single_file`.
        loras: files of adapters and their scales, which are added to the weights.
        variant: of a folder: which of its files are read.

    Returns:
        What was written.

    Raises:
        WeightsError: for files that cannot be read, or are of no known form.
        ValueError: for arguments that break their rule, and for a model that the other form cannot hold.
        OSError: if it cannot be written.
    """
    source, target = Path(source), Path(target)
    kind = None if dtype is None else _dtype(dtype)
    _check_target(target)
    of_a_file = {"prediction_type": prediction_type, "weights": weights, "tokenizer": tokenizer}
    for name, value in of_a_file.items() if source.is_dir() else [("variant", variant)]:
        if value is not None:
            kind_of_source = "a folder" if source.is_dir() else "a file"
            raise ValueError(f"{name}={value!r} has no meaning for {source}, which is {kind_of_source}: leave it out.")
    metadata: Mapping[str, str] = {}
    pipe: Any
    if source.is_dir():
        pipe = _read_folder(source, kind, variant)
    else:
        tensors, metadata = _open(source)
        if not any(name.startswith(UNET) for name in tensors):
            return _cast_only(source, target, tensors, metadata, kind, given=bool(loras or family or weights))
        try:
            found = interpret(tensors, metadata, family=family, prediction_type=prediction_type, weights=weights)
        except WeightsError as error:
            raise WeightsError(f"{source}: {error}") from error
        if target.suffix == ENDING and not loras:
            return _rewrite(found, source, target, metadata, kind)
        cls = _pipeline_of(found.family.folder_class, source)
        pipe = cls.from_parts(found, source, device=CPU, dtype=kind, tokenizer=tokenizer)
    if loras:
        pipe = _with_loras(pipe, loras)
    if target.suffix == ENDING:
        kept = {key: value for key, value in metadata.items() if key not in STALE}
        pipe.save_single_file(target, family=family, metadata=kept)
    else:
        pipe.save_pretrained(target)
    return target


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = DTYPE_NAMES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPE_NAMES.values():
        raise ValueError(
            f"dtype={dtype!r} must be one of {', '.join(DTYPE_NAMES)}, or None to keep what the files have."
        )
    return found


def _check_target(target: Path) -> None:
    if target.suffix in ENDINGS:
        raise ValueError(f"{target} would be a pickle, and none is written: give a name in {ENDING}, or a folder.")
    if target.suffix == ENDING:
        check_writable(target)
    elif target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: a single file's name ends in {ENDING}, and any other is a folder.")


def _open(path: Path) -> tuple[Mapping[str, StoredTensor], Mapping[str, str]]:
    """A file's tensors and metadata, of a pickle too."""
    if path.suffix in ENDINGS:
        return {name: StoredTensor.of(tensor) for name, tensor in read_pickle(path).items()}, {}
    return open_with_metadata(path)


def _read_folder(folder: Path, dtype: torch.dtype | None, variant: str | None) -> Any:
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    cls = _pipeline_of(index.get("_class_name"), folder)
    return cls.from_folder(folder, device=CPU, dtype=dtype, variant=variant)


def _pipeline_of(folder_class: Any, source: Path) -> type[Pipeline]:
    for cls in PIPELINES:
        if folder_class in cls.folder_classes:
            return cls
    raise WeightsError(
        f"{source} holds no whole model that is known ({INDEX}: {folder_class}); known: {', '.join(LOADED_BY)}."
    )


def _cast_only(
    source: Path,
    target: Path,
    tensors: Mapping[str, StoredTensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None,
    *,
    given: bool,
) -> Path:
    """An adapter, an embedding or a component alone: the same tensors, in another file or dtype."""
    if target.suffix != ENDING or given:
        raise ValueError(
            f"{source} holds no whole model: its tensors can be written into a file in {ENDING}, as they are or in another "
            f"dtype, and nothing else. {what_it_is(tensors)}"
        )

    kept = {key: value for key, value in metadata.items() if key not in ("format", "modelspec.hash_sha256")}
    write_tensors(target, _cast(tensors, dtype), kept)
    return target


def _rewrite(
    found: SingleFile, source: Path, target: Path, metadata: Mapping[str, str], dtype: torch.dtype | None
) -> Path:
    """A file from a file: the chosen weights in another dtype, under the training's names, and what other programs look for."""
    for part in found.parts.values():
        make_network(part, How(torch.device("meta"), None), str(source), f"what {found.name} looks like")
    tensors = restore((part.prefix, part.table, part.tensors) for part in found.parts.values())
    tensors |= {name: tensor for name, tensor in found.rest.items() if not name.startswith((AVERAGE, UNET))}
    kept = {key: value for key, value in metadata.items() if key not in STALE}
    write_tensors(target, _cast(tensors, dtype), kept | model_spec(found, target.stem))
    return target


def _cast(tensors: Mapping[str, StoredTensor], dtype: torch.dtype | None) -> dict[str, StoredTensor]:
    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return dict(tensors) if dtype is None else {name: tensor.then(cast) for name, tensor in tensors.items()}


def _with_loras(pipe: Any, loras: Sequence[tuple[str | os.PathLike[str], float]]) -> Any:
    """The pipeline with adapters in its networks' weights, for good."""
    if not hasattr(pipe, "load_lora"):
        raise ValueError(f"LoRAs are for models of texts, and this is one of {type(pipe).__name__}: leave them out.")
    for number, (path, scale) in enumerate(loras):
        pipe.load_lora(path, scale=scale, name=str(number))
    parts = pipe.adapted()()
    return type(pipe)(**{**pipe.components, "unet": parts.unet, "text_encoder": parts.text_encoder})
