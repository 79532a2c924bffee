"""What every pipeline has beside its call: components that can be loaded, saved, moved and shared."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Self

import torch
from torch import nn

from latentgen.pipelines.folder import How, load_components, read_index, save_components
from latentgen.runtime.device import resolve_device, resolve_dtype
from latentgen.weights.hub import resolve_model


class Pipeline:
    """Components by name, in attributes of that name.

    Attributes:
        component_names: what the pipeline is made of.
        folder_classes: `_class_name`s in `model_index.json` that the pipeline can load; the first is what it writes.
        show_progress: whether calls show a progress bar; each call can override it.
    """

    component_names: ClassVar[tuple[str, ...]]
    folder_classes: ClassVar[tuple[str, ...]]
    show_progress: bool = True

    @property
    def components(self) -> dict[str, Any]:
        """The components by name: `Other(**pipe.components)` shares them."""
        return {name: getattr(self, name) for name in self.component_names}

    def _modules(self) -> list[nn.Module]:
        return [c for c in self.components.values() if isinstance(c, nn.Module)]

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self._modules()[0].parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the UNet computes in."""
        dtype: torch.dtype = self.components["unet"].dtype
        return dtype

    def to(
        self, device: str | torch.device | torch.dtype | None = None, dtype: str | torch.dtype | None = None
    ) -> Self:
        """Move all networks to a device, cast them to a dtype, or both; returns the pipeline.

        `pipe.to("cuda")`, `pipe.to(dtype="float16")`, `pipe.to("cuda", torch.float16)`.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        place = None if device is None else resolve_device(device)
        kind = None if dtype is None else resolve_dtype(dtype, place or self.device)
        for module in self._modules():
            module.to(device=place, dtype=kind)
        return self

    @classmethod
    def _load(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        device: str | torch.device | None,
        dtype: str | torch.dtype | None,
        torch_dtype: str | torch.dtype | None,
        variant: str | None,
        revision: str | None,
        cache_dir: str | os.PathLike[str] | None,
        local_files_only: bool,
        token: str | bool | None,
        given: dict[str, Any],
    ) -> Self:
        if dtype is not None and torch_dtype is not None:
            raise ValueError("dtype and torch_dtype were both given; they mean the same: give dtype.")
        place = resolve_device(device)
        how = How(place, resolve_dtype(dtype if dtype is not None else torch_dtype, place), variant)
        folder = resolve_model(
            path_or_id,
            variant=variant,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        return cls(**load_components(folder, read_index(folder, set(cls.folder_classes)), given, how))

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, variant: str | None = None, max_shard_size: int | str = "10GB"
    ) -> None:
        """Write the pipeline as a model folder that `from_pretrained`, and diffusers, load.

        Args:
            folder: made if it is missing.
            variant: goes into the names of the weight files ("fp16"); nothing is cast: `pipe.to(dtype=...)` does that.
            max_shard_size: bytes, or for example "5GB": larger weights go into several files.
        """
        save_components(folder, self.folder_classes[0], self.components, variant=variant, max_shard_size=max_shard_size)
