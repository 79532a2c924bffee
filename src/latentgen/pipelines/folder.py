"""Model folders: `model_index.json` names the components, a closed table says what may be loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.models.conditioners import ClassEmbedder, SpatialRescaler
from latentgen.models.ldm_bert import LDMBertModel
from latentgen.models.model import Model
from latentgen.models.unet import UNet2DConditionModel
from latentgen.models.unet2d import UNet2DModel
from latentgen.models.vq_model import VQModel
from latentgen.runtime.warn import warn_user
from latentgen.schedulers import SCHEDULERS, Scheduler
from latentgen.schedulers.config import OF_LATENTS, for_latents
from latentgen.schedulers.scheduler import CONFIG_NAME
from latentgen.text import (
    LayoutTokenizer,
    load_bert_tokenizer,
    load_clip_text_encoder,
    load_clip_tokenizer,
    save_bert_tokenizer,
    save_text_encoder,
    save_tokenizer,
)
from latentgen.weights.config_files import component_path, read_json, write_json
from latentgen.weights.errors import WeightsError
from latentgen.weights.hub import UNUSED_COMPONENTS

INDEX = "model_index.json"
FORMAT_VERSION = "0.40.0"  # of diffusers, whose layout this is


@dataclass(frozen=True)
class How:
    """How components are loaded: see `Text2ImagePipeline.from_pretrained`. Without a dtype they keep that of their files."""

    device: torch.device
    dtype: torch.dtype | None
    variant: str | None = None
    scheduler_defaults: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""  # the `_class_name` of the folder


OF_PIXELS = {"low_res_scheduler"}
"""Schedulers of a folder that put noise on pictures: their files mean what their classes do."""


def _scheduler(name: str) -> Callable[[Path, How], Any]:
    def load(folder: Path, how: How) -> Any:
        path = folder / CONFIG_NAME
        config = read_json(path)
        try:
            meant = config if folder.name in OF_PIXELS else for_latents(config, how.scheduler_defaults)
            scheduler = SCHEDULERS[name].from_config(meant)
        except ValueError as error:
            raise WeightsError(f"{path}: {error}") from error
        if folder.name not in OF_PIXELS and how.scheduler_defaults == OF_LATENTS:
            _warn_of_other_values(path, scheduler, {key: meant[key] for key in OF_LATENTS})
        return scheduler

    return load


def _warn_of_other_values(path: Path, scheduler: Scheduler, said: Mapping[str, Any]) -> None:
    """Tell once of what the file says, and diffusers would not do, for a latent model."""
    wrong = []
    if said["steps_offset"] != 1 and scheduler.plan(1) != replace(scheduler, steps_offset=1).plan(1):
        wrong.append("steps_offset")
    if said["clip_sample"]:
        wrong.append("clip_sample")
    if wrong:
        theirs = {key: OF_LATENTS[key] for key in wrong}
        warn_user(
            f"{path} says {' and '.join(f'{key}={said[key]!r}' for key in wrong)}, unusual for a latent model, and is followed; "
            f"diffusers puts {' and '.join(f'{key} to {value!r}' for key, value in theirs.items())}. To do so too, change the "
            f"file, or use pipe.scheduler = type(pipe.scheduler).from_config({{**pipe.scheduler.config, **{theirs!r}}})."
        )


def _save_scheduler(scheduler: Scheduler, folder: Path) -> None:
    """Write what `_scheduler` reads as the same scheduler: a class's default that is no latent model's, too."""
    own = {key: getattr(scheduler, key) for key in OF_LATENTS if hasattr(scheduler, key)}
    said = {key: value for key, value in own.items() if value != OF_LATENTS[key]}
    write_json(folder / CONFIG_NAME, {"_class_name": type(scheduler).__name__, **scheduler.config, **said})


def _unet(folder: Path, how: How) -> Any:
    unet = UNet2DConditionModel.from_folder(folder, device=how.device, dtype=how.dtype, variant=how.variant)
    size = unet.config.sample_size
    version = read_json(folder / "config.json").get("_diffusers_version")
    if isinstance(size, int) and size < 64 and _is_before_0_9(version):
        # The first published models say 32 and were trained on 64; diffusers believes no smaller size of that time.
        unet.config = replace(unet.config, sample_size=64)
    return unet


def _is_before_0_9(version: Any) -> bool:
    numbers = re.match(r"v?(\d+)(?:\.(\d+))?", version) if isinstance(version, str) else None
    return numbers is not None and (int(numbers[1]), int(numbers[2] or 0)) < (0, 9)


def _text_encoder(folder: Path, how: How) -> Any:
    return load_clip_text_encoder(folder, variant=how.variant, dtype=how.dtype, device=how.device)


def _network(cls: type[Model[Any]]) -> Callable[[Path, How], Any]:
    def load(folder: Path, how: How) -> Any:
        return cls.from_folder(folder, device=how.device, dtype=how.dtype, variant=how.variant)

    return load


def _vq_model(folder: Path, how: How) -> Any:
    vae: VQModel = _network(VQModel)(folder, how)
    if how.model == "LDMSuperResolutionPipeline" and vae.config.scaling_factor == UNUSED_SCALE:
        vae.config = replace(vae.config, scaling_factor=1.0)
    return vae


UNUSED_SCALE = 0.18215
"""What diffusers writes into a VQModel's config by default, and never applies in super-resolution."""

