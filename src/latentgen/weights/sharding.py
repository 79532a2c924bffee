"""The weights of one component, in one file or in shards with an index."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from latentgen.weights.config_files import component_path, read_json, write_json
from latentgen.weights.errors import WeightsError
from latentgen.weights.safetensors_io import open_tensors, write_tensors
from latentgen.weights.sizes import read_bytes
from latentgen.weights.stored import StoredTensor
from latentgen.weights.weight_files import (
    check_variant,
    choose,
    index_names,
    is_shard,
    nothing_found,
    shard_name,
    single_name,
)


def load_tensors(folder: str | os.PathLike[str], stem: str, variant: str | None = None) -> dict[str, StoredTensor]:
    """Open the weights of the component in `folder`; each is read when it is fetched.

    Args:
        folder: for example ".../unet".
        stem: "diffusion_pytorch_model" for a network of the folder layout, "model" for one of transformers.
        variant: for example "fp16". A component that does not have it is read from its plain file, with a warning.

    Raises:
        WeightsError: if there are none, a file cannot be read, or an index and its shards disagree.
    """
    check_variant(variant)
    folder = Path(folder)
    if not folder.is_dir():
        raise WeightsError(
            f"{folder} is not a folder: the component is missing. Check the path, or fetch the model again."
        )
    names = os.listdir(folder)
    chosen = choose(names, stem, variant)
    if chosen is None:
        raise nothing_found(str(folder), names, stem, variant)
    name, found = chosen
    if found != variant:
        warnings.warn(f"{folder} has no {variant!r} weights: {name} is read instead.", stacklevel=2)
    return open_tensors(folder / name) if name.endswith(".safetensors") else _read_shards(folder / name)


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    """Open all shards of an index, and hold each to what the index promises of it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f'{index} has no "weight_map" of tensor names to files: fetch it again.')
    promised: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        component_path(index.parent, file)
        if not file.endswith(".safetensors"):
            raise WeightsError(f"{index} puts {tensor} into {file!r}; only .safetensors files are opened.")
        promised.setdefault(file, set()).add(tensor)
    tensors: dict[str, StoredTensor] = {}
    for file, expected in sorted(promised.items()):
        shard = open_tensors(index.parent / file)
        lacking, extra = sorted(expected - shard.keys()), sorted(shard.keys() - expected)
        if lacking or extra:
            said = [f"it lacks {', '.join(lacking[:5])}"] if lacking else []
            said += [f"it also has {', '.join(extra[:5])}, which the index puts elsewhere or nowhere"] if extra else []
            raise WeightsError(
                f"{index.parent / file} does not hold what {index.name} says: {'; '.join(said)}. The files are of "
                "different saves, or one is damaged: fetch them all again."
            )
        tensors |= shard
    return tensors


def save_tensors(
    folder: str | os.PathLike[str],
    stem: str,
    tensors: Mapping[str, Tensor | StoredTensor],
    variant: str | None = None,
    max_shard_size: int | str | None = "10GB",
) -> None:
    """Write a component's weights as diffusers and transformers do, and remove what an earlier save left beside them.

    Args:
        folder: made if it is missing.
        stem: as in `load_tensors`.
        tensors: names and values; those that are still in a file are fetched one after the other.
        variant: for example "fp16"; goes into the file's name only, nothing is cast.
        max_shard_size: bytes, or "10GB", "500MB": weights above it go into several files and an index. None is no limit.

    Raises:
        ValueError: for a size or a variant that is not one.
        OSError: if a file cannot be written.
    """
    check_variant(variant)
    folder = Path(folder)
    shards = _split(tensors, shard_limit(max_shard_size))
    files = {single_name(stem, variant): shards[0]}
    if len(shards) > 1:
        files = {shard_name(stem, variant, i + 1, len(shards)): shard for i, shard in enumerate(shards)}
    for file, shard in files.items():
        write_tensors(folder / file, shard)
    kept = set(files)
    if len(shards) > 1:
        index = index_names(stem, variant)[0]
        weight_map = {name: file for file, shard in files.items() for name in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        write_json(folder / index, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
        kept.add(index)
    for name in os.listdir(folder):
        old = name in {single_name(stem, variant), *index_names(stem, variant)} or is_shard(name, stem, variant)
        if old and name not in kept:
            (folder / name).unlink()


def _split(tensors: Mapping[str, Tensor | StoredTensor], limit: int) -> list[dict[str, Tensor | StoredTensor]]:
    """Fill shards in the order of `tensors`; one that is larger than the limit stands alone."""
    shards: list[dict[str, Tensor | StoredTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def shard_limit(size: int | str | None) -> int:
    """The most bytes that a file of weights may have.

    Args:
        size: bytes, or a number with a unit, as "10GB" or "1.5 GiB"; None is no limit.

    Raises:
        ValueError: if it is none of these, or less than 1 byte.
    """
    return sys.maxsize if size is None else read_bytes("max_shard_size", size, otherwise=", or None for no limit")
