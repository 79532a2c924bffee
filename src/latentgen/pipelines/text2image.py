"""Text to image."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor
from tqdm import tqdm

from latentgen.diffusion.noise import NoiseStream
from latentgen.diffusion.sampling import StepEvent, sample
from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.models.unet import UNet2DConditionModel
from latentgen.pipelines.denoiser import Denoiser
from latentgen.pipelines.inputs import (
    check_absent,
    check_choice,
    check_count,
    check_finite,
    check_number,
    check_prompts,
    check_side,
    check_tensor,
    plain_number,
    resolve_seeds,
)
from latentgen.pipelines.output import OUTPUT_TYPES, ImageOutput, OutputType, make_output
from latentgen.pipelines.pipeline import Pipeline
from latentgen.runtime.warn import warn_user
from latentgen.schedulers import DDIMScheduler, Scheduler, scheduler_by_name
from latentgen.text import check_clip_skip, encode_prompts

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

Callback = Callable[["Text2ImagePipeline", int, float, dict[str, Tensor]], dict[str, Tensor] | None]


class Text2ImagePipeline(Pipeline):
    """Pictures from prompts, by Stable Diffusion 1 and 2 and models of their form.

        pipe = Text2ImagePipeline.from_pretrained(path)
        pipe("an astronaut riding a horse", guidance_scale=7.5).images[0]

    A pipeline holds no state of a call: any number of threads may call one at the same time.
    """

    component_kinds: ClassVar[dict[str, str]] = {
        "vae": "latentgen.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModel",
        "tokenizer": "transformers.CLIPTokenizer",
        "unet": "latentgen.UNet2DConditionModel",
        "scheduler": "latentgen.schedulers.Scheduler",
    }
    folder_classes: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")

    def __init__(
        self,
        *,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: Scheduler,
    ) -> None:
        """Put components together.

        Raises:
            ValueError: if they do not fit one another.
        """
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.unet = unet
        self.scheduler = scheduler
        channels, given = vae.config.latent_channels, unet.config.in_channels
        if given == 9:
            raise ValueError("the UNet has 9 input channels: it is an inpainting model, which InpaintPipeline loads.")
        if given != channels:
            raise ValueError(f"the UNet takes {given} channels and the VAE's latents have {channels}; they must agree.")
        width, context = text_encoder.config.hidden_size, unet.config.cross_attention_dim
        if width != context:
            raise ValueError(
                f"the text encoder gives embeddings of width {width} and the UNet attends to width {context}; they must agree."
            )
        if unet.config.num_class_embeds is not None:
            raise ValueError(
                f"the UNet wants class labels (num_class_embeds={unet.config.num_class_embeds}), which text to image does "
                "not have: it is of another task."
            )

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        variant: str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        vae: AutoencoderKL | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        unet: UNet2DConditionModel | None = None,
        scheduler: Scheduler | None = None,
        safety_checker: None = None,
        feature_extractor: None = None,
        requires_safety_checker: bool | None = None,
    ) -> Self:
        """Load a model folder.

        Args:
            path_or_hub_id: a folder with `model_index.json`, or the id of one on the Hugging Face Hub.
            device: None is CUDA where there is one, else the CPU.
            dtype: "float16", "bfloat16", "float32" or the torch.dtype; None is float16 on CUDA, bfloat16 on a CPU that
                has it natively, float32 elsewhere.
            torch_dtype: another name for `dtype`.
            variant: for example "fp16": reads files named so where there are any.
            revision: branch, tag or commit on the Hub.
            cache_dir: where downloads are kept; None is the Hub's usual place.
            local_files_only: never touch the network.
            token: for models behind a login; True uses the one that `hf auth login` stored.
            vae, text_encoder, tokenizer, unet, scheduler: used instead of the folder's own. A network is moved to `device`,
                as by its `.to(device)`, and keeps its dtype.
            safety_checker, feature_extractor, requires_safety_checker: None (or False) has no effect, as there is none here;
                accepted because code for other libraries says so. Anything else is an error.

        Raises:
            WeightsError: naming the file, the key or class and the remedy. Nothing is half-loaded.
            ValueError: for arguments out of range and components that do not fit.
        """
        check_absent("safety_checker", safety_checker)
        check_absent("feature_extractor", feature_extractor)
        check_absent("requires_safety_checker", requires_safety_checker or None)
        return cls._load(
            path_or_hub_id,
            device=device,
            dtype=dtype,
            torch_dtype=torch_dtype,
            variant=variant,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            given={
                "vae": vae,
                "text_encoder": text_encoder,
                "tokenizer": tokenizer,
                "unet": unet,
                "scheduler": scheduler,
            },
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        eta: float = 0.0,
        scheduler: Scheduler | str | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        clip_skip: int | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
        show_progress: bool | None = None,
    ) -> ImageOutput:
        """Make pictures.

        Args:
            prompt: what to draw; a list makes a batch, ordered by prompt, then by image. "" draws without a condition.
            negative_prompt: what to stay away from; one for all prompts or one for each.
            height, width: in pixels, multiples of the VAE's factor; None is the size that the model was trained on.
            num_inference_steps: in [1, trained timesteps].
            guidance_scale: at least 0; 1 follows the prompt without guidance (Ho and Salimans 2022).
            guidance_rescale: in [0, 1], against overexposure (Lin et al. 2024, section 3.4).
            num_images_per_prompt: at least 1.
            seed: an int s gives the images seeds s, s + 1, ...; a list gives each its own; None draws them at random.
                An image depends on its own seed alone, not on its neighbours.
            generator: instead of `seed`, a torch.Generator that the seeds are drawn from (or one for each image).
            eta: in [0, 1], DDIM's amount of fresh noise (Song et al. 2021, eq. 16).
            scheduler: for this call only: a scheduler, or a name as "euler", "dpm++_karras" with the model's settings.
            latents: (N, C, h, w) standard normal noise to start from, instead of the seed's.
            prompt_embeds: (B, S, D) instead of `prompt`.
            negative_prompt_embeds: (B, S, D) instead of `negative_prompt`.
            clip_skip: leave out the text encoder's last layers, so many.
            output_type: "pil", "np", "pt" or "latent"; see `ImageOutput`.
            callback_on_step_end: called as `(pipe, step, timestep, {"latents": ...})` after each step; may return a
                dictionary whose "latents" replace them, and may raise `StopSampling` to end the call with what there is.
            show_progress: whether to show a progress bar; None is `pipe.show_progress`.

        Raises:
            ValueError: for an argument that breaks its rule.
            FloatingPointError: if the text encoder, the UNet or the decoder gives values that are not finite.
        """
        self._check_devices()
        check_choice("output_type", output_type, OUTPUT_TYPES)
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise ValueError(f"callback_on_step_end={callback_on_step_end!r} must be a function of four arguments.")
        guidance_scale, guidance_rescale = self._guidance(guidance_scale, guidance_rescale)
        per_prompt = check_count("num_images_per_prompt", num_images_per_prompt)
        solver = self._solver(scheduler, eta)
        plan = solver.plan(plain_number(num_inference_steps))
        shape = self._latent_shape(height, width)
        positive, negative = self._embeddings(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, clip_skip, guided=guidance_scale != 1
        )
        count = len(positive) * per_prompt
        seeds = resolve_seeds(seed, generator, count)
        noise = NoiseStream(seeds, shape, self.device)
        if latents is None:
            latents = noise.initial
        else:
            latents = check_tensor("latents", latents, (count, *shape), self.device, torch.float32).float()

        denoiser = Denoiser(
            self.unet,
            solver.prediction_type,
            plan,
            positive.repeat_interleave(per_prompt, 0),
            None if negative is None else negative.repeat_interleave(per_prompt, 0),
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
        )
        show = self.show_progress if show_progress is None else show_progress
        with tqdm(total=len(plan), disable=not show) as bar:

            def on_step(event: StepEvent) -> Tensor:
                bar.update()
                return event.latents if callback_on_step_end is None else self._call_back(callback_on_step_end, event)

            latents = sample(solver, denoiser, latents * plan.start_scale, plan, noise=noise, on_step=on_step)
        denoiser.check_outputs()
        check_finite(
            latents, "the latents after the last step", "check the callback that replaced them, or the scheduler"
        )
        return make_output(self.vae, latents, output_type, seeds)

    def _guidance(self, scale: float, rescale: float) -> tuple[float, float]:
        """The two numbers of guidance, checked."""
        scale = check_number("guidance_scale", scale, 0)
        rescale = check_number("guidance_rescale", rescale, 0, 1)
        if scale == 1 and rescale:
            warn_user("guidance_scale=1 runs without guidance: guidance_rescale has no effect.")
        return scale, rescale

    def _solver(self, scheduler: Scheduler | str | None, eta: float) -> Scheduler:
        """The call's scheduler, with its eta."""
        solver = self.scheduler if scheduler is None else scheduler
        if isinstance(solver, str):
            solver = scheduler_by_name(solver, self.scheduler.config)
        if not isinstance(solver, Scheduler):
            raise ValueError(f"scheduler={scheduler!r} must be a scheduler of latentgen or the name of one.")
        eta = check_number("eta", eta, 0, 1)
        if isinstance(solver, DDIMScheduler):
            return dataclasses.replace(solver, eta=eta) if eta else solver
        if eta:
            raise ValueError(f"eta={eta} is DDIM's; {type(solver).__name__} has none: leave it at 0 or use DDIM.")
        return solver

    def _latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """(C, h, w) of one image's latents."""
        factor = self.vae.config.factor
        size = self.unet.config.sample_size
        sides = size if isinstance(size, tuple) else (size, size)
        default_height, default_width = (None if s is None else s * factor for s in sides)
        return (
            self.unet.config.in_channels,
            check_side("height", height, default_height, factor) // factor,
            check_side("width", width, default_width, factor) // factor,
        )

    def _embeddings(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None,
        prompt_embeds: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        clip_skip: int | None,
        *,
        guided: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, D) embeddings of the prompts and, under guidance, of the negative prompts."""
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("give prompt or prompt_embeds, one of them; prompt='' draws without a condition.")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("negative_prompt and negative_prompt_embeds were both given; give one of them.")
        skip = check_clip_skip(self.text_encoder, clip_skip)
        if skip and prompt_embeds is not None and (negative_prompt_embeds is not None or not guided):
            warn_user("clip_skip has no effect: embeddings were given, and no text is encoded.")
        if prompt_embeds is None:
            positive = encode_prompts(self.tokenizer, self.text_encoder, check_prompts(prompt), clip_skip=skip)
        else:
            shape = (None, None, self.unet.config.cross_attention_dim)
            positive = check_tensor("prompt_embeds", prompt_embeds, shape, self.device, self.dtype)
        texts = check_prompts("" if negative_prompt is None else negative_prompt, "negative_prompt")
        if len(texts) not in (1, len(positive)):
            raise ValueError(
                f"negative_prompt has {len(texts)} entries; there must be 1 or {len(positive)}, as of prompts."
            )
        if guided:
            return positive, self._negative_embeddings(positive, texts, negative_prompt_embeds, skip)
        if negative_prompt is not None or negative_prompt_embeds is not None:
            warn_user("guidance_scale=1 runs without guidance: the negative prompt has no effect.")
        return positive, None

    def _negative_embeddings(self, positive: Tensor, texts: list[str], given: Tensor | None, skip: int) -> Tensor:
        """Embeddings of the shape and dtype of `positive`: those given, or of one text for all or one for each."""
        if given is not None:
            check_tensor("negative_prompt_embeds", given, positive.shape, self.device, self.dtype)
            return given.to(positive.dtype)
        negative = encode_prompts(self.tokenizer, self.text_encoder, texts, clip_skip=skip)
        negative = negative.expand(len(positive), -1, -1)
        if negative.shape != positive.shape:
            raise ValueError(
                f"prompt_embeds has shape {tuple(positive.shape)} and the negative prompt's {tuple(negative.shape)}; "
                "they must have equal lengths: give negative_prompt_embeds too."
            )
        return negative.to(positive.dtype)

    def _call_back(self, callback: Callback, event: StepEvent) -> Tensor:
        """Show the caller a step; what comes back may replace the latents."""
        step, timestep, latents = event
        shown: float = int(timestep) if float(timestep).is_integer() else timestep
        returned: Any = callback(self, step, shown, {"latents": latents})
        if returned is None:
            return latents
        if not isinstance(returned, Mapping):
            raise ValueError(
                f"callback_on_step_end returned a {type(returned).__name__}; it must return None or a dictionary, in which "
                '"latents" replaces the latents.'
            )
        if unknown := [key for key in returned if key != "latents"]:
            raise ValueError(
                f"callback_on_step_end returned {', '.join(map(repr, unknown))}; only 'latents' can be replaced."
            )
        if "latents" not in returned:
            return latents
        replaced = check_tensor("the callback's latents", returned["latents"], latents.shape, latents.device)
        return replaced.float()
