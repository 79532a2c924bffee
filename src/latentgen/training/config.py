"""Settings of a training run, read strictly from a TOML file."""

from __future__ import annotations

import math
import os
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch

from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.models.model import Model
from latentgen.models.unet import UNet2DConditionModel
from latentgen.models.unet2d import UNet2DModel
from latentgen.schedulers import SCHEDULERS, Scheduler
from latentgen.schedulers.config import for_latents

C = TypeVar("C")

TASKS = ("text", "class", "super_resolution", "inpainting")
"""What a diffusion model may be conditioned on: see `latentgen.training.tasks`."""


def _check(section: str, config: object, least: float, *names: str, below: float = math.inf) -> None:
    """Raise ValueError unless the fields named are None or in [least, below)."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not least <= value < below:
            rule = f"at least {least}" if below == math.inf else f"in [{least}, {below})"
            raise ValueError(f"[{section}] {name}={value} must be {rule}.")


def _make_paths(config: object, *names: str) -> None:
    """Let the fields named be given as texts too."""
    for name in names:
        if getattr(config, name) is not None:
            object.__setattr__(config, name, Path(getattr(config, name)))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The pictures.

    Attributes:
        folder: holds the pictures and `metadata.jsonl`; a relative path counts from the config file.
        size: side that pictures are scaled (shorter side) and cut (centre) to, in pixels.
        crop: side of a random square that the networks are shown, in pixels; None shows whole pictures. Of the tasks of stage
            2 super-resolution has it.
        skip_broken: leave out pictures that cannot be read, with a warning, instead of stopping.
    """

    folder: Path
    size: int
    crop: int | None = None
    skip_broken: bool = False

    def __post_init__(self) -> None:
        _make_paths(self, "folder")
        _check("data", self, 1, "size", "crop")
        if self.crop is not None and self.crop > self.size:
            raise ValueError(f"[data] crop={self.crop} must be at most size={self.size}.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run.

    Attributes:
        output: folder for checkpoints, samples, `metrics.jsonl` and the finished `model/`; relative to the config file.
        steps: optimiser steps in all.
        batch_size: pictures a step and process.
        learning_rate: peak of the optimiser's learning rate.
        warmup_steps: linear rise to it from zero; None is a tenth of the steps, at most 500.
        decay_steps: linear fall to zero over the last steps.
        optimizer: "adamw" (Loshchilov and Hutter 2019), or "muon" (Jordan et al. 2024), which is made for training from
            scratch.
        weight_decay, beta1, beta2: of AdamW; Muon uses it for all that is no matrix, and the weight decay for everything.
        clip_norm: longest gradient that is let through.
        accumulate: batches whose gradients make up one step.
        ema_decay: of the exponential moving average of the weights, which is what is exported; false (None) keeps none
            and exports the weights themselves.
        precision: "bf16", "fp16" or "no"; None is bf16 where the device computes it natively.
        seed: of initialisation, data order and noise, at least 0.
        log_every, sample_every, checkpoint_every: in steps; a `sample_every` of 0 draws none.
        keep_checkpoints: how many are kept, the newest.
        init_from: folder of a trained autoencoder, or of a whole model, that the run starts from instead of random weights;
            what the file says of the networks and the text must agree with it, and what it says of scheduler and first
            stage is warned about where it does not.
    """

    output: Path
    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int | None = None
    decay_steps: int = 0
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 1.0
    accumulate: int = 1
    ema_decay: float | Literal[False] | None = 0.999
    precision: str | None = None
    seed: int = 0
    log_every: int = 50
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    init_from: Path | None = None

    def __post_init__(self) -> None:
        _make_paths(self, "output", "init_from")
        _check("run", self, 1, "steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep_checkpoints")
        _check("run", self, 0, "warmup_steps", "decay_steps", "weight_decay", "sample_every")
        _check("run", self, 0, "ema_decay", "beta1", "beta2", below=1)
        _check("run", self, 0, "seed", below=2**63)
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"[run] {name}={getattr(self, name)} must be above 0.")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"[run] optimizer={self.optimizer!r} must be adamw or muon.")
        if self.precision not in (None, "bf16", "fp16", "no"):
            raise ValueError(f"[run] precision={self.precision!r} must be bf16, fp16 or no.")
        if self.warmup + self.decay_steps > self.steps:
            raise ValueError(
                f"[run] warmup_steps={self.warmup} and decay_steps={self.decay_steps} do not fit into steps={self.steps}: "
                "the learning rate would never reach its peak; shorten them, or raise steps."
            )

    @property
    def warmup(self) -> int:
        """Steps in which the learning rate rises."""
        return (
            min(500, self.steps // 10, max(0, self.steps - self.decay_steps))
            if self.warmup_steps is None
            else self.warmup_steps
        )

    def learning_rate_at(self, step: int) -> float:
        """Linear rise, plateau, linear fall over the last `decay_steps`; `step` counts from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        fall = min(1.0, (self.steps - step) / max(1, self.decay_steps)) if self.decay_steps else 1.0
        return self.learning_rate * rise * fall


@dataclass(frozen=True, kw_only=True)
class FirstStageLossConfig:
    """Weights of the first stage's loss.

    Attributes:
        kl_weight: of the divergence from the standard normal, in nats per value of the picture.
    """

    kl_weight: float = 1e-6

    def __post_init__(self) -> None:
        _check("loss", self, 0, "kl_weight")


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining:
    """`latentgen train autoencoder`: [model] is what the autoencoder's `config.json` will hold."""

    data: DataConfig
    run: RunConfig
    model: dict[str, Any]
    loss: FirstStageLossConfig = field(default_factory=FirstStageLossConfig)

    def __post_init__(self) -> None:
        _check_network("model", AutoencoderKL, self.model)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A CLIP-style tokenizer and text encoder, trained from scratch.

    Attributes:
        max_length: tokens a prompt is cut or padded to, the two that mark its ends included.
        vocab_size: most entries the tokenizer may learn, its 514 basic ones included.
        hidden_size, num_hidden_layers, num_attention_heads: of the text encoder.
    """

    max_length: int = 77
    vocab_size: int = 2048
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4

    def __post_init__(self) -> None:
        _check("text", self, 3, "max_length")
        _check("text", self, 514, "vocab_size")
        _check("text", self, 1, "hidden_size", "num_hidden_layers", "num_attention_heads")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"[text] hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}."
            )


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Pictures drawn during the run: for these prompts, with these settings."""

    prompts: tuple[str, ...] = ()
    num_inference_steps: int = 50
    guidance_scale: float = 3.0

    def __post_init__(self) -> None:
        _check("samples", self, 1, "num_inference_steps")
        _check("samples", self, 0, "guidance_scale")


@dataclass(frozen=True, kw_only=True)
class DiffusionTraining:
    """`latentgen train diffusion`.

    Attributes:
        autoencoder: folder of a trained first stage; a relative path counts from the config file.
        unet: what the UNet's `config.json` will hold; channels and context width follow the other components.
        scheduler: what `scheduler_config.json` will hold, `_class_name` included.
        task: what pictures are drawn from: "text" (captions), "class" (labels), "super_resolution" (smaller pictures) or
            "inpainting" (captions, and what is around a mask).
        text: None is the defaults of `TextConfig`, or whatever `init_from` has; for texts only.
        condition_dropout: part of the captions replaced by the empty one, or of the labels by the null class, for
            classifier-free guidance; None is 0.1, and 0 for super-resolution.
        timestep_shift: above 1, noisy timesteps are drawn more often (`shifted_timesteps`).
    """

    data: DataConfig
    run: RunConfig
    autoencoder: Path
    unet: dict[str, Any]
    scheduler: dict[str, Any]
    task: str = "text"
    text: TextConfig | None = None
    samples: SampleConfig = field(default_factory=SampleConfig)
    condition_dropout: float | None = None
    timestep_shift: float = 1.0

    def __post_init__(self) -> None:
        _make_paths(self, "autoencoder")
        if self.task not in TASKS:
            raise ValueError(f"task={self.task!r} must be one of {', '.join(TASKS)}.")
        if self.condition_dropout is None:
            object.__setattr__(self, "condition_dropout", 0.0 if self.task == "super_resolution" else 0.1)
        self._check_task()
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"condition_dropout={self.condition_dropout} must be in [0, 1].")
        if not 0 < self.timestep_shift < math.inf:
            raise ValueError(f"timestep_shift={self.timestep_shift} must be above 0; 1 draws all timesteps alike.")
        _check_network("unet", UNet2DModel if self.task == "super_resolution" else UNet2DConditionModel, self.unet)
        self.make_scheduler().plan(self.samples.num_inference_steps)

    @property
    def dropout(self) -> float:
        """`condition_dropout` as a number."""
        return self.condition_dropout or 0.0

    def _check_task(self) -> None:
        """Refuse what another task has."""
        of_texts = ("text", "inpainting")
        others: dict[str, tuple[tuple[str, ...], Any]] = {
            "[text]": (of_texts, self.text),
            "[samples] prompts": (("text",), self.samples.prompts),
            "condition_dropout": ((*of_texts, "class"), self.dropout),
            "[data] crop": (("super_resolution",), self.data.crop),
        }
        for name, (tasks, value) in others.items():
            if value and self.task not in tasks:
                raise ValueError(
                    f"{name} is for task {' or '.join(tasks)} and has no meaning for {self.task}: leave it out."
                )

    def make_scheduler(self) -> Scheduler:
        """The scheduler that [scheduler] describes, strictly: a key that it does not know is an error here.

        What it leaves out means what it means in a model folder: see `for_latents`.

        Raises:
            ValueError: naming the class or key that is not known, or does not fit.
        """
        name = self.scheduler.get("_class_name", "DDIMScheduler")
        if name not in SCHEDULERS:
            raise ValueError(f"[scheduler] _class_name={name!r} is not known; use one of {', '.join(SCHEDULERS)}.")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            try:
                scheduler = SCHEDULERS[name].from_config(for_latents(self.scheduler))
            except (ValueError, TypeError, UserWarning) as error:
                raise ValueError(f"[scheduler] {error}") from None
        if scheduler.prediction_type == "epsilon" and not scheduler.schedule.alphas_cumprod[-1]:
            raise ValueError(
                "[scheduler] rescale_betas_zero_snr ends in pure noise, from which an epsilon prediction says nothing: "
                'set prediction_type = "v_prediction".'
            )
        return scheduler


