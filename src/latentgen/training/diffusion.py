"""Stage 2: the diffusion model in the autoencoder's latent space (LDM, section 3.2), under the condition of its task."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from latentgen.diffusion.noise_schedule import NoiseSchedule
from latentgen.diffusion.prediction import target
from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.schedulers.config import TRAINED
from latentgen.training.config import DiffusionTraining
from latentgen.training.data import check_pictures, order
from latentgen.training.fingerprints import examples_fingerprint, weights_fingerprint
from latentgen.training.grid import save_grid
from latentgen.training.image_folder import read_folder
from latentgen.training.init_from import (
    autoencoder_folder,
    check_pixels,
    latent_facts,
    load_network,
    warn_of_another_start,
)
from latentgen.training.latents import encode_pictures
from latentgen.training.loop import Batch, train
from latentgen.training.record import section, settings_of
from latentgen.training.tasks import TASK_CLASSES

if TYPE_CHECKING:
    from accelerate import Accelerator


def shifted_timesteps(uniform: Tensor, shift: float, count: int) -> Tensor:
    """Timesteps in [0, count) from draws u in [0, 1), more noisy ones the larger `shift` is: u -> s u / (1 + (s - 1) u).

    The share of timesteps above any level is what Esser et al. 2024, eq. 23, give a schedule for larger pictures; 1 is uniform.
    """
    moved = shift * uniform / (1 + (shift - 1) * uniform)
    return (moved * count).long().clamp(max=count - 1)


FEW_TOKENS = 1024


def _attention_for(latents: Tensor) -> AbstractContextManager[None]:
    """The kernels to attend with: on few tokens a CPU's fused attention is several times slower than plain products."""
    few = latents.shape[-2] * latents.shape[-1] <= FEW_TOKENS
    return sdpa_kernel(SDPBackend.MATH) if few and latents.device.type == "cpu" else nullcontext()


