import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from tiny_clip import FAMILIES, REFERENCE, make_tokenizer_folder


@pytest.fixture(params=[*FAMILIES[:2], "tiny", "tiny padded with !"])
def tokenizer_folder(request, tmp_path):
    """A folder with vocab.json, merges.txt and both maps of special tokens: two published ones and two made here."""
    if request.param.startswith("tiny"):
        return make_tokenizer_folder(tmp_path / "tokenizer", pad="!" if "!" in request.param else "<|endoftext|>")
    folder = REFERENCE / request.param / "tokenizer"
    if not folder.is_dir():
        pytest.skip(f"the reference folder {request.param} is not on this machine")
    return folder


@pytest.fixture
def tiny_folder(tmp_path):
    return make_tokenizer_folder(tmp_path / "tokenizer")
