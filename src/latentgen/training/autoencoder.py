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
from latentgen.training.data import check_pictures, load_picture, order, to_tensor
from latentgen.training.fingerprints import examples_fingerprint
from latentgen.training.grid import save_grid
from latentgen.training.image_folder import Example, read_folder
from latentgen.training.init_from import autoencoder_folder, check_agreement, check_pixels, load_network
from latentgen.training.loop import Batch, train
from latentgen.training.losses import first_stage_loss
from latentgen.training.record import section, settings_of

if TYPE_CHECKING:
    from accelerate import Accelerator

SHOWN = 8  # pictures in a sample
MEASURED = 1024  # pictures that the latent scale is measured on


class AutoencoderStage:
    """Pictures, cut to random squares, through the autoencoder and back."""

    def __init__(self, config: AutoencoderTraining, accelerator: Accelerator, *, show_progress: bool = True) -> None:
        self.config = config
        self.device = accelerator.device
        self.show = accelerator.is_main_process and show_progress
        self.autoencoder = self._network()
        self.autoencoder.requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module: nn.Module = self.autoencoder
        data, factor = config.data, self.autoencoder.config.factor
        for name, side in (("size", data.size), ("crop", data.crop)):
            if side is not None and side % factor:
                raise ValueError(f"[data] {name}={side} must be a multiple of {factor}, the autoencoder's factor.")
        self.examples = read_folder(data.folder)
        self.settings = settings_of(config) | section("model", asdict(self.autoencoder.config))
        self.settings["pictures"] = f"{len(self.examples)} with fingerprint {examples_fingerprint(self.examples)}"

    def prepare(self) -> None:
        data = self.config.data
        self.examples = check_pictures(self.examples, data.size, skip=data.skip_broken, show=self.show)

    def _network(self) -> AutoencoderKL:
        settings, data, start = self.config.model, self.config.data, self.config.run.init_from
        if start is None:
            autoencoder = AutoencoderKL.from_config({"sample_size": data.crop or data.size, **settings})
            check_pixels(autoencoder.config, "[model]")
            return autoencoder
        folder = autoencoder_folder(start)
        autoencoder = load_network(AutoencoderKL, folder, self.device)
        check_agreement("model", settings, asdict(autoencoder.config), folder)
        check_pixels(autoencoder.config, str(folder))
        return autoencoder

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

    def _pictures(self, examples: Sequence[Example]) -> Tensor:
        return to_tensor([load_picture(e.path, self.config.data.size) for e in examples]).to(self.device)

    def draw(self, path: Path) -> None:
        """Pictures above their reconstructions."""
        pictures = self._pictures(self.examples[:SHOWN])
        decoded = self.autoencoder.decode(self.autoencoder.encode(pictures).mode())
        save_grid(torch.cat([pictures, decoded.float()]), path, columns=len(pictures))

    def export(self, folder: Path) -> None:
        """Write the autoencoder with `scaling_factor` = 1 / std of its latents, so that they have unit variance."""
        self.autoencoder.config = replace(
            self.autoencoder.config,
            scaling_factor=float(f"{1 / self._latent_std():.6g}"),
            sample_size=self.config.data.size,
        )
        self.autoencoder.save_pretrained(folder)

    def _latent_std(self) -> float:
        """Standard deviation of latents drawn from the posteriors of pictures spread over the training set."""
        spread = self.examples[:: max(1, len(self.examples) // MEASURED)][:MEASURED]
        squares, sums, count = 0.0, 0.0, 0
        for start in range(0, len(spread), 16):
            posterior = self.autoencoder.encode(self._pictures(spread[start : start + 16]))
            mean, variance = posterior.mean.double(), posterior.logvar.double().exp()
            sums, count = sums + float(mean.sum()), count + mean.numel()
            squares += float((mean**2 + variance).sum())
        return math.sqrt(squares / count - (sums / count) ** 2)


def train_autoencoder(config: AutoencoderTraining, *, resume: bool = False, show_progress: bool = True) -> Path:
    """Train the first stage and return the folder of the finished autoencoder.

    Args:
        config: what `latentgen train autoencoder` reads from its file.
        resume: go on from the newest checkpoint of the output folder.
        show_progress: draw progress bars.

    Raises:
        ValueError: for pictures that cannot be read, or settings that do not fit together; before training starts.
    """

    def make_stage(accelerator: Accelerator) -> AutoencoderStage:
        return AutoencoderStage(config, accelerator, show_progress=show_progress)

    return train(make_stage, config.run, resume=resume, show_progress=show_progress)
