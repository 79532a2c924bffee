"""The tokenizer of LDM's text-to-image model, BERT's, from and to the folder layout.

The files are read here and not by transformers: it would follow whatever a `tokenizer_config.json` names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from latentgen.weights.atomic import write_text
from latentgen.weights.config_files import read_json, read_text, write_json
from latentgen.weights.errors import WeightsError

if TYPE_CHECKING:
    from transformers import BertTokenizer

CLASS_NAMES = frozenset({"BertTokenizer", "BertTokenizerFast"})
SPECIAL_TOKENS = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
RULES = ("do_lower_case", "tokenize_chinese_chars", "strip_accents")
NORMALIZER = {
    "lowercase": "do_lower_case",
    "handle_chinese_chars": "tokenize_chinese_chars",
    "strip_accents": "strip_accents",
}
"""What `tokenizer.json` calls the rules."""

DEFAULTS = ("[UNK]", "[SEP]", "[PAD]", "[CLS]")
LONGEST = 512
"""Tokens, where the files do not say: BERT's."""


def load_bert_tokenizer(folder: str | os.PathLike[str]) -> BertTokenizer:
    """Load a BERT tokenizer; nothing is executed or downloaded.

    Args:
        folder: with `vocab.txt`, a token a line, and the rules in `tokenizer_config.json`, if there is one; or with
            `tokenizer.json`, which has both.

    Raises:
        WeightsError: if a file is missing, damaged or of another kind of tokenizer.
    """
    from transformers import BertTokenizer

    folder = Path(folder)
    path = folder / "tokenizer_config.json"
    config = read_json(path) if os.path.lexists(path) else {}
    if str(config.get("tokenizer_class", "BertTokenizer")) not in CLASS_NAMES:
        raise WeightsError(f"{path} describes a {config['tokenizer_class']}; only BertTokenizer can be loaded here.")
    length = config.get("model_max_length", LONGEST)
    if isinstance(length, bool) or not isinstance(length, int | float) or not length > 2:
        raise WeightsError(f"{path}: model_max_length={length!r} is not a number of tokens above 2. Fetch it again.")
    words = {name: config[name] for name in SPECIAL_TOKENS if isinstance(config.get(name), str)}
    vocab, rules = _vocabulary(folder)
    rules |= {name: config[name] for name in RULES if isinstance(config.get(name), bool)}
    if missing := [word for word in DEFAULTS if word not in vocab and word not in words.values()]:
        raise WeightsError(
            f"{folder} has no vocabulary of BERT's kind: it lacks {', '.join(missing)}. Fetch its files again."
        )
    try:
        return BertTokenizer(vocab=vocab, model_max_length=length, **words, **rules)
    except Exception as error:  # the tokenizer's library raises bare Exceptions for what does not fit
        raise WeightsError(
            f"{folder} does not make a tokenizer ({type(error).__name__}). Fetch its files again."
        ) from error


def _vocabulary(folder: Path) -> tuple[dict[str, int], dict[str, bool]]:
    """Ids by token, and the rules that stand beside them."""
    whole, lines = folder / "tokenizer.json", folder / "vocab.txt"
    if os.path.lexists(lines):
        tokens = read_text(lines).splitlines()
        return {token: number for number, token in enumerate(tokens) if token}, {}
    if not os.path.lexists(whole):
        raise WeightsError(f"{folder} holds no BERT tokenizer: vocab.txt is missing. Fetch the whole model.")
    content = read_json(whole)
    model, normalizer = (content.get(name) or {} for name in ("model", "normalizer"))
    vocab = model.get("vocab") if isinstance(model, dict) and model.get("type") == "WordPiece" else None
    if not isinstance(vocab, dict) or not all(type(number) is int and number >= 0 for number in vocab.values()):
        raise WeightsError(f"{whole} is not of the kind that BERT has (WordPiece). Fetch it again.")
    given = normalizer if isinstance(normalizer, dict) else {}
    return vocab, {ours: given[theirs] for theirs, ours in NORMALIZER.items() if isinstance(given.get(theirs), bool)}


def save_bert_tokenizer(tokenizer: BertTokenizer, folder: str | os.PathLike[str]) -> None:
    """Write a BERT tokenizer in the form that every version of transformers reads.

    Args:
        tokenizer: a `BertTokenizer` of transformers.
        folder: made if it is missing.
    """
    folder = Path(folder)
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    write_text(folder / "vocab.txt", "".join(f"{token}\n" for token, _ in vocab))
    rules = {name: getattr(tokenizer, name) for name in RULES}
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": tokenizer.model_max_length} | rules
    write_json(folder / "tokenizer_config.json", settings | tokenizer.special_tokens_map)
