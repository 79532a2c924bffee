"""Stage 1: the autoencoder (LDM, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.training.config import AutoencoderTraining
from latentgen.training.data import Example, check_pictures, load_picture, order, read_folder, to_tensor
from latentgen.training.grid import save_grid
from latentgen.training.loop import Batch, train
from latentgen.training.losses import first_stage_loss

if TYPE_CHECKING:
    from accelerate import Accelerator

SHOWN = 8  # pictures in a sample
MEASURED = 1024  # pictures that the latent scale is measured on


class AutoencoderStage:
    """Pictures, cut to random squares, through the autoencoder and back."""

    def __init__(self, config: AutoencoderTraining, examples: Sequence[Example], accelerator: Accelerator) -> None:
        self.config = config
        self.examples = examples
        self.device = accelerator.device
        self.module: nn.Module
        data, run = config.data, config.run
        if run.init_from is not None:
            self.autoencoder = AutoencoderKL.from_pretrained(run.init_from, device=self.device, dtype=torch.float32)
        else:
            self.autoencoder = AutoencoderKL.from_config({"sample_size": data.crop or data.size, **config.model})
        self.autoencoder.requires_grad_(True).to(memory_format=torch.channels_last)
        self.module = self.autoencoder
        side, factor = data.crop or data.size, self.autoencoder.config.factor
        if side % factor or side > data.size:
            raise ValueError(
                f"pictures of {side} pixels do not fit: the autoencoder's factor is {factor}, the size {data.size}."
            )

    def batch(self, index: int, process: int, processes: int) -> Batch:
        data, run = self.config.data, self.config.run
        chosen = order(len(self.examples), run.batch_size, index, seed=run.seed, process=process, processes=processes)
        random = np.random.default_rng((run.seed, 1, index, process))
        side = data.crop or data.size
        corners = random.integers(0, data.size - side + 1, size=(len(chosen), 2))
        with ThreadPoolExecutor(4) as pool:
            pictures = list(pool.map(lambda i: load_picture(self.examples[i].path, data.size), chosen))
        cut = [p[y : y + side, x : x + side] for p, (y, x) in zip(pictures, corners, strict=True)]
        config = self.autoencoder.config
        shape = (len(chosen), config.latent_channels, side // config.factor, side // config.factor)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(int(random.integers(2**63))))
        return {"pictures": to_tensor(cut).contiguous(memory_format=torch.channels_last), "noise": noise}

    def loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        reconstructions, posterior = module(batch["pictures"], batch["noise"])
        return first_stage_loss(batch["pictures"], reconstructions.float(), posterior, **asdict(self.config.loss))

    def _pictures(self, count: int) -> Tensor:
        chosen = self.examples[:count]
        return to_tensor([load_picture(e.path, self.config.data.size) for e in chosen])

    def draw(self, path: Path) -> None:
        """Pictures above their reconstructions."""
        pictures = self._pictures(SHOWN)
        decoded = self.autoencoder.decode(self.autoencoder.encode(pictures.to(self.device)).mode())
        save_grid(torch.cat([pictures, decoded.float().cpu()]), path, columns=len(pictures))

    def export(self, folder: Path) -> None:
        """Write the autoencoder with `scaling_factor` = 1 / std of its latents, so that they have unit variance."""
        squares, sums, count = 0.0, 0.0, 0
        for start in range(0, min(MEASURED, len(self.examples)), 16):
            pictures = to_tensor(
                [load_picture(e.path, self.config.data.size) for e in self.examples[start : start + 16]]
            )
            posterior = self.autoencoder.encode(pictures.to(self.device))
            z = posterior.mean.double()
            sums, count = sums + float(z.sum()), count + z.numel()
            squares += float((z**2).sum() + posterior.logvar.double().exp().sum())
        std = math.sqrt(squares / count - (sums / count) ** 2)
        self.autoencoder.config = replace(
            self.autoencoder.config, scaling_factor=round(1 / std, 6), sample_size=self.config.data.size
        )
        self.autoencoder.save_pretrained(folder)


def train_autoencoder(config: AutoencoderTraining, *, resume: bool = False) -> Path:
    """Train the first stage and return the folder of the finished autoencoder.

    Args:
        config: what `latentgen train autoencoder` reads from its file.
        resume: go on from the newest checkpoint of the output folder.

    Raises:
        ValueError: for pictures that cannot be read, or settings that do not fit together; before training starts.
    """
    examples = check_pictures(read_folder(config.data.folder), config.data.size, skip=config.data.skip_broken)
    return train(lambda accelerator: AutoencoderStage(config, examples, accelerator), config.run, resume=resume)
