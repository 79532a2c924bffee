"""Model folders: `model_index.json` names the components, a closed table says what may be loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.models.unet import UNet2DConditionModel
from latentgen.schedulers import SCHEDULERS
from latentgen.text import load_clip_text_encoder, load_clip_tokenizer, save_text_encoder, save_tokenizer
from latentgen.weights.config_files import component_path, read_json, write_json
from latentgen.weights.errors import WeightsError

INDEX = "model_index.json"
FORMAT_VERSION = "0.40.0"  # of diffusers, whose layout this is


@dataclass(frozen=True)
class How:
    """How components are loaded: see `Text2ImagePipeline.from_pretrained`."""

    device: torch.device
    dtype: torch.dtype
    variant: str | None


def _scheduler(name: str) -> Callable[[Path, How], Any]:
    def load(folder: Path, how: How) -> Any:
        try:
            return SCHEDULERS[name].from_pretrained(folder)
        except (FileNotFoundError, ValueError) as error:
            said = str(error)
            raise WeightsError(said if str(folder) in said else f"{folder}: {said}") from error

    return load


def _text_encoder(folder: Path, how: How) -> Any:
    return load_clip_text_encoder(folder, variant=how.variant, dtype=how.dtype, device=how.device)


LOADERS: dict[tuple[str, str], Callable[[Path, How], Any]] = {
    ("diffusers", "AutoencoderKL"): lambda folder, how: AutoencoderKL.from_pretrained(
        folder, device=how.device, dtype=how.dtype, variant=how.variant
    ),
    ("diffusers", "UNet2DConditionModel"): lambda folder, how: UNet2DConditionModel.from_pretrained(
        folder, device=how.device, dtype=how.dtype, variant=how.variant
    ),
    ("transformers", "CLIPTextModel"): _text_encoder,
    ("transformers", "CLIPTokenizer"): lambda folder, how: load_clip_tokenizer(folder),
    ("transformers", "CLIPTokenizerFast"): lambda folder, how: load_clip_tokenizer(folder),
    **{("diffusers", name): _scheduler(name) for name in SCHEDULERS},
}
"""Library and class, as `model_index.json` names them. Nothing else is ever loaded."""

SKIPPED = {"safety_checker", "feature_extractor", "image_encoder"}
"""Components that folders hold and no pipeline here uses."""


def read_index(folder: Path, pipelines: Mapping[str, Any] | set[str]) -> dict[str, Any]:
    """Read `model_index.json`, which must name one of `pipelines` as its class."""
    if not (folder / INDEX).is_file():
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise WeightsError(
            f"{folder} is no model folder: it has no {INDEX} (it has {there}). Give the folder that holds {INDEX}."
        )
    index = read_json(folder / INDEX)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in pipelines:
        raise WeightsError(
            f"{folder / INDEX} is of a {name}, which this pipeline cannot load; it loads {', '.join(sorted(pipelines))}."
        )
    return index


def load_components(folder: Path, index: Mapping[str, Any], given: Mapping[str, Any], how: How) -> dict[str, Any]:
    """Load the components named in `given`, except those that are given already (not None).

    Raises:
        WeightsError: for a component that the index does not have, or of a class that is not in the table, naming it;
            and whatever loading it raises. Nothing is loaded before every class has been looked up.
    """
    loaders: dict[str, Callable[[Path, How], Any]] = {}
    for name, component in given.items():
        if component is not None:
            continue
        entry = index.get(name)
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(e, str) for e in entry):
            raise WeightsError(
                f"{folder / INDEX} has no {name} (found {entry!r}): fetch the whole model, or pass {name}=..."
            )
        if (entry[0], entry[1]) not in LOADERS:
            raise WeightsError(
                f"{folder / INDEX} names {entry[0]}.{entry[1]} as {name}, which is not supported; supported are "
                f"{', '.join(sorted(cls for _, cls in LOADERS))}."
            )
        loaders[name] = LOADERS[entry[0], entry[1]]
        if not component_path(folder, name).is_dir():
            raise WeightsError(f"{folder} lacks the folder {name}, which {INDEX} promises: fetch the whole model.")
    return {name: loaders[name](folder / name, how) if name in loaders else given[name] for name in given}


def save_components(
    folder: str | os.PathLike[str],
    pipeline_class: str,
    components: Mapping[str, Any],
    *,
    variant: str | None,
    max_shard_size: int | str,
) -> None:
    """Write every component and, last, `model_index.json`."""
    folder = Path(folder)
    index: dict[str, Any] = {"_class_name": pipeline_class, "_diffusers_version": FORMAT_VERSION}
    for name, component in components.items():
        library, save = _saver(component, variant, max_shard_size)
        save(folder / name)
        index[name] = [library, type(component).__name__]
    index |= {key: [None, None] for key in sorted(SKIPPED)} | {"requires_safety_checker": False}
    write_json(folder / INDEX, index)


def _saver(component: Any, variant: str | None, max_shard_size: int | str) -> tuple[str, Callable[[Path], None]]:
    name = type(component).__name__
    if name == "CLIPTextModel":
        return "transformers", lambda p: save_text_encoder(component, p, variant=variant, max_shard_size=max_shard_size)
    if name == "CLIPTokenizer":
        return "transformers", lambda p: save_tokenizer(component, p)
    if name in SCHEDULERS:
        return "diffusers", component.save_pretrained
    return "diffusers", lambda p: component.save_pretrained(p, variant=variant, max_shard_size=max_shard_size)
