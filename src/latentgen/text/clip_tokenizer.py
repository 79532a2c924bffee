"""CLIP's tokenizer, from and to the folder layout, in both of its forms.

The files are read here and not by transformers: it would follow whatever a `tokenizer_config.json` names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentgen.weights.atomic import write_text
from latentgen.weights.config_files import read_json, read_text, write_json
from latentgen.weights.errors import WeightsError

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import CLIPTokenizer

CLASS_NAMES = frozenset({"CLIPTokenizer", "CLIPTokenizerFast"})
MOST_TOKENS, MOST_ADDED, LONGEST_TOKEN = 2**18, 4096, 256
"""Of a vocabulary that is believed: entries, tokens beside it, and letters in one of those. CLIP has 49408, and a few."""

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def load_clip_tokenizer(folder: str | os.PathLike[str], *, pad_token: str | None = None) -> CLIPTokenizer:
    """Load the tokenizer of a Stable Diffusion model; nothing is executed or downloaded.

    Ids are those of `CLIPTokenizer.from_pretrained`. Of the settings, a `special_tokens_map.json` has the last word
    over `tokenizer_config.json` (Stable Diffusion 2 pads with "!" only there), unless the latter lists
    `added_tokens_decoder`, as newer files do.

    Args:
        folder: with `tokenizer.json`, or `vocab.json` and `merges.txt`.
        pad_token: for one whose vocabulary is right and whose padding is another model's; None is what the files say.

    Raises:
        WeightsError: if a file is missing, damaged or of another kind of tokenizer.
    """
    from transformers import CLIPTokenizer

    folder = Path(folder)
    if not folder.is_dir():
        raise WeightsError(
            f"{folder} is not a folder: the tokenizer is missing. Check the path, or fetch the model again."
        )
    config = _optional(folder / "tokenizer_config.json")
    _check_config(config, folder)
    vocab, merges, listed = _vocabulary(folder)
    special = {name: _token(config[name], folder) for name in SPECIAL_TOKENS if config.get(name) is not None}
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        added = _added_by_id(config["added_tokens_decoder"], folder)
    else:
        overriding = _optional(folder / "special_tokens_map.json")
        for name in SPECIAL_TOKENS:
            if overriding.get(name) is not None:
                special[name] = _token(overriding[name], folder, special=True)
        extra = overriding.get("additional_special_tokens") or []
        names = {str(token) for token in (*special.values(), *(_token(token, folder) for token in extra))}
        added = _added_by_name(_optional(folder / "added_tokens.json"), names, folder) | listed
    if pad_token is not None:
        special["pad_token"] = _token(pad_token, folder)
    by_name = {str(token): token for token in added.values()}
    special = {name: by_name.get(str(token), token) for name, token in special.items()}
    length = {"model_max_length": config["model_max_length"]} if config.get("model_max_length") is not None else {}
    try:
        return CLIPTokenizer(vocab=vocab, merges=merges, added_tokens_decoder=added, **special, **length)
    except Exception as error:  # the tokenizer's library raises bare Exceptions for a vocabulary that does not fit
        told = str(error)[:200]
        raise WeightsError(f"{folder} does not make a tokenizer ({told}). Fetch its files again.") from error


def save_tokenizer(tokenizer: CLIPTokenizer, folder: str | os.PathLike[str]) -> None:
    """Write a tokenizer in both forms, so that every version of transformers reads it.

    Args:
        tokenizer: a `CLIPTokenizer` of transformers.
        folder: made if it is missing.
    """
    folder = Path(folder)
    # Whole-prompt settings of the last call are no part of the vocabulary; their place is the tokenizer's config.
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    model = backend["model"]
    added = {str(index): _flags(token) for index, token in sorted(tokenizer.added_tokens_decoder.items())}
    decoder = tokenizer.added_tokens_decoder
    special = {
        name: _flags(decoder[tokenizer.convert_tokens_to_ids(token)])
        for name, token in tokenizer.special_tokens_map.items()
    }
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    beyond = {token["content"]: int(index) for index, token in added.items() if token["content"] not in model["vocab"]}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": tokenizer.model_max_length,
    }
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    write_text(folder / "vocab.json", json.dumps(vocab, ensure_ascii=False))
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    write_text(folder / "tokenizer.json", json.dumps(backend, ensure_ascii=False))
    write_json(folder / "tokenizer_config.json", settings | tokenizer.special_tokens_map)
    write_json(folder / "special_tokens_map.json", special)
    (folder / "added_tokens.json").unlink(missing_ok=True)
    if beyond:  # for versions that do not know added_tokens_decoder
        write_json(folder / "added_tokens.json", beyond)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if os.path.lexists(path) else {}  # a link to nothing is damage, and no choice


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    if str(config.get("tokenizer_class", "CLIPTokenizer")) not in CLASS_NAMES:
        raise WeightsError(f"{path} describes a {config['tokenizer_class']}; only CLIPTokenizer can be loaded here.")
    for side in ("padding_side", "truncation_side"):
        if config.get(side, "right") != "right":
            raise WeightsError(f'{path}: {side}={config[side]!r} is not supported; CLIP pads and cuts on the "right".')
    length = config.get("model_max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int | float) or not length > 2):
        raise WeightsError(f"{path}: model_max_length={length!r} is not a number of tokens above 2. Fetch it again.")


def _vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[int, AddedToken]]:
    """Read token ids, merges in their order, and the tokens that a `tokenizer.json` lists beside them."""
    whole, vocab_file, merges_file = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if os.path.lexists(whole):
        content = read_json(whole)
        model = content.get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            raise WeightsError(f"{whole} is not of the kind that CLIP has (byte-pair encoding). Fetch it again.")
        tokens = content.get("added_tokens", [])
        if (
            not isinstance(tokens, list)
            or len(tokens) > MOST_ADDED
            or not all(isinstance(t, dict) and isinstance(t.get("id"), int) for t in tokens)
        ):
            raise WeightsError(f"{whole}: added_tokens is not a list of tokens with ids. Fetch it again.")
        listed = {token["id"]: _token(token, folder) for token in tokens}
        return _checked_vocab(model.get("vocab"), whole), _pairs(model.get("merges"), whole), listed
    if vocab_file.exists() and merges_file.exists():
        lines = read_text(merges_file).splitlines()
        merges = [line for line in lines if line and not line.startswith("#version")]
        return _checked_vocab(read_json(vocab_file), vocab_file), _pairs(merges, merges_file), {}
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    raise WeightsError(
        f"{folder} holds no tokenizer: tokenizer.json, or vocab.json with merges.txt, is needed; there is {there}. "
        "Fetch the missing files."
    )


def _checked_vocab(vocab: Any, path: Path) -> dict[str, int]:
    if (
        not isinstance(vocab, dict)
        or not 0 < len(vocab) <= MOST_TOKENS
        or not all(type(i) is int and 0 <= i < 10**9 for i in vocab.values())
    ):
        raise WeightsError(f"{path} is not a vocabulary of tokens and their ids. Fetch it again.")
    return vocab


def _pairs(merges: Any, path: Path) -> list[tuple[str, str]]:
    if not isinstance(merges, list):
        raise WeightsError(f"{path} has no list of merges. Fetch it again.")
    pairs: list[tuple[str, str]] = []
    for number, merge in enumerate(merges, start=1):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise WeightsError(f"{path}: merge {number}, {str(merge)[:40]!r}, is not two tokens. Fetch it again.")
        pairs.append((parts[0], parts[1]))
    return pairs


def _token(value: Any, folder: Path, special: bool = False) -> AddedToken:
    """A special token, which files give as its text alone or with the rules for finding it in a prompt."""
    from tokenizers import AddedToken

    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str) or not 0 < len(content) <= LONGEST_TOKEN or not _is_text(content):
        raise WeightsError(f"{folder}: {str(value)[:60]!r} is not a special token. Fetch the tokenizer's files again.")
    if isinstance(value, str):
        return AddedToken(content, special=True)
    flags = {name: value[name] for name in TOKEN_FLAGS if type(value.get(name)) is bool}
    return AddedToken(content, **(flags | {"special": True} if special else flags))


def _added_by_id(tokens: Any, folder: Path) -> dict[int, AddedToken]:
    if (
        not isinstance(tokens, dict)
        or len(tokens) > MOST_ADDED
        or not all(str(index).isdecimal() and len(str(index)) < 10 for index in tokens)
    ):
        raise WeightsError(
            f"{folder / 'tokenizer_config.json'}: added_tokens_decoder is not a table of ids. Fetch it again."
        )
    return {int(index): _token(token, folder) for index, token in tokens.items()}


def _added_by_name(tokens: Mapping[str, Any], special: set[str], folder: Path) -> dict[int, AddedToken]:
    if len(tokens) > MOST_ADDED or not all(type(index) is int and 0 <= index < 10**9 for index in tokens.values()):
        raise WeightsError(f"{folder / 'added_tokens.json'} is not a table of tokens and their ids. Fetch it again.")
    flags = {name: {"normalized": name not in special, "special": name in special} for name in tokens}
    return {index: _token({"content": name} | flags[name], folder) for name, index in tokens.items()}


def _is_text(content: str) -> bool:
    """Whether it can be encoded: halves of characters cannot, and JSON may hold them."""
    return not any("\ud800" <= character <= "\udfff" for character in content)


def _flags(token: AddedToken) -> dict[str, Any]:
    return {"content": token.content} | {name: getattr(token, name) for name in TOKEN_FLAGS}
