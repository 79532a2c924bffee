"""A single file of a whole model, or of an autoencoder: what it is, and its tensors by component; and the way back."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from latentgen.weights.compvis.conditioners import CONDITIONERS
from latentgen.weights.compvis.families import (
    EPSILON,
    FAMILIES,
    LATENT_SCALES,
    SAME_AS,
    Family,
    V,
    likenesses,
)
from latentgen.weights.compvis.first_stage import first_stage_config, first_stage_table, with_first_names
from latentgen.weights.compvis.recognise import (
    AVERAGE,
    FIRST_STAGE,
    FIRST_STAGE_MARK,
    PREDICTIONS,
    STAGE,
    UNET,
    agreed,
    grouped,
    kind_of_conditioner,
    kind_of_first_stage,
    look,
    recognise,
    shapes_of,
    told_prediction,
    what_it_is,
)
from latentgen.weights.compvis.table import Table
from latentgen.weights.compvis.unet import unet_config, unet_table
from latentgen.weights.errors import WeightsError
from latentgen.weights.safetensors_io import open_tensors, open_with_metadata
from latentgen.weights.stored import StoredTensor

ALONE = (FIRST_STAGE, "vae.", "")  # prefixes of an autoencoder's file
LISTED = 10

SCHEDULE = (
    r"betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod|log_one_minus_alphas_cumprod|"
    r"sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_variance|posterior_log_variance_clipped|"
    r"posterior_mean_coef[12]"
)
NO_WEIGHTS = re.compile(
    rf"(?:low_scale_model\.)?(?:{SCHEDULE})|lvlb_weights|logvar|scale_factor|v_pred|ztsnr|denoiser\.sigmas|epoch|global_step|"
    r"embedding_manager\..+|model_ema\.(?:decay|num_updates)"
)
"""Tensors outside the components: tables of the noise schedule, training's leftovers, the latents' scale, marks."""

COUNTERS = ("decay", "num_updates")
"""Of a moving average; programs that take the average out leave them behind."""

OF_TRAINING = re.compile(r"loss\..+|model_ema\.(?:decay|num_updates)")
"""Of an autoencoder: its discriminator and measure of likeness, and an average's counters."""
NOTHING = re.compile(r"(?!)")

WEIGHTS = ("ema", "train", None)


@dataclass(frozen=True)
class Part:
    """A component of a file.

    Attributes:
        network: its class.
        config: its settings in the words of `config.json`.
        prefix: what the names of its tensors begin with.
        table: those names, after the prefix, and ours.
        tensors: by our names.
    """

    network: str
    config: Mapping[str, Any]
    prefix: str
    table: Table
    tensors: Mapping[str, StoredTensor]


@dataclass(frozen=True)
class SingleFile:
    """What a file holds.

    Attributes:
        name: the family's.
        family: the facts about it.
        parts: "unet", "vae" and "conditioner", those that are there.
        scheduler: the content of its `scheduler_config.json`.
        averaged: whether the UNet's weights are the moving average of the training.
        rest: what no component has, by its name in the file: tables of the noise schedule, the other weights of the two.
    """

    name: str
    family: Family
    parts: Mapping[str, Part]
    scheduler: Mapping[str, Any]
    averaged: bool
    rest: Mapping[str, StoredTensor]


