"""What all networks share: a config, and loading and saving as a folder of `config.json` and safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import nn

from latentgen.models.config import read_config, write_config
from latentgen.runtime.device import one_dtype, resolve_device, resolve_dtype
from latentgen.weights.checksums import recording, verifying
from latentgen.weights.config_files import read_json, write_json
from latentgen.weights.errors import WeightsError
from latentgen.weights.hub import resolve_model
from latentgen.weights.key_maps import rename_old_vae_attention
from latentgen.weights.sharding import load_tensors, save_tensors, shard_limit
from latentgen.weights.strict import fill
from latentgen.weights.weight_files import check_variant

C = TypeVar("C")


class Model(nn.Module, Generic[C]):
    """A network with a config.

    Attributes:
        config: the frozen dataclass it was built from.
        config_class: the class of `config`.
        neutral: keys of `config.json` that may stand there at the values listed, and change nothing.
        inert: keys that may stand there at any value.
        stem: how the weight files are called.
    """

    config_class: ClassVar[type]
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}
    inert: ClassVar[frozenset[str]] = frozenset()
    stem: ClassVar[str] = "diffusion_pytorch_model"

    def __init__(self, config: C) -> None:
        super().__init__()
        self.config = config

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The parameters' device."""
        return next(self.parameters()).device

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> Self:
        """Build the network, randomly initialised, from the content of a `config.json`."""
        meant = {key: value for key, value in mapping.items() if key not in cls.inert}
        return cls(read_config(cls.config_class, meant, cls.neutral))

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        variant: str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        verify: bool = False,
    ) -> Self:
        """Load the network from a folder that holds `config.json` and its weights, or from the Hugging Face Hub.

        Args:
            path_or_hub_id: the folder, or the model folder that has it as `subfolder`; or the Hub id of either, as
                "stabilityai/sd-vae-ft-mse".
            subfolder: for example "unet".
            device: None is CUDA where there is one.
            dtype: None is float16 on CUDA, bfloat16 on a CPU that has it natively, float32 elsewhere.
            torch_dtype: another name for `dtype`.
            variant: reads `diffusion_pytorch_model.{variant}.safetensors`.
            revision: branch, tag or commit on the Hub.
            cache_dir: where downloads are kept; None is the Hub's usual place.
            local_files_only: never touch the network.
            token: for models behind a login; None uses the one that `hf auth login` stored.
            verify: hold the files to their recorded SHA-256, in SHA256SUMS here or in the model's folder, or by the Hub's cache.

        Raises:
            WeightsError: naming the file and what does not fit, a config that this network cannot follow included.
            ValueError: for an argument that breaks its rule.
        """
        place = resolve_device(device)
        kind = resolve_dtype(one_dtype(dtype, torch_dtype), place)
        path = resolve_model(
            path_or_hub_id,
            subfolder=subfolder,
            variant=variant,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        path = path / subfolder if subfolder else path
        with verifying(path) if verify else nullcontext():
            return cls.from_folder(path, device=place, dtype=kind, variant=variant)

    @classmethod
    def from_folder(
        cls, path: Path, *, device: torch.device, dtype: torch.dtype | None, variant: str | None = None
    ) -> Self:
        """Load the network from a folder on this machine; None as `dtype` keeps that of the file.

        Raises:
            WeightsError: naming the file and what does not fit.
        """
        if not (path / "config.json").is_file() and (path / "model_index.json").is_file():
            raise WeightsError(f"{path} is a whole model: name its component, for example subfolder='unet'.")
        model = cls.on_meta(read_json(path / "config.json"), str(path / "config.json"))
        tensors = rename_old_vae_attention(load_tensors(path, cls.stem, variant))
        fill(model, tensors, dtype=dtype, device=device, source=str(path))
        return model

    @classmethod
    def on_meta(cls, mapping: Mapping[str, Any], source: str) -> Self:
        """The network of a `config.json`'s content, without numbers.

        Raises:
            WeightsError: naming `source`, for settings that this network cannot follow.
        """
        if mapping.get("_class_name", cls.__name__) != cls.__name__:
            raise WeightsError(
                f"{source} describes a {mapping['_class_name']}, not a {cls.__name__}: load it with the class that it names, "
                "or correct model_index.json."
            )
        try:
            with torch.device("meta"):
                return cls.from_config(mapping)
        except ValueError as error:
            raise WeightsError(f"{source}: {error}") from error

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        variant: str | None = None,
        max_shard_size: int | str | None = "10GB",
    ) -> None:
        """Write `config.json` and the weights, in the layout that `from_pretrained` and diffusers read, and SHA256SUMS of both.

        Args:
            folder: made if it is missing. Weights of another variant that it holds stay: they may be of another model then.
            variant: goes into the names of the weight files; nothing is cast.
            max_shard_size: bytes, or for example "5GB"; None is no limit.

        Raises:
            ValueError: for a size or a variant that is not one; nothing is written then.
        """
        check_variant(variant)
        max_shard_size = shard_limit(max_shard_size)
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        with recording(path):
            write_json(path / "config.json", write_config(self.config, type(self).__name__))
            save_tensors(path, self.stem, self.state_dict(), variant=variant, max_shard_size=max_shard_size)
