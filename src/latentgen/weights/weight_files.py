"""Which files of a component's folder are its weights: the names that diffusers and transformers use."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from latentgen.weights.errors import WeightsError

STEMS = ("diffusion_pytorch_model", "model")  # networks of diffusers; networks of transformers
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def check_variant(variant: str | None) -> None:
    """Refuse a variant that could not stand between two dots of a file name."""
    if variant is not None and not (isinstance(variant, str) and re.fullmatch(r"[A-Za-z0-9_-]+", variant)):
        raise ValueError(f"variant={variant!r} must be a text of letters, digits, _ or -, for example 'fp16'.")


def single_name(stem: str, variant: str | None) -> str:
    """The name of weights in one file."""
    return f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"


def index_names(stem: str, variant: str | None) -> tuple[str, ...]:
    """The names that an index of shards can have: the one that is written first, then the older one."""
    if variant is None:
        return (f"{stem}.safetensors.index.json",)
    return (f"{stem}.safetensors.index.{variant}.json", f"{stem}.safetensors.{variant}.index.json")


def shard_name(stem: str, variant: str | None, number: int, count: int) -> str:
    """The name of shard `number`, counted from 1, of `count`."""
    return (
        f"{stem}.{variant}-{number:05d}-of-{count:05d}.safetensors"
        if variant
        else (f"{stem}-{number:05d}-of-{count:05d}.safetensors")
    )


def is_shard(name: str, stem: str, variant: str | None) -> bool:
    """Whether `name` is a shard of this variant, with the variant before the numbers or (older) behind them."""
    middle = rf"\.{re.escape(variant)}" if variant else ""
    numbers = r"-\d{5}-of-\d{5}"
    return re.fullmatch(rf"{re.escape(stem)}(?:{middle}{numbers}|{numbers}{middle})\.safetensors", name) is not None


def choose(names: Collection[str], stem: str, variant: str | None) -> tuple[str, str | None] | None:
    """Choose between the weights in a folder.

    Args:
        names: the names of the files there.
        stem: "diffusion_pytorch_model" or "model".
        variant: for example "fp16"; where the folder has none of it, the plain weights are taken.

    Returns:
        The single file or the index, and the variant that it belongs to; None if the folder has neither.
    """
    for wanted in dict.fromkeys((variant, None)):
        for name in (single_name(stem, wanted), *index_names(stem, wanted)):
            if name in names:
                return name, wanted
    return None


def check_some_have(variant: str | None, folders: Mapping[str, Collection[str]], where: str) -> None:
    """Refuse a variant that no component of a model has: whoever asks for it expects other files than the plain ones.

    Args:
        variant: None asks for nothing.
        folders: the names of the files in each component's folder.
        where: the model, for the error.

    Raises:
        WeightsError: if there are weights, and none of this variant.
    """
    chosen = [found for names in folders.values() for stem in STEMS if (found := choose(names, stem, variant))]
    if variant is None or not chosen or any(found == variant for _, found in chosen):
        return
    others = sorted({v for names in folders.values() for stem in STEMS for v in variants(names, stem)})
    there = f"it has {', '.join(map(repr, others))} and plain ones" if others else "it has plain ones only"
    raise WeightsError(
        f"{where} has no weights of the variant {variant!r} in any component; {there}. Leave the variant out, or give one "
        "that is there; the dtype to run in does not depend on it."
    )


def variants(names: Collection[str], stem: str) -> list[str]:
    """The variants that a folder's weights come in."""
    pattern = re.compile(rf"{re.escape(stem)}\.([A-Za-z0-9_-]+?)(?:-\d{{5}}-of-\d{{5}})?\.safetensors")
    return sorted({match[1] for name in names if (match := pattern.fullmatch(name))})


def nothing_found(where: str, names: Collection[str], stem: str, variant: str | None) -> WeightsError:
    """The error for a folder without usable weights: what was looked for, what is there, and what to do."""
    looked = [name for v in dict.fromkeys((variant, None)) for name in (single_name(stem, v), *index_names(stem, v))]
    there_are = variants(names, stem)
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if there_are:
        remedy = f"Pass variant={' or '.join(map(repr, there_are))} to read what is there."
    elif pickles:
        remedy = (
            f"{pickles[0]} is a pickle: opening one can run code, so it is not opened. Look for a release of the model "
            f"in safetensors, or run `latentgen convert {pickles[0]} {pickles[0].rpartition('.')[0]}.safetensors` in its folder, "
            "which reads the tensors and executes nothing."
        )
    else:
        remedy = "Fetch the weights, or check that this is the component's folder."
    there = ", ".join(sorted(names)[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return WeightsError(
        f"{where} has no weights. Looked for {', '.join(looked)}; there is {there or 'nothing'}. {remedy}"
    )
