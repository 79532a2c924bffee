"""Larger pictures from smaller ones: the small picture is concatenated to the latents (LDM, section 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from latentgen.models.unet2d import UNet2DModel
from latentgen.pipelines.superres import SuperResPipeline
from latentgen.training.data import load_picture, to_tensor
from latentgen.training.image_folder import Example
from latentgen.training.loop import Batch
from latentgen.training.tasks.task import Task

SHOWN = 8  # pictures in a sample


class PictureConditioned(nn.Module):
    """A UNet that is shown noisy latents (B, C, h, w) and small pictures (B, 3, h, w) side by side, at timesteps (B,)."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, timesteps: Tensor, small: Tensor) -> Tensor:
        return self.unet(torch.cat([latents, small], dim=1), timesteps)


class SuperResolution(Task):
    """Each picture made smaller by the autoencoder's factor, as what the larger one is drawn from."""

    parts = ("unet",)
    crops = True
    unet: UNet2DModel

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.unet = self._make_unet(UNet2DModel, extra_channels=3)
        self.module = PictureConditioned(self.unet)

    def prepare(self, examples: Sequence[Example]) -> None:
        size, factor = self.config.data.size, self.autoencoder.config.factor
        with ThreadPoolExecutor(4) as pool:
            self.small = np.stack(list(pool.map(lambda e: shrink(load_picture(e.path, size), factor), examples)))
        self.shown = [load_picture(e.path, size) for e in examples[:SHOWN]]

    def condition(self, chosen: np.ndarray, random: np.random.Generator) -> Batch:
        return {"small": to_tensor(self.small[chosen])}

    def pipeline(self) -> SuperResPipeline:
        return SuperResPipeline(vae=self.autoencoder, unet=self.unet, scheduler=self.scheduler)

    def draw(self) -> tuple[Tensor, int] | None:
        """The small pictures enlarged without a model, what the model makes of them, and what they were made from."""
        small, large = to_tensor(self.small[:SHOWN]) / 2 + 0.5, to_tensor(self.shown) / 2 + 0.5
        drawn = self.pipeline()(
            image=small,
            num_inference_steps=self.config.samples.num_inference_steps,
            seed=0,
            output_type="pt",
            show_progress=False,
        ).images.cpu()
        plain = F.interpolate(small, large.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
        return torch.cat([plain, drawn, large]), len(small)


def shrink(picture: np.ndarray, factor: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 made smaller by `factor` with a bicubic filter that takes all pixels into account."""
    height, width = picture.shape[:2]
    size = (width // factor, height // factor)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
