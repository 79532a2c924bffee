"""Pipelines from and to a single file of the layout that CompVis and Stability publish in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.models.conditioners import ClassEmbedder, SpatialRescaler
from latentgen.models.first_stage import FirstStage
from latentgen.models.ldm_bert import LDMBertModel
from latentgen.models.unet import UNet2DConditionModel
from latentgen.models.unet2d import UNet2DModel
from latentgen.models.vq_model import VQModel
from latentgen.pipelines.folder import LOADED_BY, How
from latentgen.schedulers import SCHEDULERS
from latentgen.text import find_tokenizer, make_clip_text_encoder
from latentgen.weights.compvis.conditioners import CONDITIONERS
from latentgen.weights.compvis.families import V
from latentgen.weights.compvis.first_stage import first_stage_table
from latentgen.weights.compvis.recognise import FIRST_STAGE, STAGE, UNET
from latentgen.weights.compvis.single_file import Part, SingleFile, interpret, restore
from latentgen.weights.compvis.table import Table
from latentgen.weights.compvis.unet import unet_table
from latentgen.weights.errors import WeightsError
from latentgen.weights.safetensors_io import write_tensors
from latentgen.weights.stored import StoredTensor
from latentgen.weights.strict import fill

NETWORKS: dict[str, Any] = {
    cls.__name__: cls
    for cls in (AutoencoderKL, VQModel, UNet2DConditionModel, UNet2DModel, LDMBertModel, ClassEmbedder, SpatialRescaler)
}

CONDITIONER_OF = {
    "Class2ImagePipeline": "class_embedder",
    "Layout2ImagePipeline": "layout_encoder",
    "Semantic2ImagePipeline": "label_rescaler",
}
"""What a pipeline calls the component behind a file's `cond_stage_model`; others call it text_encoder."""

LOW_RES_SCHEDULER = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear", "clip_sample": True}
"""Of Stable Diffusion's x4 upscaler: puts noise on the picture that it enlarges."""


def load_single_file(
    found: SingleFile,
    given: Mapping[str, Any],
    how: How,
    *,
    path: Path,
    pipeline: str,
    folder_classes: tuple[str, ...],
    tokenizer: Any,
) -> dict[str, Any]:
    """The components of a pipeline, from a file.

    Args:
        found: what the file holds.
        given: every component by name, None where it comes from the file.
        how: where to, and in which form.
        path: of the file.
        pipeline: the name of the pipeline's class, and `folder_classes` what it can load.
        tokenizer: see `find_tokenizer`.

    Raises:
        WeightsError: for a model of another pipeline, which is named, or a component that the file lacks.
    """
    facts = found.family
    if facts.folder_class not in folder_classes:
        raise WeightsError(
            f"{path} is {facts.title} ({found.name}), which {pipeline} cannot load: use {LOADED_BY[facts.folder_class]}."
        )
    made: dict[str, Any] = dict(given)

    def take(name: str, make: Callable[[], Any]) -> None:
        if name in made and made[name] is None:
            made[name] = make()

    conditioner = CONDITIONER_OF.get(facts.folder_class, "text_encoder")
    names = {"unet": "unet", "vae": "vqvae" if "vqvae" in made else "vae", "conditioner": conditioner}
    if tokenizer is not None and "tokenizer" not in made:
        raise WeightsError(f"{pipeline} has no tokenizer: leave it out.")
    if facts.looks.conditioner in ("clip", "open clip", "bert") and conditioner == "text_encoder":
        # Before the weights are read: it is the likeliest thing to be missing.
        kind = facts.looks.conditioner
        take("tokenizer", lambda: find_tokenizer(kind, tokenizer, path))
    take("scheduler", lambda: _scheduler(found.scheduler))
    if facts.folder_class == "StableDiffusionUpscalePipeline":
        take("low_res_scheduler", lambda: SCHEDULERS["DDPMScheduler"].from_config(LOW_RES_SCHEDULER))
    expected = [*names] if facts.looks.conditioner not in (None, "first stage") else ["unet", "vae"]
    if lacking := [names[part] for part in expected if part not in found.parts and made[names[part]] is None]:
        raise WeightsError(
            f"{path} holds a part of {facts.title} only: it has no {' and no '.join(lacking)}. Pass {lacking[0]}=..., a "
            "component of another model of this family."
        )
    for part, name in names.items():
        if part in found.parts:
            settings = f"what {found.name} looks like"
            take(name, partial(make_network, found.parts[part], how, str(path), settings))
    if "layout_tokenizer" in made and made["layout_tokenizer"] is None:
        raise WeightsError(
            f"{path} does not hold the names of its classes: pass layout_tokenizer=LayoutTokenizer(class_names=[...])."
        )
    return made


def make_network(part: Part, how: How, source: str, settings: str) -> Any:
    """The network of a part of a file; `source` and `settings` are for errors.

    Raises:
        WeightsError: if its tensors do not fit it.
    """
    where: dict[str, Any] = {"dtype": how.dtype, "device": how.device, "source": source, "settings": settings}
    if part.network == "CLIPTextModel":
        return make_clip_text_encoder(part.config, part.tensors, **where)
    model = NETWORKS[part.network].on_meta(part.config, source)
    fill(model, part.tensors, **where)
    return model


def _scheduler(config: Mapping[str, Any]) -> Any:
    settings = dict(config)
    return SCHEDULERS[settings.pop("_class_name")].from_config(settings)


INERT = frozenset({"sample_size", "force_upcast"})
"""Settings that a single file does not keep, and no picture depends on but by its size."""


