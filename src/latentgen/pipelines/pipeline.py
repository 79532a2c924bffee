"""What every pipeline has beside its call: components that can be loaded, saved, moved and shared."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Self

import torch
from torch import nn

from latentgen.pipelines.folder import How, load_components, read_index, save_components
from latentgen.pipelines.inputs import check_component
from latentgen.runtime.device import one_dtype, resolve_device, resolve_dtype, warn_of_slow_dtype
from latentgen.weights.hub import resolve_model
from latentgen.weights.sharding import shard_limit
from latentgen.weights.weight_files import check_some_have, check_variant


class Pipeline:
    """Components by name, in attributes of that name.

    Attributes:
        component_kinds: what the pipeline is made of, and the class of each; nothing else can be assigned there.
        folder_classes: `_class_name`s in `model_index.json` that the pipeline can load; the first is what it writes.
        show_progress: whether calls show a progress bar; each call can override it.
    """

    component_kinds: ClassVar[dict[str, str]]
    folder_classes: ClassVar[tuple[str, ...]]
    show_progress: bool = True

    @property
    def components(self) -> dict[str, Any]:
        """The components by name: `Other(**pipe.components)` shares them."""
        return {name: getattr(self, name) for name in self.component_kinds}

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a component of a wrong class where it is assigned, not in a later call."""
        if name in self.component_kinds:
            check_component(name, value, self.component_kinds[name])
        super().__setattr__(name, value)

    def _modules(self) -> dict[str, nn.Module]:
        return {name: c for name, c in self.components.items() if isinstance(c, nn.Module)}

    @property
    def device(self) -> torch.device:
        """Where the UNet is, and in a call all networks must be."""
        device: torch.device = self.components["unet"].device
        return device

    def _check_devices(self) -> None:
        """Refuse a call of networks that are on different devices."""
        device = self.device
        for name, module in self._modules().items():
            if (place := next(module.parameters()).device) != device:
                raise ValueError(
                    f"{name} is on {place} and unet on {device}; they must be on one device: use pipe.to({str(device)!r})."
                )

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
        if place is not None and kind is None:
            warn_of_slow_dtype(self.dtype, place)
        for module in self._modules().values():
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
        place = resolve_device(device)
        how = How(place, resolve_dtype(one_dtype(dtype, torch_dtype), place), variant)
        folder = resolve_model(
            path_or_id,
            variant=variant,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        index = read_index(folder, set(cls.folder_classes))
        own = {name: folder / name for name, component in given.items() if component is None}
        check_some_have(variant, {name: os.listdir(p) for name, p in own.items() if p.is_dir()}, str(folder))
        pipe = cls(**load_components(folder, index, given, how))
        for name in given.keys() - own.keys():
            pipe._take(name, how)
        return pipe

    def _take(self, name: str, how: How) -> None:
        """Bring a network that the caller gave to the others' device; its dtype is the caller's choice."""
        module = self.components[name]
        if not isinstance(module, nn.Module):
            return
        parameter = next(module.parameters())
        if parameter.is_meta:
            raise ValueError(f"{name} is on the meta device and holds no numbers: load it before it is given.")
        if parameter.dtype != how.dtype:
            warn_of_slow_dtype(parameter.dtype, how.device)
        module.to(how.device)

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, variant: str | None = None, max_shard_size: int | str | None = "10GB"
    ) -> None:
        """Write the pipeline as a model folder that `from_pretrained`, and diffusers, load.

        Args:
            folder: made if it is missing.
            variant: goes into the names of the weight files ("fp16"); nothing is cast: `pipe.to(dtype=...)` does that.
            max_shard_size: bytes, or for example "5GB": larger weights go into several files. None is no limit.

        Raises:
            ValueError: for a size or a variant that is not one; nothing is written then.
        """
        check_variant(variant)
        limit = shard_limit(max_shard_size)
        save_components(folder, self.folder_classes[0], self.components, variant=variant, max_shard_size=limit)
