"""Pictures from texts: the UNet attends to a text encoder that is trained with it (LDM, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from latentgen.models.unet import UNet2DConditionModel
from latentgen.pipelines.pipeline import Pipeline
from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.text import load_clip_text_encoder, load_clip_tokenizer, save_tokenizer, tokenize
from latentgen.training.checkpoint import checkpoints
from latentgen.training.config import TextConfig
from latentgen.training.fingerprints import tokenizer_fingerprint
from latentgen.training.folders import replacing_folder
from latentgen.training.image_folder import Example
from latentgen.training.init_from import check_text, text_sizes, variant_to_read
from latentgen.training.loop import Batch
from latentgen.training.record import section
from latentgen.training.tasks.task import Task
from latentgen.training.text import build_text_encoder, tokenize_captions, train_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


class TextConditioned(nn.Module):
    """UNet and text encoder as one network: noisy latents (B, C, h, w), timesteps (B,) and token ids (B, L) to the output."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        return self.unet(latents, timesteps, self.text_encoder(input_ids=ids).last_hidden_state)


class TextToImage(Task):
    """Captions, some of them dropped."""

    parts = ("unet", "text_encoder", "tokenizer")
    captions = True
    pipeline_class: ClassVar[type[Pipeline]] = Text2ImagePipeline
    unet: UNet2DConditionModel

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        with self.accelerator.main_process_first():
            self.tokenizer = self._tokenizer(train=self.accelerator.is_main_process)
        self.unet = self._make_unet(
            UNet2DConditionModel, self.extra_channels, cross_attention_dim=self.text.hidden_size
        )
        self.text_encoder = self._text_encoder()
        self.text_encoder.requires_grad_(True)
        self.module = TextConditioned(self.unet, self.text_encoder)

    @property
    def extra_channels(self) -> int:
        """What the UNet is shown beside the latents."""
        return 0

    @property
    def text(self) -> TextConfig:
        return self.config.text or TextConfig()

    def _tokenizer(self, *, train: bool) -> CLIPTokenizer:
        run = self.config.run
        if run.init_from is not None:
            return load_clip_tokenizer(run.init_from / "tokenizer")
        kept = run.output / "tokenizer"
        if train and not (kept.exists() and checkpoints(run.output / "checkpoints")):  # checkpoints need theirs
            with replacing_folder(kept) as folder:
                save_tokenizer(train_tokenizer([e.text for e in self.examples], self.text), folder)
        return load_clip_tokenizer(kept)

    def _text_encoder(self) -> CLIPTextModel:
        start = self.config.run.init_from
        if start is None:
            return build_text_encoder(self.tokenizer, self.text)
        folder = start / "text_encoder"
        encoder = load_clip_text_encoder(
            folder, variant=variant_to_read(folder), device=self.accelerator.device, dtype=torch.float32
        )
        if self.config.text is not None:
            check_text(self.config.text, self.tokenizer, encoder, start)
        return encoder

    @property
    def settings(self) -> dict[str, Any]:
        encoder = self.text_encoder.config
        return (
            section("text", text_sizes(encoder) | {"max_length": encoder.max_position_embeddings})
            | ({} if self.config.run.init_from else section("text", {"vocab_size": self.text.vocab_size}))
            | {"tokenizer": tokenizer_fingerprint(self.tokenizer)}
        )

    def look(self) -> None:
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        self.empty = tokenize(self.tokenizer, [""], max_length=length)[0]
        self.ids = tokenize_captions(self.tokenizer, [e.text for e in self.examples], length)

    def prepare(self, examples: Sequence[Example]) -> None:
        kept = {example.path for example in examples}
        self.ids = self.ids[[example.path in kept for example in self.examples]]  # without those of broken pictures

    def condition(self, chosen: np.ndarray, random: np.random.Generator) -> Batch:
        ids = self.ids[chosen]
        ids[self._dropped(len(chosen), random)] = self.empty
        return {"ids": ids}

    def pipeline(self) -> Any:
        return self.pipeline_class(  # type: ignore[call-arg]
            vae=self.autoencoder,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
        )

    def draw(self) -> tuple[Tensor, int] | None:
        samples = self.config.samples
        if not samples.prompts:
            return None
        pictures = self.pipeline()(
            list(samples.prompts),
            num_inference_steps=samples.num_inference_steps,
            guidance_scale=samples.guidance_scale,
            seed=0,
            output_type="pt",
            show_progress=False,
        ).images
        return pictures, min(8, len(samples.prompts))