def read_single_file(
    path: str | os.PathLike[str],
    *,
    family: str | None = None,
    prediction_type: str | None = None,
    weights: str | None = None,
) -> SingleFile:
    """Say what a file of a whole model holds, and give its tensors names of the folder layout; they are read when fetched.

    Args:
        path: of a `.safetensors` file.
        family: a key of `FAMILIES`, for a file that is of one but has other widths; None recognises it.
        prediction_type: "epsilon" or "v_prediction", where the file cannot tell.
        weights: "ema" for the moving average, "train" for the weights that were trained; None takes the average if it is there.

    Raises:
        WeightsError: for a file that cannot be read, is of no known family, or holds a tensor that is of no component; it says
            what the file looks like and what was expected.
        ValueError: for an argument that breaks its rule.
    """
    tensors, metadata = open_with_metadata(path)
    try:
        return interpret(tensors, metadata, family=family, prediction_type=prediction_type, weights=weights)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def read_first_stage(path: str | os.PathLike[str]) -> Part:
    """The autoencoder in a file: of a whole model, or alone; raises as `read_single_file`."""
    tensors = open_tensors(path)
    try:
        prefix = next((prefix for prefix in ALONE if prefix + FIRST_STAGE_MARK in tensors), None)
        if prefix is None:
            raise WeightsError(f"it holds no autoencoder of the single-file layout. {what_it_is(tensors)}")
        mine = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        whole = any(name.startswith(UNET) for name in tensors)
        families = likenesses(look(grouped(tensors))) if whole else []
        scale = FAMILIES[families[0]].scale if families else None
        part, _ = _first_stage(mine, prefix, scale, tensors)
        if not whole:
            _dropped({name: t for name, t in tensors.items() if not name.startswith(prefix)}, "", NO_WEIGHTS)
        return part
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def restore(parts: Iterable[tuple[str, Table, Mapping[str, StoredTensor]]]) -> dict[str, StoredTensor]:
    """The tensors of a single file.

    Args:
        parts: of each component the prefix, the table and its tensors by our names.

    Raises:
        WeightsError: for a tensor that the layout has no place for.
    """
    restored: dict[str, StoredTensor] = {}
    for prefix, table, tensors in parts:
        theirs, rest = table.revert(tensors)
        if rest:
            raise WeightsError(
                f"the single-file layout has no place for {', '.join(sorted(rest)[:LISTED])}: save the model as a folder."
            )
        restored |= {prefix + name: tensor for name, tensor in theirs.items()}
    return restored