def save_single_file(
    components: Mapping[str, Any], folder_class: str, path: Path, *, family: str | None, metadata: Mapping[str, str]
) -> None:
    """Write a pipeline's weights in the layout that its family is published in.

    Raises:
        ValueError: for a model that such a file could not hold without loss: what would be read back is compared first.
    """
    try:
        tensors = restore(_parts_to_save(components))
    except WeightsError as error:
        raise ValueError(str(error)) from error
    vae, scheduler = components.get("vae", components.get("vqvae")), components["scheduler"]
    zero_snr, prediction = scheduler.rescale_betas_zero_snr, scheduler.prediction_type
    if zero_snr:
        tensors["ztsnr"] = StoredTensor.of(torch.zeros(0))
    try:
        found = interpret(tensors, {}, family=family, prediction_type=prediction)
    except WeightsError as error:
        raise ValueError(f"the model cannot be a single file: {error} Save it as a folder: save_pretrained.") from error
    facts = found.family
    if not math.isclose(vae.config.scaling_factor, facts.scale, rel_tol=1e-6):
        tensors["scale_factor"] = StoredTensor.of(torch.tensor(vae.config.scaling_factor))
        found = interpret(tensors, {}, family=family, prediction_type=prediction)
    if prediction == V != facts.prediction:
        tensors["v_pred"] = StoredTensor.of(torch.zeros(0))
    _check_same(components, found, folder_class)
    write_tensors(path, tensors, model_spec(found, path.stem) | dict(metadata))


def model_spec(found: SingleFile, title: str) -> dict[str, str]:
    """What a file says of itself to other programs (ModelSpec 1.0)."""
    prediction = found.scheduler["prediction_type"]
    said = {}
    if "vae" in found.parts:
        side = found.family.sample_size * 2 ** (len(found.parts["vae"].config["block_out_channels"]) - 1)
        said = {"modelspec.resolution": f"{side}x{side}"}
    return said | {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": found.family.architecture,
        "modelspec.implementation": "https://github.com/CompVis/latent-diffusion",
        "modelspec.title": title,
        "modelspec.prediction_type": "v" if prediction == V else prediction,
    }


def _parts_to_save(components: Mapping[str, Any]) -> Iterator[tuple[str, Table, Mapping[str, StoredTensor]]]:
    networks: list[Any] = [component for component in components.values() if isinstance(component, nn.Module)]
    for component in networks:
        tensors = {name: StoredTensor.of(tensor) for name, tensor in component.state_dict().items()}
        kind = type(component).__name__
        if kind == "CLIPTextModel":
            tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
            config = component.config.to_dict()
            how = CONDITIONERS["clip" if config["hidden_act"] == "quick_gelu" else "open clip"]
        else:
            config = asdict(component.config)
        if isinstance(component, UNet2DModel | UNet2DConditionModel):
            levels = len(config["block_out_channels"])
            sizes = component.config.head_sizes if isinstance(component, UNet2DModel) else (1,) * levels
            yield UNET, unet_table(config | {"attention_head_dim": sizes}), tensors
        elif isinstance(component, FirstStage):
            yield FIRST_STAGE, first_stage_table(config), tensors
        else:
            if kind != "CLIPTextModel":
                how = next(how for how in CONDITIONERS.values() if how.network == kind)
            yield STAGE + how.prefix, how.table(config), tensors


def _check_same(components: Mapping[str, Any], found: SingleFile, folder_class: str) -> None:
    """Refuse what would be read back as another model: a file does not say everything of it."""
    differing = [] if found.family.folder_class == folder_class else ["the pipeline"]
    read = SCHEDULERS[found.scheduler["_class_name"]].from_config(
        {k: v for k, v in found.scheduler.items() if k[0] != "_"}
    )
    if not torch.equal(read.schedule.alphas_cumprod, components["scheduler"].schedule.alphas_cumprod):
        differing.append("the noise schedule")
    for part in found.parts.values():
        (component,) = [c for c in components.values() if type(c).__name__ == part.network]
        if part.network == "CLIPTextModel":
            ours, theirs = component.config.to_dict(), dict(part.config)
            ours, theirs = ({k: c[k] for k in CLIP_SETTINGS} for c in (ours, theirs))
        else:
            ours = asdict(component.config)
            try:
                theirs = asdict(NETWORKS[part.network].on_meta(part.config, part.network).config)
            except WeightsError as error:
                raise ValueError(
                    f"a single file of {found.family.title} would be read as another model: {error} Save it as a folder: "
                    "save_pretrained."
                ) from error
        attends = ["Attn" in kind for kind in ours.get("down_block_types", ())]
        differing += [
            f"{key}={ours[key]!r} of {part.network}"
            for key in ours
            if key not in INERT
            and not (key == "upcast_attention" and theirs[key])  # read back as the more precise one
            and not _alike(ours[key], theirs[key], attends if key in OF_ATTENTION else ())
        ]
    if differing:
        raise ValueError(
            f"the model looks like {found.family.title} ({found.name}) and differs in {', '.join(differing)}, which a single "
            "file does not say: it would be read back as another model. Save it as a folder: save_pretrained."
        )


CLIP_SETTINGS = ("hidden_act", "num_attention_heads", "num_hidden_layers")


OF_ATTENTION = ("only_cross_attention",)
"""Settings that mean nothing at a level that does not attend."""


def _alike(ours: Any, theirs: Any, counts: Sequence[bool]) -> bool:
    """Whether two settings mean the same: one for all levels is as many equal ones; `counts` says at which it has a meaning."""
    if isinstance(theirs, tuple) and not isinstance(ours, tuple):
        ours = (ours,) * len(theirs)
    if counts:
        ours, theirs = ([value for value, there in zip(v, counts, strict=True) if there] for v in (ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return bool(ours == theirs)
