"""Stage 2: the diffusion model in the autoencoder's latent space, and the text encoder that conditions it (LDM, section 3.3)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from latentgen.diffusion.noise_schedule import NoiseSchedule
from latentgen.diffusion.prediction import target
from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.models.unet import UNet2DConditionModel
from latentgen.nn.attention import Transformer2D
from latentgen.nn.resnet import ResnetBlock
from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.schedulers.config import TRAINED
from latentgen.text import load_clip_text_encoder, load_clip_tokenizer, save_tokenizer, tokenize
from latentgen.training.checkpoint import checkpoints
from latentgen.training.config import DiffusionTraining, TextConfig
from latentgen.training.data import check_pictures, order
from latentgen.training.fingerprints import examples_fingerprint, tokenizer_fingerprint, weights_fingerprint
from latentgen.training.folders import replacing_folder
from latentgen.training.grid import save_grid
from latentgen.training.image_folder import read_folder
from latentgen.training.init_from import (
    autoencoder_folder,
    check_agreement,
    check_pixels,
    check_text,
    check_whole_model,
    latent_facts,
    load_network,
    text_sizes,
    variant_to_read,
    warn_of_another_start,
)
from latentgen.training.latents import encode_pictures
from latentgen.training.loop import Batch, train
from latentgen.training.record import section, settings_of
from latentgen.training.text import build_text_encoder, tokenize_captions, train_tokenizer

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import CLIPTextModel, CLIPTokenizer


class TextConditioned(nn.Module):
    """UNet and text encoder as one network: noisy latents (B, C, h, w), timesteps (B,) and token ids (B, L) to the output."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        return self.unet(latents, timesteps, self.text_encoder(input_ids=ids).last_hidden_state)