def interpret(
    tensors: Mapping[str, StoredTensor],
    metadata: Mapping[str, str],
    *,
    family: str | None = None,
    prediction_type: str | None = None,
    weights: str | None = None,
) -> SingleFile:
    """What `read_single_file` says of a file with these tensors and metadata; `WeightsError` does not name the file."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r} must be 'ema', 'train' or None.")
    if prediction_type is not None and prediction_type not in PREDICTIONS:
        raise ValueError(f"prediction_type={prediction_type!r} must be {EPSILON!r} or {V!r}.")
    family = None if family is None else SAME_AS.get(family, family)
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family={family!r} is unknown; it must be one of {', '.join([*FAMILIES, *SAME_AS])}.")
    groups = grouped(tensors)
    if UNET not in groups:
        raise WeightsError(f"it holds no UNet of a single-file model. {what_it_is(tensors)}")
    looks = look(groups)
    told = PREDICTIONS[prediction_type] if prediction_type else told_prediction(tensors, metadata)
    name = recognise(looks, told) if family is None else agreed(looks, family)
    facts = FAMILIES[name]
    average = {name: tensor for name, tensor in groups.get(AVERAGE, {}).items() if name not in COUNTERS}
    unet, dropped = _unet(groups[UNET], average, facts, weights)
    dropped |= {AVERAGE + name: tensor for name, tensor in groups.get(AVERAGE, {}).items() if name in COUNTERS}
    parts = {"unet": unet}
    if FIRST_STAGE in groups:
        parts["vae"], unused = _first_stage(groups[FIRST_STAGE], FIRST_STAGE, facts.scale, tensors)
        dropped |= unused
    if STAGE in groups and looks.conditioner == "first stage" and "vae" in parts:
        dropped |= _copy(groups[STAGE], groups[FIRST_STAGE])
    elif STAGE in groups:
        parts["conditioner"], unused = _conditioner(groups[STAGE])
        dropped |= unused
    dropped |= _dropped(groups.get("", {}), "", NO_WEIGHTS)
    scheduler = facts.scheduler_config(told or facts.prediction, zero_snr="ztsnr" in tensors)
    return SingleFile(name, facts, parts, scheduler, weights != "train" and bool(average), dropped)


def _unet(
    trained: Mapping[str, StoredTensor], average: Mapping[str, StoredTensor], facts: Family, weights: str | None
) -> tuple[Part, dict[str, StoredTensor]]:
    """The UNet, and the weights that were not chosen."""
    if weights == "ema" and not average:
        raise WeightsError("it holds no moving average (no model_ema...): leave weights='ema' out.")
    network, config = unet_config(shapes_of(trained), heads=facts.heads, head_channels=facts.head_channels)
    config |= {"sample_size": facts.sample_size}
    if facts.upcast_attention:
        config |= {"upcast_attention": True}
    table = unet_table(config)
    chosen, unused = trained, {AVERAGE + name: tensor for name, tensor in average.items()}
    if average and weights != "train":
        names = {name: averaged_name(name) for name in trained}
        if missing := [name for name, theirs in names.items() if theirs not in average]:
            raise WeightsError(
                f"its moving average lacks {len(missing)} tensors ({', '.join(missing[:LISTED])}): pass weights='train'."
            )
        chosen = {name: average[theirs] for name, theirs in names.items()}
        _dropped({name: t for name, t in average.items() if name not in names.values()}, AVERAGE, NOTHING)
        unused = {UNET + name: tensor for name, tensor in trained.items()}
    ours, rest = table.apply(chosen)
    _dropped(rest, UNET, NOTHING)
    return Part(network, config, UNET, table, ours), unused


def averaged_name(name: str) -> str:
    """What the moving average calls a weight of the UNet: without dots, because they name buffers there."""
    return ("diffusion_model." + name).replace(".", "")


def _first_stage(
    tensors: Mapping[str, StoredTensor], prefix: str, scale: float | None, others: Mapping[str, StoredTensor]
) -> tuple[Part, dict[str, StoredTensor]]:
    """The autoencoder, and what it does not need; `scale` is of its latents, unless the file says one."""
    tensors = with_first_names(tensors)
    network, config = first_stage_config(shapes_of(tensors))
    if scale is None:
        scale = LATENT_SCALES.get(kind_of_first_stage(network, config), 1.0)
    config |= {"scaling_factor": _scale_factor(others.get("scale_factor")) or scale, "sample_size": 256}
    table = first_stage_table(config)
    ours, rest = table.apply(tensors)
    return Part(network, config, prefix, table, ours), _dropped(rest, prefix, OF_TRAINING)


def _scale_factor(stored: StoredTensor | None) -> float | None:
    """A scale that was measured on the first training batch, as LDM keeps it."""
    if stored is None:
        return None
    if stored.like.numel() != 1 or not math.isfinite(value := float(stored.fetch())) or value <= 0:
        raise WeightsError("its scale_factor is not a number above 0: it is damaged.")
    return value


def _conditioner(tensors: Mapping[str, StoredTensor]) -> tuple[Part, dict[str, StoredTensor]]:
    """The text encoder, or what stands in its place, and what it does not need."""
    kind = kind_of_conditioner(tensors)
    if kind is None or kind not in CONDITIONERS:
        raise WeightsError(f"its conditioner ({STAGE}...) is of an unknown kind: {', '.join(list(tensors)[:3])}.")
    how = CONDITIONERS[kind]
    mine = {name.removeprefix(how.prefix): tensor for name, tensor in tensors.items() if name.startswith(how.prefix)}
    try:
        config = how.config(shapes_of(mine))
        table = how.table(config)
    except WeightsError:
        raise
    except (LookupError, ArithmeticError, ValueError, TypeError) as error:
        looked = f" (it lacks {how.prefix}{error.args[0]})" if isinstance(error, KeyError) else ""
        raise WeightsError(f"its conditioner is of an unknown form{looked}: only LDM's and CLIP's are read.") from error
    ours, rest = table.apply(mine)
    strangers = {name: tensor for name, tensor in tensors.items() if not name.startswith(how.prefix)}
    unused = _dropped(rest, STAGE + how.prefix, how.surplus(config)) | _dropped(strangers, STAGE, how.strangers)
    return Part(how.network, config, STAGE + how.prefix, table, ours), unused


def _copy(tensors: Mapping[str, StoredTensor], first_stage: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """LDM's inpainting model holds its autoencoder twice; both must be the same."""
    for name, tensor in tensors.items():
        same = name in first_stage and tensor.shape == first_stage[name].shape
        if not same or not torch.equal(tensor.fetch(), first_stage[name].fetch()):
            raise WeightsError(f"{STAGE}{name} is not the autoencoder's: the file is damaged, or of an unknown model.")
    return {STAGE + name: tensor for name, tensor in tensors.items()}


def _dropped(
    rest: Mapping[str, StoredTensor], prefix: str, carries_nothing: re.Pattern[str]
) -> dict[str, StoredTensor]:
    """What a component has no place for, by full names; all of it must be known to carry no weight."""
    unknown = sorted(name for name in rest if not carries_nothing.fullmatch(name))
    if unknown:
        listed = ", ".join(f"{prefix}{name} {tuple(rest[name].shape)}" for name in unknown[:LISTED])
        raise WeightsError(
            f"it has {len(unknown)} tensors that are of no component: {listed}{', ...' if unknown[LISTED:] else ''}. It is "
            "another model, or was changed: nothing is guessed."
        )
    return {prefix + name: tensor for name, tensor in rest.items()}
