"""Short names for long things, to see whether they are the same as before."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from latentgen.training.image_folder import Example

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

DIGITS = 16


def weights_hash(tensors: Iterable[tuple[str, Tensor]]) -> hashlib._Hash:
    """The hash of named tensors, whatever their order, device or dtype; more may be added to it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest


def weights_fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Of named tensors."""
    return weights_hash(tensors).hexdigest()[:DIGITS]


def tokenizer_fingerprint(tokenizer: CLIPTokenizer) -> str:
    """Of the vocabulary."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:DIGITS]


def examples_fingerprint(examples: Sequence[Example]) -> str:
    """Of names, sizes in bytes, captions and classes, wherever the folder lies; the pictures themselves are not read."""
    folder = os.path.commonpath([e.path.parent for e in examples])
    facts = [
        (os.path.relpath(e.path, folder), e.path.stat().st_size, e.text, *([] if e.label is None else [e.label]))
        for e in examples
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:DIGITS]