def silence_residual_branches(unet: UNet2DConditionModel) -> None:
    """Start every residual branch, and the output, at zero (as LDM and ADM do): training is steadier from there."""
    layers: list[nn.Module] = [unet.conv_out]
    layers += [m.conv2 for m in unet.modules() if isinstance(m, ResnetBlock)]
    layers += [m.proj_out for m in unet.modules() if isinstance(m, Transformer2D)]
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


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
    """Latents, noised to random timesteps, and their captions, some of them dropped."""

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
        if data.size % factor:
            raise ValueError(f"[data] size={data.size} must be a multiple of {factor}, the autoencoder's factor.")
        self.examples = read_folder(data.folder, captions=accelerator.is_main_process)
        if config.run.init_from is not None:
            check_whole_model(config.run.init_from)
        with accelerator.main_process_first():
            self.tokenizer = self._tokenizer(train=accelerator.is_main_process)
        self.unet, self.text_encoder = self._networks()
        self.pipeline()  # says what does not fit together
        self.settings = self._settings()
        self.autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.unet.requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.text_encoder.requires_grad_(True)
        self.module: nn.Module = TextConditioned(self.unet, self.text_encoder)

    def prepare(self) -> None:
        data, cache = self.config.data, self.config.run.output / "cache"
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        self.empty = tokenize(self.tokenizer, [""], max_length=length)[0]
        ids = tokenize_captions(
            self.tokenizer, [e.text for e in self.examples], length
        )  # before the long work: it may warn
        asked = self.examples
        self.examples = check_pictures(self.examples, data.size, skip=data.skip_broken, show=self.show)
        with self.accelerator.main_process_first():
            self.mean, self.std = encode_pictures(
                self.autoencoder, self.examples, data.size, cache=cache, show=self.show
            )
        kept = {example.path for example in self.examples}
        self.ids = ids[[example.path in kept for example in asked]]  # without those of broken pictures

    def _tokenizer(self, *, train: bool) -> CLIPTokenizer:
        run = self.config.run
        if run.init_from is not None:
            return load_clip_tokenizer(run.init_from / "tokenizer")
        kept = run.output / "tokenizer"
        if train and not (kept.exists() and checkpoints(run.output / "checkpoints")):  # checkpoints need theirs
            with replacing_folder(kept) as folder:
                save_tokenizer(train_tokenizer([e.text for e in self.examples], self.text), folder)
        return load_clip_tokenizer(kept)

    def _networks(self) -> tuple[UNet2DConditionModel, CLIPTextModel]:
        settings, start = self.config.unet, self.config.run.init_from
        if start is not None:
            unet = load_network(UNet2DConditionModel, start / "unet", self.device)
            encoder = start / "text_encoder"
            text_encoder = load_clip_text_encoder(
                encoder, variant=variant_to_read(encoder), device=self.device, dtype=torch.float32
            )
            wanted = {name: value for name, value in settings.items() if name != "sample_size"}
            check_agreement("unet", wanted, asdict(unet.config), start / "unet")
            size = self.config.data.size // self.autoencoder.config.factor
            unet.config = replace(unet.config, sample_size=size)  # what it is trained on from now on
            if self.config.text is not None:
                check_text(self.config.text, self.tokenizer, text_encoder, start)
            if self.accelerator.is_main_process:
                source = autoencoder_folder(self.config.autoencoder)
                warn_of_another_start(start, self.scheduler, self.autoencoder, source)
            return unet, text_encoder
        vae = self.autoencoder.config
        derived = {
            "sample_size": self.config.data.size // vae.factor,
            "in_channels": vae.latent_channels,
            "out_channels": vae.latent_channels,
            "cross_attention_dim": self.text.hidden_size,
        }
        unet = UNet2DConditionModel.from_config(derived | settings)
        silence_residual_branches(unet)
        return unet, build_text_encoder(self.tokenizer, self.text)

    @property
    def text(self) -> TextConfig:
        return self.config.text or TextConfig()

    def _settings(self) -> dict[str, Any]:
        """What the run was asked for, what came of it, and short names of what it was given."""
        encoder = self.text_encoder.config
        own = ("decoder.", "post_quant_conv.")
        decoder = (pair for pair in self.autoencoder.state_dict().items() if pair[0].startswith(own))
        first_stage = latent_facts(self.autoencoder) | {"decoder": weights_fingerprint(decoder)}
        return (
            settings_of(self.config)
            | section("unet", asdict(self.unet.config))
            | section("scheduler", {name: getattr(self.scheduler, name) for name in TRAINED})
            | section("text", text_sizes(encoder) | {"max_length": encoder.max_position_embeddings})
            | ({} if self.config.run.init_from else section("text", {"vocab_size": self.text.vocab_size}))
            | {"tokenizer": tokenizer_fingerprint(self.tokenizer)}
            | {f"first stage {name}": fact for name, fact in first_stage.items()}
            | {"pictures": f"{len(self.examples)} with fingerprint {examples_fingerprint(self.examples)}"}
        )

    def batch(self, index: int, process: int, processes: int) -> Batch:
        run = self.config.run
        chosen = order(len(self.ids), run.batch_size, index, seed=run.seed, process=process, processes=processes)
        random = np.random.default_rng((run.seed, 2, index, process))
        noise = torch.Generator().manual_seed(int(random.integers(2**63)))
        shape = (len(chosen), *self.mean.shape[1:])
        mean, std = self.mean[chosen].float(), self.std[chosen].float()
        x0 = self.autoencoder.scale(mean + std * torch.randn(shape, generator=noise))
        ids = self.ids[chosen]
        ids[torch.from_numpy(random.random(len(chosen)) < self.config.condition_dropout)] = self.empty
        uniform = torch.rand(len(chosen), dtype=torch.float64, generator=noise)
        timesteps = shifted_timesteps(uniform, self.config.timestep_shift, self.scheduler.num_train_timesteps)
        return {"x0": x0, "eps": torch.randn(shape, generator=noise), "timesteps": timesteps, "ids": ids}

    def loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error of the network's output (Ho et al. 2020, eq. 14, for any prediction type)."""
        x0, eps, timesteps = batch["x0"], batch["eps"], batch["timesteps"]
        alpha, sigma = (v.view(-1, 1, 1, 1) for v in self.schedule.alpha_sigma(timesteps))
        noisy = self.schedule.add_noise(x0, eps, timesteps).contiguous(memory_format=torch.channels_last)
        with _attention_for(noisy):
            output = module(noisy, timesteps, batch["ids"])
        wanted = target(self.scheduler.prediction_type, x0, eps, alpha, sigma)
        return {"mse": (output.float() - wanted).square().mean()}

    def pipeline(self) -> Text2ImagePipeline:
        """The components as they are, ready to be called or saved."""
        return Text2ImagePipeline(
            vae=self.autoencoder,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
        )

    def draw(self, path: Path) -> None:
        samples = self.config.samples
        if samples.prompts:
            pictures = self.pipeline()(
                list(samples.prompts),
                num_inference_steps=samples.num_inference_steps,
                guidance_scale=samples.guidance_scale,
                seed=0,
                output_type="pt",
                show_progress=False,
            ).images
            save_grid(pictures * 2 - 1, path, columns=min(8, len(samples.prompts)))

    def export(self, folder: Path) -> None:
        self.pipeline().save_pretrained(folder)


def train_diffusion(config: DiffusionTraining, *, resume: bool = False, show_progress: bool = True) -> Path:
    """Train the second stage and return the folder of the finished model, which `Text2ImagePipeline` loads.

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
