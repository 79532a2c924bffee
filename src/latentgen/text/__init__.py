"""Prompts to embeddings, and layouts to tokens.

Tokenizers and text encoders are those of transformers, which is imported on first use.
"""

from latentgen.text.bert_tokenizer import load_bert_tokenizer, save_bert_tokenizer
from latentgen.text.clip import load_clip_text_encoder, make_clip_text_encoder, save_text_encoder
from latentgen.text.clip_tokenizer import load_clip_tokenizer, save_tokenizer
from latentgen.text.layout_tokenizer import LayoutTokenizer
from latentgen.text.local_tokenizers import find_tokenizer
from latentgen.text.new_tokens import Runs, check_new_token, token_table, with_tokens, with_vectors
from latentgen.text.prompts import check_clip_skip, encode_prompts, tokenize

__all__ = [
    "LayoutTokenizer",
    "Runs",
    "check_clip_skip",
    "check_new_token",
    "encode_prompts",
    "find_tokenizer",
    "load_bert_tokenizer",
    "load_clip_text_encoder",
    "load_clip_tokenizer",
    "make_clip_text_encoder",
    "save_bert_tokenizer",
    "save_text_encoder",
    "save_tokenizer",
    "token_table",
    "tokenize",
    "with_tokens",
    "with_vectors",
]
