"""From a model's name to its folder on this machine: a path, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

from latentgen.weights.config_files import read_json
from latentgen.weights.errors import WeightsError
from latentgen.weights.weight_files import (
    PICKLES,
    STEMS,
    check_some_have,
    check_variant,
    choose,
    is_shard,
    nothing_found,
)

UNUSED_COMPONENTS = frozenset({"safety_checker", "feature_extractor", "image_encoder", "watermarker"})
"""Parts of published model folders that nothing here runs; the first alone weighs 1.2 GB."""

ROOT_FILES = frozenset({"model_index.json", "config.json"})  # of a whole model; of a component that is a repository


def resolve_model(
    path_or_id: str | os.PathLike[str],
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Find a model's folder, and download it if it is named by its Hub id and not here yet.

    Of a repository only settings, tokenizer files and the safetensors of the variant are fetched.

    Args:
        path_or_id: an existing folder, or "owner/name".
        subfolder: the one component that is wanted of a repository; None fetches all that a pipeline reads.
        variant: for example "fp16"; components without it come in their plain form.
        revision: branch, tag or commit; None is "main".
        cache_dir: None is the Hub client's own cache (`HF_HOME`, `HF_HUB_CACHE`).
        local_files_only: never use the network, as when `HF_HUB_OFFLINE=1` is set.
        token: for private and gated repositories; None is the one that `hf auth login` stored.

    Returns:
        The model's folder; a `subfolder` is inside it.

    Raises:
        WeightsError: naming what was looked for, where, and how to get it.
        ValueError: for an argument of a wrong type.
    """
    check_variant(variant)
    if not isinstance(path_or_id, str | os.PathLike) or not isinstance(name := os.fspath(path_or_id), str):
        raise ValueError(
            f"{path_or_id!r} is not a model: give the path of a folder, or a Hub id of the form owner/name."
        )
    for argument, value in (("subfolder", subfolder), ("revision", revision)):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{argument}={value!r} is a {type(value).__name__}; it must be a text or None.")
    if not name:
        raise WeightsError("No model was named: give a folder, or a Hub id of the form owner/name.")
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} is of a model on the Hub, and {name} is a folder here: leave it out."
            )
        return path
    if path.exists():
        raise WeightsError(
            f"{name} is a file, and a model's folder is expected here: load a single file with from_single_file"
            + (", after `latentgen convert`, for it is a pickle." if name.endswith(PICKLES) else ".")
        )
    if isinstance(path_or_id, os.PathLike) or _looks_like_a_path(name):
        raise WeightsError(
            f"{name} does not exist: there is no such folder (seen from {Path.cwd()}). Check the path, or give a Hub "
            "id of the form owner/name."
        )
    _check_id(name)
    if local_files_only or _offline():
        why = "the network is not used (HF_HUB_OFFLINE or local_files_only)"
        return _from_cache(name, subfolder, revision, cache_dir, why)
    return _download(name, subfolder, variant, revision, cache_dir, token)


def cached_folder(name: str, file: str) -> Path | None:
    """The folder of a repository's file in the Hub's cache, or None: the network is not asked."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file)
    return Path(found).parent if isinstance(found, str) else None


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of the Hub's cache holds, as `resolve_model` returned it; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1


def _check_id(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise WeightsError(f"{name!r} is neither a folder that exists nor a Hub id: {error}") from error
    if "/" not in name:
        raise WeightsError(f"{name!r} is neither a folder that exists nor a Hub id of the form owner/name.")


def _offline() -> bool:
    """Whether the user switched the network off, before or after the Hub client was imported."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _from_cache(
    name: str, subfolder: str | None, revision: str | None, cache_dir: str | os.PathLike[str] | None, reason: str
) -> Path:
    """The snapshot that the cache has, without asking anyone whether it is whole: the loaders see what is missing."""
    from huggingface_hub import constants, try_to_load_from_cache

    for file in sorted(ROOT_FILES, reverse=True) if subfolder is None else [f"{subfolder.strip('/')}/config.json"]:
        found = try_to_load_from_cache(name, file, cache_dir=cache_dir, revision=revision)
        if isinstance(found, str):
            return Path(found).parents[file.count("/")]
    raise WeightsError(
        f"{name} (revision {revision or 'main'}) is not in the cache {cache_dir or constants.HF_HUB_CACHE}, and "
        f"{reason}. With a network, run `hf download {name}`, or unset HF_HUB_OFFLINE and pass local_files_only=False; "
        "or give the path of a folder that holds the model."
    )


