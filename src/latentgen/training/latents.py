"""The training set as latents, encoded once: the first stage is frozen, so its work need not be done every epoch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.training.data import load_picture, to_tensor
from latentgen.training.fingerprints import DIGITS, weights_hash
from latentgen.training.image_folder import Example
from latentgen.weights.safetensors_io import read_tensors, write_tensors

BATCH = 16


def encode_pictures(
    autoencoder: AutoencoderKL, examples: Sequence[Example], size: int, *, cache: Path, show: bool = True
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every picture's posterior, each (N, C, h, w) float16, unscaled.

    The result is kept in the folder `cache` under a name that stands for the weights, the pictures and the size; it is
    read from there the next time.
    """
    path = cache / f"latents-{_fingerprint(autoencoder, examples, size)}.safetensors"
    if not path.exists():
        write_tensors(path, _encode(autoencoder, examples, size, show))
    tensors = read_tensors(path)
    return tensors["mean"], tensors["std"]


def _encode(autoencoder: AutoencoderKL, examples: Sequence[Example], size: int, show: bool) -> dict[str, Tensor]:
    means, stds = [], []
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        for start in tqdm(range(0, len(examples), BATCH), desc="encoding pictures", disable=not show):
            paths = [e.path for e in examples[start : start + BATCH]]
            pictures = to_tensor(list(pool.map(lambda p: load_picture(p, size), paths)))
            posterior = autoencoder.encode(pictures.to(autoencoder.device, autoencoder.dtype))
            means.append(posterior.mean.half().cpu())
            stds.append((0.5 * posterior.logvar.float()).exp().half().cpu())
    return {"mean": torch.cat(means), "std": torch.cat(stds)}


def _fingerprint(autoencoder: AutoencoderKL, examples: Sequence[Example], size: int) -> str:
    digest = weights_hash(autoencoder.state_dict().items())
    folder = os.path.commonpath([e.path.parent for e in examples])
    for path in (e.path for e in examples):
        facts = path.stat()
        digest.update(json.dumps([os.path.relpath(path, folder), facts.st_size, facts.st_mtime_ns]).encode())
    digest.update(str(size).encode())
    return digest.hexdigest()[:DIGITS]
