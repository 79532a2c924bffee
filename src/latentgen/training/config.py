"""Settings of a training run, read strictly from a TOML file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The pictures.

    Attributes:
        folder: holds the pictures and `metadata.jsonl`; a relative path counts from the config file.
        size: side that pictures are scaled (shorter side) and cut (centre) to, in pixels.
        crop: side of a random square that the autoencoder is shown, in pixels; None shows whole pictures.
        skip_broken: leave out pictures that cannot be read, with a warning, instead of stopping.
    """

    folder: Path
    size: int
    crop: int | None = None
    skip_broken: bool = False


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run.

    Attributes:
        output: folder for checkpoints, samples, `metrics.jsonl` and the finished `model/`; relative to the config file.
        steps: optimiser steps in all.
        batch_size: pictures a step and process.
        learning_rate: peak of AdamW's learning rate.
        warmup_steps: linear rise to it from zero.
        decay_steps: linear fall to zero over the last steps.
        weight_decay, beta1, beta2: of AdamW (Loshchilov and Hutter 2019).
        clip_norm: longest gradient that is let through.
        accumulate: batches whose gradients make up one step.
        ema_decay: of the exponential moving average of the weights, which is what is exported; None has none.
        precision: "bf16", "fp16" or "no"; None is bf16 where the device computes it natively.
        seed: of initialisation, data order and noise.
        log_every, sample_every, checkpoint_every: in steps; a `sample_every` of 0 draws none.
        keep_checkpoints: how many are kept, the newest.
        init_from: model folder whose weights the run starts from, instead of random ones.
    """

    output: Path
    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 500
    decay_steps: int = 0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 1.0
    accumulate: int = 1
    ema_decay: float | None = 0.999
    precision: str | None = None
    seed: int = 0
    log_every: int = 50
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    init_from: Path | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"[run] {name}={getattr(self, name)} must be at least 1.")
        if self.precision not in (None, "bf16", "fp16", "no"):
            raise ValueError(f"[run] precision={self.precision!r} must be bf16, fp16 or no.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"[run] ema_decay={self.ema_decay} must be in [0, 1).")


@dataclass(frozen=True, kw_only=True)
class FirstStageLossConfig:
    """Weights of the first stage's loss.

    Attributes:
        kl_weight: of the divergence from the standard normal, in nats per value of the picture.
    """

    kl_weight: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining:
    """`latentgen train autoencoder`: [model] is what the autoencoder's `config.json` will hold."""

    data: DataConfig
    run: RunConfig
    model: dict[str, Any]
    loss: FirstStageLossConfig = field(default_factory=FirstStageLossConfig)


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


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Pictures drawn during the run: for these prompts, with these settings."""

    prompts: tuple[str, ...] = ()
    num_inference_steps: int = 50
    guidance_scale: float = 3.0


@dataclass(frozen=True, kw_only=True)
class DiffusionTraining:
    """`latentgen train diffusion`.

    Attributes:
        autoencoder: folder of a trained first stage; a relative path counts from the config file.
        unet: what the UNet's `config.json` will hold; channels and context width follow the other components.
        scheduler: what `scheduler_config.json` will hold, `_class_name` included.
        condition_dropout: part of the captions replaced by the empty one, for classifier-free guidance.
    """

    data: DataConfig
    run: RunConfig
    autoencoder: Path
    unet: dict[str, Any]
    scheduler: dict[str, Any]
    text: TextConfig = field(default_factory=TextConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    condition_dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.condition_dropout <= 1:
            raise ValueError(f"condition_dropout={self.condition_dropout} must be in [0, 1].")


SECTIONS = {
    "data": DataConfig,
    "run": RunConfig,
    "loss": FirstStageLossConfig,
    "text": TextConfig,
    "samples": SampleConfig,
}
PATHS = {"folder", "output", "init_from", "autoencoder"}


def _build(cls: type[C], values: Mapping[str, Any], where: str, base: Path) -> C:
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{where} does not know {', '.join(unknown)}. Known: {', '.join(known)}.")
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [n for n in required if n not in values]:
        raise ValueError(f"{where} lacks {', '.join(missing)}.")
    built: dict[str, Any] = {}
    for name, value in values.items():
        if name in SECTIONS:
            value = _build(SECTIONS[name], value, f"[{name}]", base)
        elif name in PATHS:
            value = base / value
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    return cls(**built)


def load_config(cls: type[C], path: str | os.PathLike[str]) -> C:
    """Read the TOML file of a run.

    Raises:
        ValueError: naming the file and the key that is missing, unknown or out of range.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such config file.") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}.") from None
    try:
        return _build(cls, values, "the file", path.parent)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
