"""A tokenizer and a text encoder with new tokens, beside the ones without (textual inversion, Gal et al. 2022)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from latentgen.runtime.shell import with_weights

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

TOKEN_TABLES = ("token_embedding", "embed_tokens")
"""What the table of token embeddings is called, in CLIP's text encoder and in LDM's."""

Runs = Mapping[int, Sequence[int]]
"""Ids that stand in a prompt's place of one id: a new token may have several vectors."""


def check_new_token(tokenizer: CLIPTokenizer, token: str) -> None:
    """Refuse a token that prompts could not have.

    Raises:
        ValueError: if it is empty, begins or ends in a space, or is a word of the tokenizer's already.
    """
    if not isinstance(token, str) or not token or token != token.strip():
        raise ValueError(f"token={token!r} must be a text without spaces around it, for example '<my-cat>'.")
    known = tokenizer.get_vocab()
    if known.keys() & {token, token.lower(), f"{token}</w>", f"{token.lower()}</w>"}:
        raise ValueError(
            f"token={token!r} is in the tokenizer's vocabulary already, and prompts with it would change: give the embedding "
            "another name, for example token='<my-cat>'."
        )


def with_tokens(tokenizer: CLIPTokenizer, vectors: Mapping[str, Tensor]) -> tuple[CLIPTokenizer, Runs]:
    """A copy of the tokenizer that knows more tokens.

    Args:
        tokenizer: stays as it is.
        vectors: for each new token its embeddings (n, D).

    Returns:
        The copy, and for tokens of several vectors the ids that theirs becomes. The first id of each token is the
        copy's own; further ones follow all of these, in the order of `vectors`.

    Raises:
        ValueError: if the copy does not read a token as one.
    """
    extended = copy.deepcopy(tokenizer)
    for token in vectors:
        check_new_token(extended, token)
        extended.add_tokens([token])
    extended.backend_tokenizer.no_truncation()  # a call of the tokenizer leaves its settings on it
    extended.backend_tokenizer.no_padding()
    after = max(extended.get_vocab().values()) + 1
    runs: dict[int, list[int]] = {}
    for token, parts in vectors.items():
        ids = extended.backend_tokenizer.encode(token, add_special_tokens=False).ids
        if len(ids) != 1:
            raise ValueError(f"token={token!r} is not read as one word by this tokenizer: give it another name.")
        runs[ids[0]] = [ids[0], *range(after, after + len(parts) - 1)]
        after += len(parts) - 1
    return extended, runs


def with_vectors(encoder: CLIPTextModel, vectors: Sequence[Tensor], runs: Runs) -> CLIPTextModel:
    """The encoder with rows of its table of token embeddings set, beside the one without; they share everything else.

    Args:
        encoder: stays as it is.
        vectors: (n, D) for each token, in the order of `runs`.
        runs: the ids of each, as `with_tokens` gives them.
    """
    name, table = token_table(encoder)
    old = table.weight.detach()
    rows = max(len(old), 1 + max(number for ids in runs.values() for number in ids))
    weight = old.new_zeros(rows, old.shape[1])
    weight[: len(old)] = old
    for ids, parts in zip(runs.values(), vectors, strict=True):
        weight[list(ids)] = parts.to(old.device, old.dtype)
    shell = with_weights(encoder, {f"{name}.weight": weight})
    token_table(shell)[1].num_embeddings = rows
    return shell


def token_table(encoder: Any) -> tuple[str, nn.Embedding]:
    """The table of token embeddings, and its name."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in TOKEN_TABLES:
            return name, module
    raise ValueError(f"a {type(encoder).__name__} has no table of token embeddings that is known.")