LIBRARY_OF = {
    "CLIPTextModel": "transformers",
    "CLIPTokenizer": "transformers",
    "BertTokenizer": "transformers",
    "ClassEmbedder": "latentgen",
    "SpatialRescaler": "latentgen",
    "LayoutTokenizer": "latentgen",
    "LDMBertModel": "latent_diffusion",
}
"""What `model_index.json` says of a class; "diffusers" of any other."""


LOADERS: dict[tuple[str, str], Callable[[Path, How], Any]] = {
    ("diffusers", "AutoencoderKL"): _network(AutoencoderKL),
    ("diffusers", "VQModel"): _vq_model,
    ("diffusers", "UNet2DConditionModel"): _unet,
    ("diffusers", "UNet2DModel"): _network(UNet2DModel),
    ("latentgen", "ClassEmbedder"): _network(ClassEmbedder),
    ("latentgen", "SpatialRescaler"): _network(SpatialRescaler),
    ("latentgen", "LayoutTokenizer"): lambda folder, how: LayoutTokenizer.from_pretrained(folder),
    ("latent_diffusion", "LDMBertModel"): _network(LDMBertModel),
    ("transformers", "CLIPTextModel"): _text_encoder,
    ("transformers", "CLIPTokenizer"): lambda folder, how: load_clip_tokenizer(folder),
    ("transformers", "CLIPTokenizerFast"): lambda folder, how: load_clip_tokenizer(folder),
    ("transformers", "BertTokenizer"): lambda folder, how: load_bert_tokenizer(folder),
    ("transformers", "BertTokenizerFast"): lambda folder, how: load_bert_tokenizer(folder),
    **{("diffusers", name): _scheduler(name) for name in SCHEDULERS},
}
"""Library and class, as `model_index.json` names them. Nothing else is ever loaded."""


LOADED_BY = {
    "StableDiffusionPipeline": "Text2ImagePipeline, Img2ImgPipeline or InpaintPipeline",
    "StableDiffusionInpaintPipeline": "InpaintPipeline",
    "StableDiffusionUpscalePipeline": "SuperResPipeline",
    "LDMPipeline": "UnconditionalPipeline",
    "LDMTextToImagePipeline": "Text2ImagePipeline, Img2ImgPipeline or InpaintPipeline",
    "LDMSuperResolutionPipeline": "SuperResPipeline",
    "LDMInpaintPipeline": "InpaintPipeline",
    "Class2ImagePipeline": "Class2ImagePipeline",
    "Layout2ImagePipeline": "Layout2ImagePipeline",
    "Semantic2ImagePipeline": "Semantic2ImagePipeline",
}
"""What loads a class, for the pipelines that do not to say so."""


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
        other = f" Use {LOADED_BY[name]}." if isinstance(name, str) and name in LOADED_BY else ""
        raise WeightsError(
            f"{folder / INDEX} is of a {name}, which this pipeline cannot load; it loads {', '.join(sorted(pipelines))}.{other}"
        )
    return index


