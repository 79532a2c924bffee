"""What a file or a folder of weights is and what it is good for, from headers and settings alone."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentgen.pipelines.folder import INDEX, LOADED_BY, LOADERS, How
from latentgen.pipelines.single_file import NETWORKS, make_network
from latentgen.schedulers import SCHEDULERS
from latentgen.schedulers.scheduler import CONFIG_NAME
from latentgen.text.clip import CLASS_NAME, load_clip_text_encoder
from latentgen.weights.adapters import adapter_title, embedding_title
from latentgen.weights.adapters.names import OTHER_MODELS
from latentgen.weights.checksums import recorded_sum
from latentgen.weights.compvis.recognise import UNET, what_it_is
from latentgen.weights.compvis.single_file import Part, read_first_stage, read_single_file
from latentgen.weights.config_files import component_path, read_json
from latentgen.weights.errors import WeightsError
from latentgen.weights.hub import UNUSED_COMPONENTS
from latentgen.weights.pickles import ENDINGS
from latentgen.weights.regular_file import RegularFile
from latentgen.weights.safetensors_io import read_header
from latentgen.weights.weight_files import STEMS, choose, variants

XL = "Stable Diffusion XL"

HEADERS = How(torch.device("meta"), None)
"""Loading that reads no weights and checks everything else."""


@dataclass(frozen=True)
class Component:
    """A part of a model: its name, its class, its parameters, and how many bytes they take in each dtype."""

    name: str
    kind: str
    parameters: int = 0
    dtypes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a file or a folder is.

    Attributes:
        path: as it was given.
        what: in words.
        use: what loads it; "" for nothing here.
        size: bytes of the file, or of a folder's weights.
        components: the parts that were recognised.
        metadata: texts from the header.
        sha256: as it was recorded or computed; None is unknown.
        notes: what else should be known.
        problems: what is wrong with it, each a sentence; it cannot be loaded then.
    """

    path: str
    what: str
    use: str = ""
    size: int = 0
    components: tuple[Component, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    sha256: str | None = None
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def describe(path: str | os.PathLike[str], *, sha256: bool = False) -> Description:
    """Say what is at `path`; no weights are read, unless their SHA-256 is asked for.

    Raises:
        WeightsError: if there is nothing, or nothing that can be read.
    """
    path = Path(path)
    if path.is_dir():
        return _describe_folder(path)
    if path.suffix.lower() in ENDINGS:
        size = RegularFile(path, settled=False).size
        problem = f"It is a pickle, which can run code when opened; `latentgen convert {path.name} OUT` reads its tensors alone."
        return Description(path=str(path), what="a pickle of weights", size=size, problems=(problem,))
    return _describe_file(path, sha256)


def _describe_file(path: Path, sha256: bool) -> Description:
    file = RegularFile(path, settled=False)
    size = file.size
    try:
        header = read_header(path)
    except WeightsError as error:
        return Description(path=str(path), what="a file that cannot be read", size=size, problems=(str(error),))
    digest = file.sha256() if sha256 else recorded_sum(path)
    facts: dict[str, Any] = {"path": str(path), "size": size, "sha256": digest, "metadata": dict(header.metadata)}
    names = header.entries
    if any(name.startswith(UNET) for name in names):
        return _describe_single_file(path, facts)
    try:
        part = read_first_stage(path)
    except WeightsError:
        shapes = {name: entry.shape for name, entry in names.items()}
        for title, call in ((adapter_title(shapes), "load_lora"), (embedding_title(shapes), "load_textual_inversion")):
            if title is not None:
                other = next(
                    (why for starts, why in OTHER_MODELS.items() if any(n.startswith(starts) for n in names)), None
                )
                if other is None and XL in title:
                    other = f"It is for {XL}."
                use = "" if other else f"{call} of a pipeline for that model"
                return Description(
                    what=title, use=use, notes=(f"{other} Nothing here loads it.",) if other else (), **facts
                )
        dtypes = Counter(_short(entry.dtype) for entry in header.entries.values())
        notes = (f"{len(names)} tensors: {', '.join(f'{n} in {d}' for d, n in dtypes.items())}.", what_it_is(names))
        return Description(what="a safetensors file, no whole model", notes=notes, **facts)
    component, problem = _component("vae", part, path)
    use = f"{part.network}.from_single_file"
    return Description(what="an autoencoder alone", use=use, components=(component,), problems=problem, **facts)


def _describe_single_file(path: Path, facts: dict[str, Any]) -> Description:
    notes: list[str] = []
    told = True
    try:
        try:
            found = read_single_file(path)
        except WeightsError as error:
            if "pass prediction_type=" not in str(error):
                raise
            told = False
            notes.append(
                "It does not say what its UNet predicts: loading it needs prediction_type='epsilon' or 'v_prediction'."
            )
            found = read_single_file(path, prediction_type="epsilon")
    except WeightsError as error:
        return Description(what="a whole model in one file, of no known family", problems=(str(error),), **facts)
    described = [_component(name, part, path) for name, part in found.parts.items()]
    if found.averaged:
        notes.append(
            "It holds the training's moving average, which is loaded, and the weights themselves (weights='train')."
        )
    if found.rest:
        notes.append(f"{len(found.rest)} tensors are not used: {', '.join(sorted(found.rest)[:3])}, ...")
    title = f"{found.family.title} ({found.name})" if told else "Stable Diffusion 2"
    return Description(
        what=f"{title}, a whole model in one file",
        use=LOADED_BY[found.family.folder_class],
        components=tuple(component for component, _ in described),
        notes=tuple(notes),
        problems=tuple(problem for _, problems in described for problem in problems),
        **facts,
    )


def _component(name: str, part: Part, path: Path) -> tuple[Component, tuple[str, ...]]:
    try:
        made = make_network(part, HEADERS, str(path), "its shapes")
    except WeightsError as error:
        return Component(name, part.network), (str(error),)
    return _counted(name, made), ()


def _counted(name: str, network: nn.Module) -> Component:
    dtypes: Counter[str] = Counter()
    for parameter in network.parameters():
        dtypes[_short(parameter.dtype)] += parameter.numel() * parameter.dtype.itemsize
    return Component(name, type(network).__name__, sum(p.numel() for p in network.parameters()), dict(dtypes))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _describe_folder(path: Path) -> Description:
    if (path / INDEX).is_file():
        return _describe_model(path)
    if (path / "config.json").is_file():
        return _describe_component(path)
    if (path / CONFIG_NAME).is_file():
        name = str(read_json(path / CONFIG_NAME).get("_class_name"))
        problems = () if name in SCHEDULERS else (f"{name} is not supported; {', '.join(SCHEDULERS)} are.",)
        what = f"a scheduler's settings, {name}"
        return Description(path=str(path), what=what, use=f"{name}.from_pretrained", problems=problems)
    there = ", ".join(sorted(os.listdir(path))[:10]) or "nothing"
    raise WeightsError(f"{path} holds no model: it has no {INDEX} and no config.json; there is {there}.")


def _describe_model(path: Path) -> Description:
    index = read_json(path / INDEX)
    name = index.get("_class_name")
    problems = [] if str(name) in LOADED_BY else [f"{INDEX} is of a {name}, which nothing here loads."]
    components, notes = [], []
    size = 0
    for component, entry in index.items():
        if not isinstance(entry, list) or entry in ([None, None], []):
            continue
        if component in UNUSED_COMPONENTS:
            notes.append(f"{component} is not used.")
            continue
        try:
            kind = tuple(entry)
            if kind not in LOADERS:
                raise WeightsError(f"{INDEX} names {json.dumps(entry)[:100]} as {component}, which is not supported.")
            folder = component_path(path, component)
            if not os.path.isdir(folder):
                raise WeightsError(
                    f"{path} lacks the folder {component}, which {INDEX} promises: fetch the whole model."
                )
            made = LOADERS[kind](folder, replace(HEADERS, variant=_variant(folder), model=str(name)))
            components.append(
                _counted(component, made) if isinstance(made, nn.Module) else Component(component, kind[1])
            )
            size += sum(p.stat().st_size for p in folder.iterdir() if p.suffix == ".safetensors")
        except (WeightsError, TypeError) as error:
            components.append(Component(component, str(entry[-1])))
            problems.append(str(error))
    return Description(
        path=str(path),
        what=f"a model folder, {name}",
        use=LOADED_BY.get(str(name), ""),
        size=size,
        components=tuple(components),
        notes=tuple(notes),
        problems=tuple(problems),
    )


def _variant(folder: Path) -> str | None:
    """A variant of the weights in a folder that has no plain ones."""
    names = os.listdir(folder)
    for stem in STEMS:
        if choose(names, stem, None) is None and (there := variants(names, stem)):
            return there[0]
    return None


def _describe_component(path: Path) -> Description:
    config = read_json(path / "config.json")
    architectures = config.get("architectures")
    name = str(
        config.get("_class_name") or (architectures[0] if isinstance(architectures, list) and architectures else None)
    )
    size = sum(p.stat().st_size for p in path.iterdir() if p.suffix == ".safetensors")
    facts: dict[str, Any] = {"path": str(path), "what": f"a component's folder, {name}", "size": size}
    try:
        if name == CLASS_NAME:
            made: Any = load_clip_text_encoder(path, variant=_variant(path), dtype=None, device=HEADERS.device)
        elif name in NETWORKS:
            made = NETWORKS[name].from_folder(path, dtype=None, device=HEADERS.device, variant=_variant(path))
        else:
            raise WeightsError(
                f"{path / 'config.json'} describes a {name}; {', '.join([*NETWORKS, CLASS_NAME])} are read."
            )
    except WeightsError as error:
        return Description(problems=(str(error),), **facts)
    return Description(use=f"{name}.from_pretrained", components=(_counted(path.name, made),), **facts)
