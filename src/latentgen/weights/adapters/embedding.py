"""Textual inversion files: vectors that stand for a new token (Gal et al. 2022), in the spellings that are safetensors."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from latentgen.weights.adapters.lora import refuse_pickle
from latentgen.weights.errors import WeightsError
from latentgen.weights.safetensors_io import read_tensors

NAMELESS = ("emb_params", "clip_l", "*", "string_to_param.*")
"""Names under which A1111 and others keep the vectors: none is the token, which is the file's name then."""

MOST_VECTORS = 75
"""As many tokens as a prompt has room for."""


def read_embedding(path: str | os.PathLike[str], *, width: int, token: str | None = None) -> tuple[str, Tensor]:
    """Read an embedding.

    Args:
        path: a safetensors file with one tensor, [D] or [n, D]: under the token's name, as diffusers writes it, or under
            `emb_params` (A1111) or `clip_l`.
        width: D, of the text encoder's token embeddings.
        token: the word that it stands for in prompts; None is the tensor's name, or the file's where that says nothing.

    Returns:
        The token, and its vectors (n, D) as they are in the file.

    Raises:
        WeightsError: if the file cannot be read, has another form, or is for another text encoder.
    """
    path = Path(path)
    refuse_pickle(path)
    tensors = read_tensors(path)
    if "clip_g" in tensors:
        raise WeightsError(f"{path} is an embedding for Stable Diffusion XL (it has clip_g): load it on such a model.")
    if len(tensors) != 1:
        some = ", ".join(sorted(tensors)[:10]) or "none"
        raise WeightsError(f"{path} is no embedding: it has {len(tensors)} tensors ({some}), and an embedding has one.")
    [(name, vectors)] = tensors.items()
    if not vectors.is_floating_point() or vectors.ndim not in (1, 2) or vectors.numel() == 0:
        raise WeightsError(
            f"{path} is no embedding: {name} is {vectors.dtype} of shape {tuple(vectors.shape)}, and must be "
            "vectors [D] or [n, D]."
        )
    if vectors.shape[-1] != width:
        raise WeightsError(
            f"{path} was made for another text encoder: its vectors have {vectors.shape[-1]} numbers, and this one's {width} "
            "(768 in Stable Diffusion 1, 1024 in 2): load it on the model it was made for."
        )
    if not bool(vectors.float().isfinite().all()):
        raise WeightsError(f"{path}: {name} has values that are not finite: fetch it again.")
    vectors = vectors.reshape(-1, width)
    if len(vectors) > MOST_VECTORS:
        raise WeightsError(f"{path} has {len(vectors)} vectors, and a prompt has room for {MOST_VECTORS} tokens.")
    if token is None:
        token = path.stem if name in NAMELESS else name
    return token, vectors