def load_components(
    folder: Path,
    index: Mapping[str, Any],
    given: Mapping[str, Any],
    how: How,
    *,
    names: Mapping[str, str],
    optional: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Load the components named in `given`, except those that are given already (not None).

    Args:
        folder: of the model.
        index: its `model_index.json`.
        given: every component by name, None where it is to be loaded.
        how: where to, and in which form.
        names: what the folder calls each component.
        optional: components that stay None where the index has none.

    Raises:
        WeightsError: for a component that the index does not have, or of a class that is not in the table, naming it;
            and whatever loading it raises. Nothing is loaded before every class has been looked up.
    """
    loaders: dict[str, Callable[[Path, How], Any]] = {}
    for component, name in names.items():
        entry = index.get(name)
        if given[component] is not None or (component in optional and entry in (None, [None, None])):
            continue
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(e, str) for e in entry):
            raise WeightsError(
                f"{folder / INDEX} has no {name} (found {entry!r}): fetch the whole model, or pass {name}=..."
            )
        if (entry[0], entry[1]) not in LOADERS:
            supported = [cls for _, cls in LOADERS if (cls in SCHEDULERS) == name.endswith("scheduler")]
            raise WeightsError(
                f"{folder / INDEX} names {entry[0]}.{entry[1]} as {name}, which is not supported; supported are "
                f"{', '.join(sorted(supported))}. {_remedy(folder, name)}"
            )
        loaders[component] = LOADERS[entry[0], entry[1]]
        if not component_path(folder, name).is_dir():
            raise WeightsError(f"{folder} lacks the folder {name}, which {INDEX} promises: fetch the whole model.")
    how = replace(how, model=index["_class_name"])
    return {c: loaders[c](folder / names[c], how) if c in loaders else given[c] for c in given}


def _remedy(folder: Path, name: str) -> str:
    if not name.endswith("scheduler"):
        return f"Use a model made of these, or pass {name}=..."
    return (
        f"Pass one of these as {name}=..., with the model's settings: "
        f"{name}=DPMSolverMultistepScheduler.from_pretrained({str(folder / name)!r})."
    )


def save_components(
    folder: str | os.PathLike[str],
    pipeline_class: str,
    components: Mapping[str, Any],
    *,
    variant: str | None,
    max_shard_size: int | str,
) -> None:
    """Write every component and, last, `model_index.json`.

    Raises:
        ValueError: for a component of a class that could not be loaded again; nothing is written then.
    """
    folder = Path(folder)
    index: dict[str, Any] = {"_class_name": pipeline_class, "_diffusers_version": FORMAT_VERSION}
    savers = {}
    for name, component in components.items():
        if component is None:
            index[name] = [None, None]
            continue
        savers[name] = _saver(component, variant, max_shard_size)
        kind = type(component).__name__
        index[name] = [library := LIBRARY_OF.get(kind, "diffusers"), kind]
        if (library, kind) not in LOADERS:
            raise ValueError(
                f"{name} is a {kind}, which no folder can hold: put a component of the class it derives from there."
            )
    for name, save in savers.items():
        save(folder / name)
    index |= {key: [None, None] for key in sorted(UNUSED_COMPONENTS)} | {"requires_safety_checker": False}
    write_json(folder / INDEX, index)


def _saver(component: Any, variant: str | None, max_shard_size: int | str) -> Callable[[Path], None]:
    name = type(component).__name__
    if name == "CLIPTextModel":
        return lambda p: save_text_encoder(component, p, variant=variant, max_shard_size=max_shard_size)
    if name == "CLIPTokenizer":
        return lambda p: save_tokenizer(component, p)
    if name == "BertTokenizer":
        return lambda p: save_bert_tokenizer(component, p)
    if name == "LayoutTokenizer":
        return lambda p: component.save_pretrained(p)
    if name in SCHEDULERS:
        return lambda p: _save_scheduler(component, p)
    return lambda p: component.save_pretrained(p, variant=variant, max_shard_size=max_shard_size)
