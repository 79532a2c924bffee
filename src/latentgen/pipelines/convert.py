"""From one form of a model's files to another: single file, folder, pickle."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentgen.pipelines.adapters import merged
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
from latentgen.weights.strict import largest

CPU = torch.device("cpu")
ENDING = ".safetensors"

PIPELINES: tuple[type[Pipeline], ...] = (
    Text2ImagePipeline, InpaintPipeline, SuperResPipeline, UnconditionalPipeline, Class2ImagePipeline, Layout2ImagePipeline,
    Semantic2ImagePipeline,
)  # fmt: skip
"""The first that loads a class of folder loads it whole."""

TITLE = "modelspec.title"

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
    to_file = target.suffix == ENDING
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
        # With LoRAs in float32 and cast after: rounded once.
        pipe = _read_folder(source, torch.float32 if loras and kind else kind, variant)
        if loras:
            changed = _with_loras(pipe.unet, getattr(pipe, "text_encoder", None), loras)
            pipe = type(pipe)(**{**pipe.components, **changed})
            pipe = pipe.to(dtype=kind) if kind else pipe
    else:
        tensors, metadata = _open(source)
        if not any(name.startswith(UNET) for name in tensors):
            return _cast_only(source, target, tensors, metadata, kind, given=bool(loras or family or weights))
        try:
            found = interpret(tensors, metadata, family=family, prediction_type=prediction_type, weights=weights)
        except WeightsError as error:
            raise WeightsError(f"{source}: {error}") from error
        if loras:
            found = _merged(found, source, loras, kind)
        if to_file:
            return _rewrite(found, source, target, metadata, kind, titled=not loras)
        cls = _pipeline_of(found.family.folder_class, source)
        pipe = cls.from_parts(found, source, device=CPU, dtype=kind, tokenizer=tokenizer)
    if to_file:
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
    if target.suffix.lower() in ENDINGS:
        raise ValueError(f"{target} would be a pickle, and none is written: give a name in {ENDING}, or a folder.")
    if target.suffix != ENDING and target.suffix.lower() == ENDING:
        raise ValueError(f"{target} must end in {ENDING}, in small letters.")
    if target.suffix == ENDING:
        check_writable(target)
    elif target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: a single file's name ends in {ENDING}, and any other is a folder.")
    elif target.is_dir() and any(target.iterdir()) and not (target / INDEX).is_file():
        raise ValueError(f"{target} is a folder that holds other things than a model: give the name of a new one.")


def _open(path: Path) -> tuple[Mapping[str, StoredTensor], Mapping[str, str]]:
    """A file's tensors and metadata, of a pickle too."""
    if path.suffix.lower() in ENDINGS:
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
    write_tensors(target, _cast(tensors, dtype, source), kept)
    return target


def _rewrite(
    found: SingleFile,
    source: Path,
    target: Path,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None,
    *,
    titled: bool,
) -> Path:
    """A file from a file: the chosen weights in another dtype, under the training's names, and what other programs look for.

    `titled`: it is the same model, and keeps the title that its author gave it.
    """
    for part in found.parts.values():
        make_network(part, How(torch.device("meta"), None), str(source), f"what {found.name} looks like")
    weights = restore((part.prefix, part.table, part.tensors) for part in found.parts.values())
    tables = {name: tensor for name, tensor in found.rest.items() if not name.startswith((AVERAGE, UNET))}
    kept = {key: value for key, value in metadata.items() if key not in STALE}
    title = kept.get(TITLE) if titled else None
    write_tensors(target, _cast(weights, dtype, source) | tables, kept | model_spec(found, title or target.stem))
    return target


def _cast(tensors: Mapping[str, StoredTensor], dtype: torch.dtype | None, source: Path) -> dict[str, StoredTensor]:
    """Tensors in a dtype, checked as they are read: what cannot be used is not written."""

    def cast(name: str) -> Callable[[Tensor], Tensor]:
        def change(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            changed = tensor if dtype is None else tensor.to(dtype)
            if not changed.is_meta and changed.numel() and not math.isfinite(largest(changed)):
                remedy = (
                    "the file is damaged" if dtype is None else f"it may be too large for {dtype}: try another dtype"
                )
                raise WeightsError(f"{source}: {name} has values that are not finite; {remedy}.")
            return changed

        return change

    return {name: tensor.then(cast(name)) for name, tensor in tensors.items()}


def _merged(
    found: SingleFile, source: Path, loras: Sequence[tuple[str | os.PathLike[str], float]], dtype: torch.dtype | None
) -> SingleFile:
    """What was found in a file with adapters in its weights; these are float32 if they are cast later, so rounded once."""
    how = How(CPU, None if dtype is None else torch.float32)
    encoder = found.parts.get("conditioner")
    if encoder is None or encoder.network not in ("CLIPTextModel", "LDMBertModel"):
        raise ValueError(f"LoRAs are for models of texts, and {source} is {found.family.title}: leave them out.")
    parts = {"unet": found.parts["unet"], "text_encoder": encoder}
    networks = {
        name: make_network(part, how, str(source), f"what {found.name} looks like") for name, part in parts.items()
    }
    changed = _with_loras(networks["unet"], networks["text_encoder"], loras)
    made = {}
    for name, part in parts.items():
        tensors = {n: StoredTensor.of(tensor) for n, tensor in changed[name].state_dict().items()}
        if part.network == "CLIPTextModel":
            tensors = {f"text_model.{n.removeprefix('text_model.')}": tensor for n, tensor in tensors.items()}
        made["conditioner" if name == "text_encoder" else name] = replace(part, tensors=tensors)
    return replace(found, parts={**found.parts, **made})


def _with_loras(unet: Any, text_encoder: Any, loras: Sequence[tuple[str | os.PathLike[str], float]]) -> dict[str, Any]:
    """The networks with adapters in their weights, for good; nothing else of a pipeline is needed."""
    if text_encoder is None:
        raise ValueError("LoRAs are for models of texts, and this is none: leave them out.")
    return merged(unet, text_encoder, loras)
