"""Pictures of a class: the UNet attends to one token, learnt for each class and for none (LDM, appendix D.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentgen.models.conditioners import ClassEmbedder
from latentgen.models.unet import UNet2DConditionModel
from latentgen.pipelines.class2image import Class2ImagePipeline
from latentgen.training.image_folder import METADATA, Example
from latentgen.training.init_from import load_network
from latentgen.training.loop import Batch
from latentgen.training.record import section
from latentgen.training.tasks.task import Task

WIDTH = 512
"""Of the classes' tokens, unless [unet] gives a `cross_attention_dim`: LDM's."""

SHOWN = 16  # pictures in a sample, at most


class ClassConditioned(nn.Module):
    """UNet and class embedder as one network: noisy latents (B, C, h, w), timesteps (B,) and labels (B,) to the output."""

    def __init__(self, unet: UNet2DConditionModel, class_embedder: ClassEmbedder) -> None:
        super().__init__()
        self.unet = unet
        self.class_embedder = class_embedder

    def forward(self, latents: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        return self.unet(latents, timesteps, self.class_embedder(labels))


class ClassToImage(Task):
    """The `label` of each line of the metadata, some of them replaced by the null class."""

    parts = ("unet", "class_embedder")
    unet: UNet2DConditionModel

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        names = _names(self.examples, str(self.config.data.folder / METADATA))
        start = self.config.run.init_from
        width = self.config.unet.get("cross_attention_dim", WIDTH)
        self.unet = self._make_unet(UNet2DConditionModel, cross_attention_dim=width)
        if start is None:
            self.class_embedder = ClassEmbedder.from_config(
                {"num_classes": len(names) + 1, "embed_dim": width, "has_null_class": True, "class_names": names}
            )
        else:
            self.class_embedder = load_network(ClassEmbedder, start / "class_embedder", self.accelerator.device)
            known = self.class_embedder.config.class_names or ()
            if unknown := [name for name in names if name not in known]:
                raise ValueError(
                    f"{self.config.data.folder / METADATA} has the labels {', '.join(unknown)}, which init_from, "
                    f"{start / 'class_embedder'}, has no class for; it has {', '.join(known) or 'no names'}."
                )
        if self.config.dropout and not self.class_embedder.config.has_null_class:
            raise ValueError(
                f"condition_dropout={self.config.dropout} needs a null class, which init_from has not: set it to 0."
            )
        self.class_embedder.requires_grad_(True)
        self.module = ClassConditioned(self.unet, self.class_embedder)

    @property
    def names(self) -> tuple[str, ...]:
        return self.class_embedder.config.class_names or ()

    @property
    def settings(self) -> dict[str, Any]:
        return section("class_embedder", asdict(self.class_embedder.config))

    def prepare(self, examples: Sequence[Example]) -> None:
        number = {name: k for k, name in enumerate(self.names)}
        self.labels = torch.tensor([number[e.label or ""] for e in examples])

    def condition(self, chosen: np.ndarray, random: np.random.Generator) -> Batch:
        labels = self.labels[chosen]
        labels[self._dropped(len(chosen), random)] = self.class_embedder.config.num_classes - 1
        return {"labels": labels}

    def pipeline(self) -> Class2ImagePipeline:
        return Class2ImagePipeline(
            vae=self.autoencoder, class_embedder=self.class_embedder, unet=self.unet, scheduler=self.scheduler
        )

    def draw(self) -> tuple[Tensor, int] | None:
        samples = self.config.samples
        pictures = self.pipeline()(
            self.names[:SHOWN],
            num_inference_steps=samples.num_inference_steps,
            guidance_scale=samples.guidance_scale if self.class_embedder.config.has_null_class else 1.0,
            seed=0,
            output_type="pt",
            show_progress=False,
        ).images
        return pictures, min(8, len(pictures))


def _names(examples: Sequence[Example], where: str) -> list[str]:
    """The classes that occur, in order: of numbers if all are numbers, else of the alphabet.

    Raises:
        ValueError: if a picture has none.
    """
    if without := [e for e in examples if e.label is None]:
        raise ValueError(
            f'{where}: {len(without)} of {len(examples)} lines have no "label", the class of the picture; the first is of '
            f"{without[0].path.name}."
        )
    names = {e.label for e in examples if e.label is not None}
    return sorted(names, key=int if all(name.isdecimal() for name in names) else None)