def _check_network(section: str, network: type[Model[Any]], settings: Mapping[str, Any]) -> None:
    """Build the network without memory for its weights, so that what does not fit is found before anything is read."""
    try:
        with torch.device("meta"):
            network.from_config(settings)
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"[{section}] {error}") from None


WORDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    tuple: "a list of texts",
    dict: "a table",
}


def _read(value: Any, kind: Any, where: str, name: str, base: Path) -> Any:
    """Check a value of a TOML file against a field's annotation and give it that type."""
    if value is False and Literal[False] in get_args(kind):
        return None
    kind = next((k for k in get_args(kind) if NoneType in get_args(kind) and k is not NoneType), kind)
    plain = get_origin(kind) or kind
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        return _build(kind, value, f"[{name}]", base)
    if plain is Path and isinstance(value, str) and value:
        return base / Path(value).expanduser()
    if plain is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if plain is tuple and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if plain in (int, bool, str, dict) and type(value) is plain:
        return value
    raise ValueError(f"{where} {name}={value!r} must be {WORDS.get(plain, 'a table')}.")


def _build(cls: type[C], values: Mapping[str, Any], where: str, base: Path) -> C:
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{where} does not know {', '.join(unknown)}. Known: {', '.join(known)}.")
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [n for n in required if n not in values]:
        raise ValueError(f"{where} lacks {', '.join(missing)}.")
    kinds = get_type_hints(cls)
    return cls(**{name: _read(value, kinds[name], where, name, base) for name, value in values.items()})


def load_config(cls: type[C], path: str | os.PathLike[str]) -> C:
    """Read the TOML file of a run: `AutoencoderTraining` or `DiffusionTraining`.

    Raises:
        ValueError: naming the file and the key that is missing, unknown, of another type or out of range.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such config file.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}.") from None
    try:
        return _build(cls, values, "the file:", path.parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
