"""What a run starts from: a first stage, or a whole model to go on with; and whether it fits what the run's file says."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from latentgen.models.autoencoder_kl import AutoencoderConfig, AutoencoderKL
from latentgen.models.denoising_unet import DenoisingUNet
from latentgen.models.model import Model
from latentgen.schedulers import Scheduler
from latentgen.schedulers.config import TRAINED
from latentgen.training.config import TextConfig
from latentgen.training.fingerprints import weights_fingerprint
from latentgen.weights.config_files import read_json
from latentgen.weights.weight_files import STEMS, choose, variants

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

N = TypeVar("N", bound=Model[Any])


def load_network(cls: type[N], folder: Path, device: torch.device) -> N:
    """A network in float32, from the plain weights or, if there are none, from the one variant that there is."""
    return cls.from_pretrained(folder, variant=variant_to_read(folder), device=device, dtype=torch.float32)


def variant_to_read(folder: Path) -> str | None:
    """The variant of a component's only weights; None if there are plain ones, or nothing to choose."""
    if not folder.is_dir():
        return None
    names = os.listdir(folder)
    found = [variant for stem in STEMS for variant in variants(names, stem)]
    plain = any(choose(names, stem, None) for stem in STEMS)
    return found[0] if len(found) == 1 and not plain else None


def widen_input(unet: DenoisingUNet[Any], channels: int) -> None:
    """Let a UNet take so many more channels. What is in them makes no difference at first: their weights are zero."""
    old: nn.Conv2d = unet.conv_in
    new = nn.Conv2d(old.in_channels + channels, old.out_channels, 3, padding=1, device=old.weight.device)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.config = replace(unet.config, in_channels=new.in_channels)


def autoencoder_folder(path: Path) -> Path:
    """`path`, or its `vae/` (or `vqvae/`) if it is the folder of a whole model.

    Raises:
        ValueError: if it is no folder.
    """
    if not path.is_dir():
        raise ValueError(
            f"there is no folder {path}: training starts from models on this machine. One of the Hub is brought here by "
            "`hf download OWNER/NAME --local-dir FOLDER`."
        )
    if not (path / "config.json").exists():
        return next((path / name for name in ("vae", "vqvae") if (path / name / "config.json").exists()), path)
    return path


def check_pixels(config: AutoencoderConfig, where: str) -> None:
    """Raise ValueError unless an autoencoder is for pictures in RGB, which is what training reads."""
    if (config.in_channels, config.out_channels) != (3, 3):
        raise ValueError(
            f"{where} has in_channels={config.in_channels} and out_channels={config.out_channels}; pictures are read with 3 "
            "channels, grey ones too: leave both at 3."
        )


def check_agreement(section: str, settings: Mapping[str, Any], found: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError unless what the run's file asks for is what was `found` in `folder`."""
    for name, value in settings.items():
        wanted = tuple(value) if isinstance(value, list) else value
        if found.get(name, wanted) != wanted:
            raise ValueError(
                f"[{section}] {name}={value} does not agree with init_from: {folder} has {found[name]}. Say the same, or "
                "leave it out."
            )


def check_text(text: TextConfig, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, folder: Path) -> None:
    """Raise ValueError unless a [text] section fits the text encoder and the tokenizer of `folder`."""
    check_agreement("text", text_sizes(text), text_sizes(encoder.config), folder / "text_encoder")
    check_agreement("text", {"max_length": text.max_length}, {"max_length": tokenizer.model_max_length}, folder)
    if len(tokenizer) > text.vocab_size:
        raise ValueError(
            f"[text] vocab_size={text.vocab_size} does not agree with init_from: {folder / 'tokenizer'} has "
            f"{len(tokenizer)} entries. Say the same, or leave it out."
        )


def text_sizes(config: Any) -> dict[str, int]:
    """The sizes of a text encoder, from its own config or a `TextConfig`."""
    return {n: getattr(config, n) for n in ("hidden_size", "num_hidden_layers", "num_attention_heads")}


def latent_facts(autoencoder: AutoencoderKL) -> dict[str, Any]:
    """What decides which latent a picture has, and the scale at which a diffusion model sees it."""
    inner = (pair for pair in autoencoder.state_dict().items() if pair[0].startswith(("encoder.", "quant_conv.")))
    config = autoencoder.config
    return {
        "encoder": weights_fingerprint(inner),
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor,
    }


def warn_of_another_start(folder: Path, scheduler: Scheduler, autoencoder: AutoencoderKL, source: Path) -> None:
    """Say so where the model in `folder` learnt with another noise schedule, prediction type or first stage.

    Args:
        folder: that the run starts from.
        scheduler: of the run.
        autoencoder: of the run, which was read from `source`.
    """
    config = folder / "scheduler" / "scheduler_config.json"
    given = read_json(config) if config.exists() else {}
    for name in TRAINED if given else ():
        theirs = getattr(Scheduler, name) if given.get(name) is None else given[name]
        theirs, ours = tuple(theirs) if isinstance(theirs, list) else theirs, getattr(scheduler, name)
        if theirs != ours:
            warnings.warn(
                f"[scheduler] {name}={ours!r}, but init_from has {theirs!r} in {config}: the network has to learn anew "
                "what its output means.",
                stacklevel=2,
            )
    vae = next((folder / name for name in ("vae", "vqvae") if (folder / name).is_dir()), None)
    if vae is not None and not vae.samefile(source):
        facts = latent_facts(load_network(AutoencoderKL, vae, torch.device("cpu")))
        if differing := [name for name, fact in latent_facts(autoencoder).items() if fact != facts[name]]:
            warnings.warn(
                f"{source} is not the first stage that init_from learnt with ({', '.join(differing)} of {vae} differ): the "
                "network has to get used to other latents.",
                stacklevel=2,
            )
