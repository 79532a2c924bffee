"""Prompts to embeddings: CLIP's tokenizer and text encoder, those of transformers, which is imported on first use."""

from latentgen.text.clip import load_clip_text_encoder, save_text_encoder
from latentgen.text.clip_tokenizer import load_clip_tokenizer, save_tokenizer
from latentgen.text.prompts import check_clip_skip, encode_prompts, tokenize

__all__ = [
    "check_clip_skip",
    "encode_prompts",
    "load_clip_text_encoder",
    "load_clip_tokenizer",
    "save_text_encoder",
    "save_tokenizer",
    "tokenize",
]