def _download(
    name: str,
    subfolder: str | None,
    variant: str | None,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    token: str | bool | None,
) -> Path:
    import httpx
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        listing = HfApi(token=token).model_info(name, revision=revision, timeout=20)
        names = [file.rfilename for file in listing.siblings or []]
        index: Mapping[str, object] | None = None
        if subfolder is None and "model_index.json" in names:
            index = read_json(
                hf_hub_download(name, "model_index.json", revision=revision, cache_dir=cache_dir, token=token)
            )
        files = files_to_fetch(names, index, variant, name, subfolder)
        # Names are given as patterns; a bracket in a name would be read as a set of characters.
        patterns = [file.replace("[", "[[]") for file in files]
        return Path(
            snapshot_download(name, revision=revision, cache_dir=cache_dir, token=token, allow_patterns=patterns)
        )
    except GatedRepoError as error:
        raise WeightsError(
            f"{name} is gated: accept its terms at https://huggingface.co/{name}, then log in with `hf auth login` or "
            "pass token=..."
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"{name} is not on the Hub, or it is private: check the spelling; for a private one log in with "
            "`hf auth login` or pass token=...; for a folder on this machine give its path (it does not exist here)."
        ) from error
    except RevisionNotFoundError as error:
        raise WeightsError(
            f"{name} has no revision {revision!r}: its branches and tags are at https://huggingface.co/{name}/tree/main."
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, ConnectionError, TimeoutError) as error:
        why = f"the Hub cannot be reached ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        folder = _from_cache(name, subfolder, revision, cache_dir, why)
        warnings.warn(f"{why}: {name} is read from the cache, {folder}.", stacklevel=3)
        return folder


def files_to_fetch(
    names: Collection[str],
    index: Mapping[str, object] | None,
    variant: str | None,
    repository: str,
    subfolder: str | None = None,
) -> list[str]:
    """Choose among a repository's files those that a pipeline, or one component, reads.

    Args:
        names: paths of all files, with "/" between folder and name.
        index: content of `model_index.json`; None for a repository that is a single component.
        variant: as in `resolve_model`.
        repository: its name, for errors.
        subfolder: the one component that is wanted.

    Raises:
        WeightsError: if a component has pickles only, or none has the variant.
    """
    folders: dict[str, list[str]] = {}
    for path in names:
        folder, _, file = path.rpartition("/")
        folders.setdefault(folder, []).append(file)
    if index is None:
        place = (subfolder or "").strip("/")
        there = folders.get(place, [])
        where = f"{repository}/{place}" if place else repository
        wanted = [file for file in there if file == "config.json"] + _weights(where, there, variant)
        if not wanted:
            missing = "config.json" if place else "model_index.json or config.json"
            raise WeightsError(f"{where} holds no model that can be read: {missing} is missing.")
        return sorted(f"{place}/{file}" if place else file for file in wanted)
    wanted = ["model_index.json"]
    components = _components(index) & folders.keys()
    check_some_have(variant, {name: folders[name] for name in components}, repository)
    for component in sorted(components):
        there = folders[component]
        settings = [file for file in there if file.endswith((".json", ".txt")) and ".index." not in file]
        wanted += [
            f"{component}/{file}" for file in (*settings, *_weights(f"{repository}/{component}", there, variant))
        ]
    return sorted(wanted)


def _components(index: Mapping[str, object]) -> set[str]:
    """The names in a `model_index.json` that stand for a component which is there and is used."""
    return {
        name
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and all(entry) and name not in UNUSED_COMPONENTS
    }


def _weights(where: str, names: Collection[str], variant: str | None) -> list[str]:
    """The weights of one folder: a single file, or an index and all shards of its variant; nothing for a scheduler."""
    for stem in STEMS:
        chosen = choose(names, stem, variant)
        if chosen is not None:
            name, found = chosen
            if name.endswith(".safetensors"):
                return [name]
            return [name, *(file for file in names if is_shard(file, stem, found))]
    if any(name.endswith((*PICKLES, ".safetensors")) for name in names):
        stem = STEMS[0] if any(name.startswith(STEMS[0]) for name in names) else STEMS[1]
        raise nothing_found(where, names, stem, variant)
    return []