class DiffusionStage:
    """Latents, noised to random timesteps, and what the task shows of each picture."""

    def __init__(self, config: DiffusionTraining, accelerator: Accelerator, *, show_progress: bool = True) -> None:
        self.config = config
        self.accelerator = accelerator
        self.device = accelerator.device
        self.show = accelerator.is_main_process and show_progress
        data = config.data
        self.scheduler = config.make_scheduler()
        self.schedule = NoiseSchedule(self.scheduler.schedule.alphas_cumprod.to(self.device))
        # float32 first: the latents of the training set are worth it, and the weights are exported as they are.
        folder = autoencoder_folder(config.autoencoder)
        self.autoencoder = load_network(AutoencoderKL, folder, self.device)
        check_pixels(self.autoencoder.config, str(folder))
        factor = self.autoencoder.config.factor
        for name, side in (("size", data.size), ("crop", data.crop)):
            if side is not None and side % factor:
                raise ValueError(f"[data] {name}={side} must be a multiple of {factor}, the autoencoder's factor.")
        task = TASK_CLASSES[config.task]
        self.examples = read_folder(data.folder, captions=accelerator.is_main_process and task.captions)
        self.task = task(config, accelerator, self.autoencoder, self.scheduler, self.examples)
        if config.run.init_from is not None and accelerator.is_main_process:
            warn_of_another_start(config.run.init_from, self.scheduler, self.autoencoder, folder)
        self.task.pipeline()  # says what does not fit together
        self.settings = self._settings()
        self.autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.task.unet.requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module: nn.Module = self.task.module

    def prepare(self) -> None:
        data, cache = self.config.data, self.config.run.output / "cache"
        self.task.look()
        self.examples = check_pictures(self.examples, data.size, skip=data.skip_broken, show=self.show)
        self.task.prepare(self.examples)
        with self.accelerator.main_process_first():
            self.mean, self.std = encode_pictures(
                self.autoencoder, self.examples, data.size, cache=cache, show=self.show
            )

    def _settings(self) -> dict[str, Any]:
        """What the run was asked for, what came of it, and short names of what it was given."""
        own = ("decoder.", "post_quant_conv.")
        decoder = (pair for pair in self.autoencoder.state_dict().items() if pair[0].startswith(own))
        first_stage = latent_facts(self.autoencoder) | {"decoder": weights_fingerprint(decoder)}
        return (
            settings_of(self.config)
            | section("unet", asdict(self.task.unet.config))
            | section("scheduler", {name: getattr(self.scheduler, name) for name in TRAINED})
            | self.task.settings
            | {f"first stage {name}": fact for name, fact in first_stage.items()}
            | {"pictures": f"{len(self.examples)} with fingerprint {examples_fingerprint(self.examples)}"}
        )

    def batch(self, index: int, process: int, processes: int) -> Batch:
        run, data = self.config.run, self.config.data
        chosen = order(len(self.mean), run.batch_size, index, seed=run.seed, process=process, processes=processes)
        random = np.random.default_rng((run.seed, 2, index, process))
        noise = torch.Generator().manual_seed(int(random.integers(2**63)))
        mean, std = self.mean[chosen].float(), self.std[chosen].float()
        x0 = self.autoencoder.scale(mean + std * torch.randn(mean.shape, generator=noise))
        batch = {"x0": x0, **self.task.condition(chosen, random)}
        if data.crop is not None:
            batch = cut(batch, data.crop // self.autoencoder.config.factor, random)
        uniform = torch.rand(len(chosen), dtype=torch.float64, generator=noise)
        timesteps = shifted_timesteps(uniform, self.config.timestep_shift, self.scheduler.num_train_timesteps)
        eps = torch.randn(batch["x0"].shape, generator=noise)
        return batch | {"eps": eps, "timesteps": timesteps}

    def loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error of the network's output (Ho et al. 2020, eq. 14, for any prediction type)."""
        condition = dict(batch)
        x0, eps, timesteps = (condition.pop(name) for name in ("x0", "eps", "timesteps"))
        alpha, sigma = (v.view(-1, 1, 1, 1) for v in self.schedule.alpha_sigma(timesteps))
        noisy = self.schedule.add_noise(x0, eps, timesteps).contiguous(memory_format=torch.channels_last)
        with _attention_for(noisy):
            output = module(noisy, timesteps, **condition)
        wanted = target(self.scheduler.prediction_type, x0, eps, alpha, sigma)
        return {"mse": (output.float() - wanted).square().mean()}

    def draw(self, path: Path) -> None:
        if (drawn := self.task.draw()) is not None:
            pictures, columns = drawn
            save_grid(pictures * 2 - 1, path, columns=columns)

    def export(self, folder: Path) -> None:
        self.task.pipeline().save_pretrained(folder)


def cut(batch: Batch, side: int, random: np.random.Generator) -> Batch:
    """The same random square of every map of an example, (B, C, h, w) to (B, C, side, side)."""
    count, _, height, width = batch["x0"].shape
    corners = random.integers(0, (height - side + 1, width - side + 1), size=(count, 2))
    return {
        name: torch.stack([m[:, y : y + side, x : x + side] for m, (y, x) in zip(maps, corners, strict=True)])
        for name, maps in batch.items()
    }


def train_diffusion(config: DiffusionTraining, *, resume: bool = False, show_progress: bool = True) -> Path:
    """Train the second stage and return the folder of the finished model, which the pipeline of its task loads.

    Args:
        config: what `latentgen train diffusion` reads from its file.
        resume: go on from the newest checkpoint of the output folder.
        show_progress: draw progress bars.

    Raises:
        ValueError: for pictures that cannot be read, or settings that do not fit together; before training starts.
    """

    def make_stage(accelerator: Accelerator) -> DiffusionStage:
        return DiffusionStage(config, accelerator, show_progress=show_progress)

    return train(make_stage, config.run, resume=resume, show_progress=show_progress)
