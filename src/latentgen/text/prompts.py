"""Prompts to token ids to embeddings, from any number of threads at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from latentgen.runtime.warn import warn_user
from latentgen.text.clip import without_last_layers
from latentgen.text.new_tokens import Runs, token_table

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import CLIPTextModel, CLIPTokenizer

LONGEST_BELIEVED = 10**5  # tokens; a tokenizer that was not told a length claims 10**30
LONGEST_QUOTE = 1000  # characters

_backends: WeakKeyDictionary[CLIPTokenizer, tuple[int, Tokenizer]] = WeakKeyDictionary()
_backends_lock = threading.Lock()


def tokenize(
    tokenizer: CLIPTokenizer, prompts: Sequence[str], *, max_length: int | None = None, runs: Runs | None = None
) -> Tensor:
    """Turn prompts into token ids: beginning, text, end, and padding up to the length that the model was trained with.

    A prompt that is too long is cut, with a warning at every call that quotes what is lost.

    Args:
        tokenizer: of transformers; tokens that were added to it count.
        prompts: B texts; "" is the empty prompt.
        max_length: L; None is the tokenizer's own, 77 for Stable Diffusion.
        runs: of tokens with several vectors, see `with_tokens`.

    Returns:
        (B, L) int64, on the CPU.

    Raises:
        TypeError: if `prompts` is not a list of texts.
        ValueError: if it is empty, no length is known, or a text has characters that do not exist.
    """
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(f"prompts={prompts!r} is not a list of texts: give a list, for example ['a cat', 'a dog'].")
    if not prompts:
        raise ValueError("prompts is empty: give at least one text; [''] is the empty prompt.")
    for prompt in prompts:
        _check_characters(prompt)
    length = tokenizer.model_max_length if max_length is None else max_length
    if not 2 < length < LONGEST_BELIEVED:
        raise ValueError(f"{length} tokens is not a prompt's length: pass max_length, 77 for Stable Diffusion.")
    backend = _private_backend(tokenizer)
    return torch.tensor(
        [_ids(tokenizer, backend, prompt, int(length), runs or {}) for prompt in prompts],
        dtype=torch.int64,
        device="cpu",
    )


def encode_prompts(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    prompts: Sequence[str],
    *,
    clip_skip: int | None = None,
    runs: Runs | None = None,
) -> Tensor:
    """Turn prompts into the embeddings that condition a UNet.

    These are the encoder's last hidden states after its final normalisation, without an attention mask for padding, as
    Stable Diffusion 1 and 2, and LDM's text-to-image model, were trained.

    Args:
        tokenizer: that of the text encoder.
        text_encoder: with n layers.
        prompts: B texts.
        clip_skip: k in [0, n): take the states k layers before the last instead; the final normalisation follows all
            the same. None is 0.
        runs: of tokens with several vectors, see `with_tokens`.

    Returns:
        (B, L, D) on the encoder's device and in its dtype.

    Raises:
        ValueError: if `clip_skip` is out of range, or a token is not in the encoder's vocabulary.
        TypeError: if `prompts` is not a list of texts.
        FloatingPointError: if the embeddings are not finite.
    """
    config = text_encoder.config
    skip = check_clip_skip(text_encoder, clip_skip)
    length = min(tokenizer.model_max_length, config.max_position_embeddings)
    ids = tokenize(tokenizer, prompts, max_length=length, runs=runs)
    highest = int(ids.max())
    known = token_table(text_encoder)[1].num_embeddings
    if highest >= known:
        raise ValueError(
            f"token {tokenizer.convert_ids_to_tokens(highest)!r} has the id {highest}, but the text encoder knows "
            f"{known} tokens: use tokenizer and text encoder of the same model, or enlarge the encoder "
            "with resize_token_embeddings()."
        )
    ids = ids.to(text_encoder.device)
    encoder = without_last_layers(text_encoder, skip) if skip else text_encoder
    with torch.no_grad():
        out = encoder(ids)  # LDM's transformer gives its states alone
        states: Tensor = out if isinstance(out, Tensor) else out.last_hidden_state
    if not bool(states.isfinite().all()):
        raise FloatingPointError(
            f"the text encoder (text_encoder) gave values that are not finite in {states.dtype}: check its weights"
            + ("." if states.dtype == torch.float32 else ", or load it with dtype='float32'.")
        )
    return states


def check_clip_skip(text_encoder: CLIPTextModel, clip_skip: int | None) -> int:
    """How many of the encoder's last layers are left out.

    Raises:
        ValueError: if it has not so many.
    """
    layers = getattr(text_encoder.config, "num_hidden_layers", 1)  # LDM's transformer leaves none out
    skip = 0 if clip_skip is None else clip_skip
    if isinstance(skip, bool) or not isinstance(skip, Integral) or not 0 <= skip < layers:
        raise ValueError(
            f"clip_skip={clip_skip!r} is not a number of layers that can be left out: this text encoder has {layers}, "
            f"so give 0 to {layers - 1}, or None."
        )
    return int(skip)


def _check_characters(prompt: str) -> None:
    """Python texts can hold halves of characters (bytes of a file name that are no UTF-8, say); no tokenizer reads them."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the prompt {prompt[:100]!r} has at position {error.start} a code that is no character (a lone surrogate): "
            "it was read with a wrong encoding; read it as UTF-8, or take the code out."
        ) from error


def _ids(tokenizer: CLIPTokenizer, backend: Tokenizer, prompt: str, length: int, runs: Runs) -> list[int]:
    encoding = backend.encode(prompt, add_special_tokens=False)
    pairs = zip(encoding.ids, encoding.offsets, strict=True)
    inner = [(one, offset) for number, offset in pairs for one in runs.get(number, (number,))]
    room = length - 2
    if len(inner) > room:
        lost = prompt[inner[room][1][0] :].strip()
        quote = lost if len(lost) <= LONGEST_QUOTE else f"{lost[:LONGEST_QUOTE]}... ({len(lost)} characters)"
        warn_user(
            f"The prompt has {len(inner)} tokens and the text encoder reads {room}; this end of it is ignored: "
            f"{quote!r}. Shorten the prompt, or put what matters first.",
            every_time=True,
        )
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    if first is None:  # BERT's
        first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = [first, *(number for number, _ in inner[:room]), last]
    return ids + [tokenizer.pad_token_id] * (length - len(ids))


def _private_backend(tokenizer: CLIPTokenizer) -> Tokenizer:
    """A copy of the tokenizer's engine that neither cuts nor pads.

    Each call of a transformers tokenizer sets both on the engine that all threads share, which fails ("Already
    borrowed") or gives another call's length. The copy is made once, and again when tokens were added.
    """
    from tokenizers import Tokenizer

    with _backends_lock:
        size, backend = _backends.get(tokenizer, (-1, None))
        if backend is None or size != len(tokenizer):
            backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            backend.no_truncation()
            backend.no_padding()
            _backends[tokenizer] = (len(tokenizer), backend)
        return backend
