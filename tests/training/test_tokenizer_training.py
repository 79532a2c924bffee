"""A tokenizer of one's own writes any text, and others read it."""

import pytest
import torch

from latentgen.text import load_clip_tokenizer, save_tokenizer, tokenize
from latentgen.training.config import TextConfig
from latentgen.training.text import build_text_encoder, train_tokenizer

CAPTIONS = [f"a {size} {colour} {shape}" for size in ("small", "large") for colour in ("red", "green", "blue")
            for shape in ("circle", "square", "star")]  # fmt: skip
TEXTS = ["a small red circle", "Größe 12.5 µm", "猫が好き 🐈‍⬛", "\u0000\u200b\uffff", "zyx qwv !?", "e\u0301", "𝔘𝔫𝔦"]
CONFIG = TextConfig(max_length=24, vocab_size=560, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, CONFIG)


def test_common_words_become_single_tokens(tokenizer):
    assert 514 < len(tokenizer) <= 560
    assert "red</w>" in tokenizer.get_vocab()
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert tokenizer.model_max_length == 24
    assert tokenizer.bos_token_id == len(tokenizer) - 2
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == len(tokenizer) - 1


@pytest.mark.parametrize("text", CAPTIONS[:4])
def test_captions_round_trip(tokenizer, text):
    ids = tokenize(tokenizer, [text])
    assert tokenizer.decode(ids[0], skip_special_tokens=True).strip() == text


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_can_be_written(tokenizer, text):
    """No letter is lost to the unknown token, which is the end token in CLIP: it would cut the prompt off."""
    ids = tokenize(tokenizer, [text], max_length=200)[0]
    end = int((ids == tokenizer.eos_token_id).nonzero()[0])
    assert (ids[end:] == tokenizer.eos_token_id).all()
    written = tokenizer.decode(ids[1:end])
    normal = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    assert written.replace(" ", "") == normal.replace(" ", "")


def test_learning_is_repeatable(tokenizer):
    assert train_tokenizer(CAPTIONS, CONFIG).get_vocab() == tokenizer.get_vocab()


def test_smallest_vocabulary_and_no_captions():
    tokenizer = train_tokenizer(["", ""], TextConfig(max_length=24, vocab_size=514))
    assert len(tokenizer) == 514
    assert tokenize(tokenizer, ["ab"]).shape == (1, 24)


def test_saved_tokenizer_reads_the_same_everywhere(tokenizer, tmp_path):
    from transformers import AutoTokenizer, CLIPTokenizer

    save_tokenizer(tokenizer, tmp_path)
    expected = tokenize(tokenizer, TEXTS, max_length=24)
    assert torch.equal(tokenize(load_clip_tokenizer(tmp_path), TEXTS, max_length=24), expected)
    for cls in (CLIPTokenizer, AutoTokenizer):
        theirs = cls.from_pretrained(tmp_path)
        kwargs = {"padding": "max_length", "truncation": True, "max_length": 24, "return_tensors": "pt"}
        assert torch.equal(theirs(TEXTS, **kwargs).input_ids, expected)
        assert theirs.model_max_length == 24


def test_text_encoder_fits_the_tokenizer(tokenizer):
    encoder = build_text_encoder(tokenizer, CONFIG)
    states = encoder(input_ids=tokenize(tokenizer, CAPTIONS[:2])).last_hidden_state
    assert states.shape == (2, 24, 16)
    assert encoder.config.vocab_size == len(tokenizer)
    assert encoder.config.eos_token_id == tokenizer.eos_token_id
