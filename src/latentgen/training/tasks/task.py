"""What a diffusion model is conditioned on: all in which stage 2's tasks differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.models.denoising_unet import DenoisingUNet
from latentgen.nn.attention import Transformer2D
from latentgen.nn.resnet import ResnetBlock
from latentgen.pipelines.pipeline import Pipeline
from latentgen.schedulers import Scheduler
from latentgen.training.config import DiffusionTraining
from latentgen.training.image_folder import Example
from latentgen.training.init_from import check_agreement, load_network, widen_input
from latentgen.training.loop import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator

U = TypeVar("U", bound=DenoisingUNet[Any])


class Task(ABC):
    """The networks that are trained and what they are shown beside noisy latents.

    Attributes:
        parts: of a model's folder, those that training goes on with.
        captions: whether it is shown the pictures' texts.
        crops: whether the condition lies on the latents' grid and is cut with them.
        module: UNet and conditioner as one network: noisy latents (B, C, h, w), timesteps (B,) and what `condition` gives, by
            name, to the output.
        unet: the UNet of these.
    """

    parts: ClassVar[tuple[str, ...]]
    captions: ClassVar[bool] = False
    crops: ClassVar[bool] = False
    module: nn.Module
    unet: DenoisingUNet[Any]

    def __init__(
        self,
        config: DiffusionTraining,
        accelerator: Accelerator,
        autoencoder: AutoencoderKL,
        scheduler: Scheduler,
        examples: Sequence[Example],
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.autoencoder = autoencoder
        self.scheduler = scheduler
        self.examples = examples
        if config.run.init_from is not None:
            self._check_start(config.run.init_from)

    def _check_start(self, folder: Path) -> None:
        """Raise ValueError unless `folder` has the parts of a model that training goes on with."""
        if missing := [name for name in self.parts if not (folder / name).is_dir()]:
            raise ValueError(
                f"[run] init_from: {folder} has no {', '.join(f'{name}/' for name in missing)}; stage 2 starts from the folder "
                "of a whole model, on this machine."
            )

    def _make_unet(self, cls: type[U], extra_channels: int = 0, **others: Any) -> U:
        """The UNet of the file's [unet], or of the folder that the run starts from, for this first stage and these pictures.

        Args:
            cls: its class.
            extra_channels: of a condition that is concatenated to the latents; a UNet that the run starts from and that takes
                latents alone is widened by them.
            others: further settings that follow from other components.
        """
        settings, start, vae = self.config.unet, self.config.run.init_from, self.autoencoder.config
        size = self.config.data.size // vae.factor
        if start is not None:
            unet = load_network(cls, start / "unet", self.accelerator.device)
            if extra_channels and unet.config.in_channels == vae.latent_channels:
                widen_input(unet, extra_channels)
            wanted = {name: value for name, value in settings.items() if name != "sample_size"}
            check_agreement("unet", wanted, asdict(unet.config), start / "unet")
            unet.config = replace(unet.config, sample_size=size)  # what it is trained on from now on
            return unet
        channels = {"in_channels": vae.latent_channels + extra_channels, "out_channels": vae.latent_channels}
        unet = cls.from_config({"sample_size": size, **channels, **others, **settings})
        silence_residual_branches(unet)
        return unet

    @property
    def settings(self) -> dict[str, Any]:
        """What the conditioner was made with, by name: see `record`."""
        return {}

    def look(self) -> None:  # noqa: B027 (nothing to do is an answer)
        """Do what may warn, before the long work."""

    @abstractmethod
    def prepare(self, examples: Sequence[Example]) -> None:
        """Do the long work for the pictures that can be read."""

    @abstractmethod
    def condition(self, chosen: np.ndarray, random: np.random.Generator) -> Batch:
        """What the network is shown of the examples numbered `chosen`: a pure function of both arguments."""

    @abstractmethod
    def pipeline(self) -> Pipeline:
        """The components as they are, ready to be called or saved."""

    @abstractmethod
    def draw(self) -> tuple[Tensor, int] | None:
        """Pictures (N, 3, H, W) in [0, 1] that show how far the network has come, and how many stand in a row."""

    def _dropped(self, count: int, random: np.random.Generator) -> Tensor:
        """Which of `count` examples go without their condition, for classifier-free guidance, (count,) bool."""
        return torch.from_numpy(random.random(count) < self.config.dropout)


def silence_residual_branches(unet: nn.Module) -> None:
    """Start every residual branch, and the output, at zero (as LDM and ADM do): training is steadier from there."""
    layers: list[nn.Module] = [unet.conv_out]  # type: ignore[list-item]
    layers += [m.conv2 for m in unet.modules() if isinstance(m, ResnetBlock)]
    layers += [m.proj_out for m in unet.modules() if isinstance(m, Transformer2D)]
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
