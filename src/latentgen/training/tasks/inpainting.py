"""Parts of pictures from texts: the UNet is shown the mask and what is around it (LDM, section 4.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentgen.models.unet import UNet2DConditionModel
from latentgen.pipelines.inpaint import InpaintPipeline
from latentgen.training.data import load_picture
from latentgen.training.image_folder import Example
from latentgen.training.loop import Batch
from latentgen.training.masks import random_mask
from latentgen.training.tasks.text_to_image import TextConditioned, TextToImage

if TYPE_CHECKING:
    from transformers import CLIPTextModel

KEPT = 2**32
"""Bytes of pictures that are kept in memory; more of them are read from their files again and again."""

SHOWN = 8  # pictures in a sample


class MaskConditioned(TextConditioned):
    """A UNet that is shown noisy latents, a mask and the latents around it side by side, and attends to texts.

    Args:
        unet: of 2 C + 1 channels for latents of C.
        text_encoder: of the texts.
        look: pictures (B, 3, H, W) uint8, masks (B, 1, H, W) and normal noise (B, C, h, w) to what the UNet is shown of them,
            (B, C + 1, h, w).
    """

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, look: Callable[..., Tensor]) -> None:
        super().__init__(unet, text_encoder)
        self.look_around = look

    def forward(  # type: ignore[override]
        self, latents: Tensor, timesteps: Tensor, ids: Tensor, pictures: Tensor, masks: Tensor, spread: Tensor
    ) -> Tensor:
        shown = self.look_around(pictures, masks, spread)
        return super().forward(torch.cat([latents, shown], dim=1), timesteps, ids)


class Inpainting(TextToImage):
    """Captions, and of each picture all but what a random mask hides, as Stable Diffusion's inpainting models are shown them."""

    pipeline_class = InpaintPipeline

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.module = MaskConditioned(self.unet, self.text_encoder, self.look_around)

    @property
    def extra_channels(self) -> int:
        return self.autoencoder.config.latent_channels + 1

    @torch.no_grad()
    def look_around(self, pictures: Tensor, masks: Tensor, spread: Tensor) -> Tensor:
        """The mask on the latents' grid and the latents of the picture with grey under the mask: see `InpaintPipeline`."""
        with torch.autocast(pictures.device.type, enabled=False):
            holes = masks.float()
            posterior = self.autoencoder.encode((pictures.float() / 127.5 - 1) * (1 - holes))
            around = self.autoencoder.scale(posterior.sample(spread))
            return torch.cat([F.max_pool2d(holes, self.autoencoder.config.factor), around], dim=1)

    def prepare(self, examples: Sequence[Example]) -> None:
        super().prepare(examples)
        self.kept_examples, self.pictures = list(examples), None
        size = self.config.data.size
        if len(examples) * 3 * size * size <= KEPT:
            self.pictures = self._load(np.arange(len(examples)))

    def _load(self, chosen: np.ndarray) -> np.ndarray:
        """Pictures by number, (B, H, W, 3) uint8."""
        size = self.config.data.size
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(lambda k: load_picture(self.kept_examples[k].path, size), chosen)))

    def condition(self, chosen: np.ndarray, random: np.random.Generator) -> Batch:
        pictures = self._load(chosen) if self.pictures is None else self.pictures[chosen]
        size, vae = self.config.data.size, self.autoencoder.config
        side = size // vae.factor
        masks = np.stack([random_mask(random, size) for _ in chosen])
        spread = random.standard_normal((len(chosen), vae.latent_channels, side, side), dtype=np.float32)
        return super().condition(chosen, random) | {
            "pictures": torch.from_numpy(pictures).permute(0, 3, 1, 2),
            "masks": torch.from_numpy(masks).unsqueeze(1),
            "spread": torch.from_numpy(spread),
        }

    def draw(self) -> tuple[Tensor, int] | None:
        """Pictures with a hole, what the model draws there, and what was there."""
        samples, shown = self.config.samples, self.kept_examples[:SHOWN]
        size, random = self.config.data.size, np.random.default_rng(0)
        pictures = torch.from_numpy(self._load(np.arange(len(shown)))).permute(0, 3, 1, 2).float() / 255
        masks = torch.from_numpy(np.stack([random_mask(random, size) for _ in shown])).unsqueeze(1).float()
        drawn = self.pipeline()(
            [e.text for e in shown],
            pictures,
            masks,
            num_inference_steps=samples.num_inference_steps,
            guidance_scale=samples.guidance_scale,
            seed=0,
            output_type="pt",
            show_progress=False,
        ).images.cpu()
        return torch.cat([pictures * (1 - masks) + 0.5 * masks, drawn, pictures]), len(shown)
