"""Pictures from layouts: boxes with classes in, pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from latentgen.diffusion.noise import NoiseStream
from latentgen.models.first_stage import FirstStage
from latentgen.models.ldm_bert import LDMBertModel
from latentgen.models.unet import UNet2DConditionModel
from latentgen.pipelines.condition import Condition
from latentgen.pipelines.inputs import check_count, check_size, resolve_seeds
from latentgen.pipelines.output import ImageOutput, OutputType
from latentgen.pipelines.pipeline import Pipeline
from latentgen.pipelines.run import Callback, begin
from latentgen.pipelines.text_condition import check_text_width, check_unet_channels
from latentgen.runtime.tiling import Tiling
from latentgen.schedulers import Scheduler
from latentgen.text import LayoutTokenizer

Layout = Sequence[tuple[str | int, Sequence[float]]]
"""Objects, each a class and a box (left, top, right, bottom) in fractions of the picture."""


class Layout2ImagePipeline(Pipeline):
    """Pictures of things in boxes, by models of the form of LDM's OpenImages model (LDM, section 4.3.1 and table 9).

    pipe = Layout2ImagePipeline.from_pretrained("path/to/model")
    pipe([("Cat", (0.1, 0.3, 0.5, 0.9)), ("Dog", (0.5, 0.2, 0.9, 0.9))]).images[0]
    """

    component_kinds: ClassVar[dict[str, str]] = {
        "vae": "latentgen.FirstStage",
        "layout_tokenizer": "latentgen.LayoutTokenizer",
        "layout_encoder": "latentgen.LDMBertModel",
        "unet": "latentgen.UNet2DConditionModel",
        "scheduler": "latentgen.schedulers.Scheduler",
    }
    scheduler_defaults: ClassVar[dict[str, Any]] = {"clip_sample": False}
    folder_classes: ClassVar[tuple[str, ...]] = ("Layout2ImagePipeline",)

    def __init__(
        self,
        *,
        vae: FirstStage[Any],
        layout_tokenizer: LayoutTokenizer,
        layout_encoder: LDMBertModel,
        unet: UNet2DConditionModel,
        scheduler: Scheduler,
    ) -> None:
        """Put components together.

        Args:
            vae: a `VQModel` or an `AutoencoderKL`.
            layout_tokenizer: has the classes' names.
            layout_encoder: makes its tokens a context.
            unet: attends to it.
            scheduler: with the model's settings.

        Raises:
            ValueError: if they do not fit one another.
        """
        self.vae = vae
        self.layout_tokenizer = layout_tokenizer
        self.layout_encoder = layout_encoder
        self.unet = unet
        self.scheduler = scheduler
        self._check_fit()

    def _check_fit(self) -> None:
        check_unet_channels(self.unet, self.vae)
        check_text_width(self.layout_encoder, self.unet)
        tokens, config = self.layout_tokenizer, self.layout_encoder.config
        if tokens.tokens > config.vocab_size or tokens.length > config.max_position_embeddings:
            raise ValueError(
                f"the layout tokenizer gives {tokens.length} tokens out of {tokens.tokens}, and the encoder reads at most "
                f"{config.max_position_embeddings} out of {config.vocab_size}."
            )

    @torch.no_grad()
    def __call__(
        self,
        layout: Layout | Sequence[Layout],
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        num_images_per_layout: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        eta: float = 0.0,
        scheduler: Scheduler | str | None = None,
        latents: Tensor | None = None,
        tiling: Tiling | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
        show_progress: bool | None = None,
    ) -> ImageOutput:
        """Make pictures.

        Args:
            layout: a list of objects, each a class (a name or a number) and its box (left, top, right, bottom) in [0, 1]; or a
                list of such lists.
            height, width: in pixels, multiples of the VAE's factor; None is the size that the model was trained on.
            num_inference_steps: in [1, trained timesteps].
            num_images_per_layout: at least 1; the results are ordered by layout, then by image.
            seed: an int s gives the images seeds s, s + 1, ...; a list gives each its own; None draws them at random.
            generator: instead of `seed`, a torch.Generator that the seeds are drawn from (or one for each image).
            eta: in [0, 1], DDIM's amount of fresh noise (Song et al. 2021, eq. 16).
            scheduler: for this call only: a scheduler, or a name as "euler", "dpm++_karras" with the model's settings.
            latents: (N, C, h, w) standard normal noise to start from, instead of the seed's.
            tiling: for large pictures, a `Tiling` that says in which tiles the UNet and the VAE work; None is none.
            output_type: "pil", "np", "pt" or "latent"; see `ImageOutput`.
            callback_on_step_end: called as `(pipe, step, timestep, {"latents": ...})` after each step; may return a
                dictionary whose "latents" replace them, and may raise `StopSampling` to end the call with what there is.
            show_progress: whether to show a progress bar; None is `pipe.show_progress`.

        Raises:
            ValueError: for an argument that breaks its rule.
            FloatingPointError: if a network gives values that are not finite.
        """
        call = begin(
            self,
            self.vae,
            num_inference_steps=num_inference_steps,
            scheduler=scheduler,
            eta=eta,
            tiling=tiling,
            output_type=output_type,
            callback=callback_on_step_end,
            show_progress=show_progress,
        )
        per_entry = check_count("num_images_per_layout", num_images_per_layout)
        size = check_size(height, width, self.unet.config.sample_size, self.vae.config.factor)
        ids = torch.stack(self._tokens(layout)).to(self.device)
        condition = Condition(self.layout_encoder(ids), None).repeated(per_entry)
        seeds = resolve_seeds(seed, generator, len(condition.positive))
        noise = NoiseStream(seeds, (self.vae.config.embed_dim, *size), self.device)
        start = call.start(noise, latents)
        return call.output(call.sample(start * call.plan.start_scale, noise, condition), seeds)

    def _tokens(self, layout: Any) -> list[Tensor]:
        if isinstance(layout, str) or not isinstance(layout, Sequence) or not layout:
            raise ValueError(
                f"layout={layout!r} must be a list of objects, (class, (x0, y0, x1, y1)), or a list of such lists."
            )
        first = layout[0]
        if isinstance(first, Sequence) and first and isinstance(first[0], str | int):
            return [self.layout_tokenizer.encode(layout)]
        return [self.layout_tokenizer.encode(objects, f"layout[{k}]") for k, objects in enumerate(layout)]
