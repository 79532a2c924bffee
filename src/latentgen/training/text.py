"""A CLIP-style tokenizer and text encoder of one's own."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from latentgen.text import tokenize
from latentgen.training.config import TextConfig

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], config: TextConfig) -> CLIPTokenizer:
    """Learn a byte-pair vocabulary (Sennrich et al. 2016) from captions, in the form that CLIP has.

    Every byte is in the vocabulary, alone and at a word's end, so any text can be written in it.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = alphabet + [f"{letter}</w>" for letter in alphabet]
    vocab = {symbol: index for index, symbol in enumerate([*symbols, START, END])}
    # An untrained CLIP tokenizer brings the rules for cleaning a prompt and splitting it into words.
    rules = CLIPTokenizer(vocab=vocab, merges=[]).backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    learner.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=config.vocab_size - 2,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            min_frequency=2,
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]["merges"]
    merges = [tuple(merge) for merge in learned[: config.vocab_size - len(vocab)]]
    tokens = [*symbols, *dict.fromkeys("".join(merge) for merge in merges if "".join(merge) not in vocab), START, END]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=config.max_length
    )


def tokenize_captions(tokenizer: CLIPTokenizer, captions: Sequence[str], length: int) -> Tensor:
    """Token ids of a training set, (N, length) int64; one warning tells of all captions that are cut."""
    with warnings.catch_warnings(record=True) as cut:
        warnings.simplefilter("always")
        ids = tokenize(tokenizer, captions, max_length=length)
    if cut:
        warnings.warn(f"{len(cut)} of {len(captions)} captions are too long. The first: {cut[0].message}", stacklevel=2)
    return ids


def build_text_encoder(tokenizer: CLIPTokenizer, config: TextConfig) -> CLIPTextModel:
    """A randomly initialised text encoder for the tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=config.max_length,
            hidden_size=config.hidden_size,
            intermediate_size=4 * config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="sdpa",
        )
    )
