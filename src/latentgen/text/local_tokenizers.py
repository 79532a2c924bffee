"""A tokenizer for a model that came without one: given, beside its file, or in the Hub's cache; never from the network."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from latentgen.text.bert_tokenizer import load_bert_tokenizer
from latentgen.text.clip_tokenizer import load_clip_tokenizer
from latentgen.weights.errors import WeightsError
from latentgen.weights.hub import cached_folder

SD1 = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5", "CompVis/stable-diffusion-v1-4")
SD2 = tuple(f"stabilityai/stable-diffusion-2{rest}" for rest in ("-1-base", "-1", "-base", "", "-inpainting"))


@dataclass(frozen=True)
class Source:
    """Where a kind of tokenizer is found.

    Attributes:
        load: reads a folder.
        repositories: on the Hub, each with the folder in it: the first that is in the cache is read.
        files: one of these marks a tokenizer's folder.
    """

    load: Callable[[Path], Any]
    repositories: tuple[tuple[str, str], ...]
    files: tuple[str, ...]


_CLIP = (*((name, "tokenizer") for name in (*SD1, *SD2)), ("openai/clip-vit-large-patch14", ""))
_CLIP_FILES = ("vocab.json", "tokenizer.json")

SOURCES: dict[str, Source] = {
    "clip": Source(partial(load_clip_tokenizer, pad_token="<|endoftext|>"), _CLIP, _CLIP_FILES),
    "open clip": Source(partial(load_clip_tokenizer, pad_token="!"), _CLIP, _CLIP_FILES),
    "bert": Source(
        load_bert_tokenizer,
        (
            ("google-bert/bert-base-uncased", ""),
            ("bert-base-uncased", ""),
            ("CompVis/ldm-text2im-large-256", "tokenizer"),
        ),
        ("vocab.txt", "tokenizer.json"),
    ),
}
"""By kind of text encoder. Both kinds of CLIP have one vocabulary, and Stable Diffusion 2's is padded with "!": a folder of
either is read for either, and padded as the model was trained."""


def find_tokenizer(kind: str, given: Any, beside: Path) -> Any:
    """The tokenizer of a text encoder.

    Args:
        kind: a key of `SOURCES`.
        given: a tokenizer, which is taken as it is; a folder that holds one; or None.
        beside: the model's file: a folder "tokenizer" beside it is read next, and one in the Hub's cache last.

    Raises:
        WeightsError: if there is none, saying where was looked and how to get one.
    """
    source = SOURCES[kind]
    if given is not None and not isinstance(given, str | os.PathLike):
        return given
    if given is not None:
        return source.load(Path(given))
    if any((beside.parent / "tokenizer" / name).is_file() for name in source.files):
        return source.load(beside.parent / "tokenizer")
    for repository, subfolder in source.repositories:
        for name in source.files:
            folder = cached_folder(repository, f"{subfolder}/{name}" if subfolder else name)
            if folder is not None:
                return source.load(folder)
    repository, subfolder = source.repositories[0]
    command = f"hf download {repository} --include '{subfolder or '*'}{'/*' if subfolder else '.txt'}'"
    raise WeightsError(
        f"{beside} holds no tokenizer, and none was found: not in {beside.parent / 'tokenizer'}, and none of "
        f"{', '.join(name for name, _ in source.repositories)} in the Hub's cache. Pass tokenizer=FOLDER, put the folder "
        f"there, or run `{command}` once, with a network."
    )
