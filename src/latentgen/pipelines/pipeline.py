"""What every pipeline has beside its call: components that can be loaded, saved, moved and shared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from latentgen.pipelines.folder import How, load_components, read_index, save_components
from latentgen.pipelines.inputs import check_absent, check_component
from latentgen.pipelines.pictures import MAX_PIXELS
from latentgen.pipelines.single_file import load_single_file, save_single_file
from latentgen.pipelines.solver import warn_of_clipping
from latentgen.runtime.device import one_dtype, resolve_device, resolve_dtype, warn_of_slow_dtype
from latentgen.schedulers.config import OF_LATENTS
from latentgen.weights.checksums import recording, verifying, verifying_file, write_sum
from latentgen.weights.compvis.single_file import SingleFile, read_single_file
from latentgen.weights.hub import resolve_model
from latentgen.weights.sharding import shard_limit
from latentgen.weights.weight_files import check_some_have, check_variant

ABSENT = ("safety_checker", "feature_extractor", "requires_safety_checker")
"""What code for other libraries passes to `from_pretrained` to have none of it."""


DRAWS = "scheduler"
"""The component that draws latents; an upscaler's other scheduler puts noise on pixels."""


class Pipeline:
    """Components by name, in attributes of that name.

    Attributes:
        component_kinds: what the pipeline is made of, and the class of each; nothing else can be assigned there.
        scheduler_defaults: what the model's scheduler file means by leaving these out, and what schedulers by name take.
        other_defaults: the first of both for a `_class_name` in whose folders it is otherwise.
        optional: those that a form of the pipeline does without: they may be None.
        folder_classes: `_class_name`s in `model_index.json` that the pipeline can load; the first is what it writes.
        folder_names: for a `_class_name`, components that its folders name otherwise, and how.
        show_progress: whether calls show a progress bar; each call can override it.
        max_pixels: pictures that are given with more are refused.
    """

    component_kinds: ClassVar[dict[str, str]]
    optional: ClassVar[frozenset[str]] = frozenset()
    folder_classes: ClassVar[tuple[str, ...]]
    folder_names: ClassVar[dict[str, dict[str, str]]] = {}
    scheduler_defaults: ClassVar[dict[str, Any]] = OF_LATENTS
    other_defaults: ClassVar[dict[str, dict[str, Any]]] = {}
    show_progress: bool = True
    max_pixels: int = MAX_PIXELS

    @property
    def components(self) -> dict[str, Any]:
        """The components by name: `Other(**pipe.components)` shares them."""
        return {name: getattr(self, name) for name in self.component_kinds}

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a component of a wrong class where it is assigned, not in a later call."""
        if name in self.component_kinds and not (value is None and name in self.optional):
            check_component(name, value, self.component_kinds[name])
            if name == DRAWS and hasattr(self, name):
                warn_of_clipping(value)
        super().__setattr__(name, value)

    @property
    def _folder_class(self) -> str:
        """The `_class_name` to write."""
        return self.folder_classes[0]

    def _modules(self) -> dict[str, nn.Module]:
        return {name: c for name, c in self.components.items() if isinstance(c, nn.Module)}

    @property
    def device(self) -> torch.device:
        """Where the UNet is, and in a call all networks must be."""
        device: torch.device = self.components["unet"].device
        return device

    def _check_fit(self) -> None:
        """Raise ValueError for components that do not fit one another."""
        raise NotImplementedError

    def check_components(self) -> None:
        """Refuse a call of components that do not fit, or of networks on different devices: they can be assigned singly."""
        self._check_fit()
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
            if dtype is not None:
                raise ValueError(f"to({device}, {dtype!r}): give the device first, then the dtype.")
            device, dtype = None, device
        place = None if device is None else resolve_device(device)
        kind = None if dtype is None else resolve_dtype(dtype, place or self.device)
        if place is not None and kind is None:
            warn_of_slow_dtype(self.dtype, place)
        for module in self._modules().values():
            module.to(device=place, dtype=kind)
        return self

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
        verify: bool = False,
        **components: Any,
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
            verify: hold every file that is read to the SHA-256 that was recorded of it: in the folder's SHA256SUMS, which
                `save_pretrained` writes, or by the Hub's cache. A file without a record is an error.
            components: by the names in `component_kinds`, used instead of the folder's own. A network is moved to `device`,
                as by its `.to(device)`, and keeps its dtype. Code for other
                libraries may say what is so in any case: `use_safetensors=True`, and None (or False) for `safety_checker`,
                `feature_extractor` and `requires_safety_checker`.

        Raises:
            WeightsError: naming the file, the key or class and the remedy. Nothing is half-loaded.
            ValueError: for arguments out of range and components that do not fit.
            TypeError: for an argument that is not known.
        """
        place = resolve_device(device)
        kind = resolve_dtype(one_dtype(dtype, torch_dtype), place)
        given = cls._given(components)
        folder = resolve_model(
            path_or_hub_id,
            variant=variant,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        with verifying(folder) if verify else nullcontext():
            return cls.from_folder(folder, device=place, dtype=kind, variant=variant, **given)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype | None,
        variant: str | None = None,
        **components: Any,
    ) -> Self:
        """The pipeline of a folder on this machine: see `from_pretrained`. None as `dtype` keeps that of the files."""
        how = How(device, dtype, variant, cls.scheduler_defaults)
        given = cls._given(components)
        index = read_index(folder, set(cls.folder_classes))
        how = replace(how, scheduler_defaults=cls.other_defaults.get(index["_class_name"], cls.scheduler_defaults))
        names = {name: cls.folder_names.get(index["_class_name"], {}).get(name, name) for name in given}
        own = [folder / names[name] for name, component in given.items() if component is None]
        check_some_have(variant, {path.name: os.listdir(path) for path in own if path.is_dir()}, str(folder))
        pipe = cls(**load_components(folder, index, given, how, names=names, optional=cls.optional))
        for name, component in given.items():
            if component is not None:
                pipe._take(name, how)
        return pipe

    @classmethod
    def from_single_file(
        cls,
        path: str | os.PathLike[str],
        *,
        family: str | None = None,
        prediction_type: str | None = None,
        weights: Literal["ema", "train"] | None = None,
        tokenizer: Any = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        verify: bool | str = False,
        **components: Any,
    ) -> Self:
        """Load a model from one `.safetensors` file, as Stable Diffusion 1 and 2 and LDM's models are published in. Nothing is
        asked of the network.

        Args:
            path: of the file.
            family: the model's form, as "sd-v1", for one whose widths are not the published ones; None recognises it.
            prediction_type: "epsilon" or "v_prediction": must be said of Stable Diffusion 2, whose files are alike.
            weights: "ema" for the training's moving average, "train" for the weights themselves; None takes the average
                where the file holds it.
            tokenizer: one of transformers, or a folder that holds one; None looks into a folder "tokenizer" beside the file,
                and into the Hub's cache.
            device, dtype, torch_dtype: as in `from_pretrained`.
            verify: hold the file to its SHA-256: this one, or for True the one that is recorded in `<file>.sha256` beside it or
                by the Hub's cache. Without a record it is an error.
            components: as in `from_pretrained`, instead of the file's own.

        Raises:
            WeightsError: for a file that is damaged, of no known family or of another pipeline's, saying what it looks like; for
                a tokenizer that is nowhere, saying how to get it.
            ValueError: for arguments out of range and components that do not fit.
            TypeError: for an argument that is not known.
        """
        place = resolve_device(device)
        kind = resolve_dtype(one_dtype(dtype, torch_dtype), place)
        with nullcontext() if verify is False else verifying_file(Path(path), verify):
            found = read_single_file(path, family=family, prediction_type=prediction_type, weights=weights)
        return cls.from_parts(found, path, device=place, dtype=kind, tokenizer=tokenizer, **components)

    @classmethod
    def from_parts(
        cls,
        found: SingleFile,
        path: str | os.PathLike[str],
        *,
        device: torch.device,
        dtype: torch.dtype | None,
        tokenizer: Any = None,
        **components: Any,
    ) -> Self:
        """The pipeline of what was found in a file at `path`: see `from_single_file`. None as `dtype` keeps the file's."""
        how = How(device, dtype, None, cls.scheduler_defaults)
        given = cls._given(components)
        pipe = cls(
            **load_single_file(
                found,
                given,
                how,
                path=Path(path),
                pipeline=cls.__name__,
                folder_classes=cls.folder_classes,
                tokenizer=tokenizer,
            )
        )
        for name, component in given.items():
            if component is not None:
                pipe._take(name, how)
        return pipe

    def save_single_file(
        self,
        path: str | os.PathLike[str],
        *,
        family: str | None = None,
        metadata: Mapping[str, str] | None = None,
        checksum: bool = False,
    ) -> None:
        """Write all weights into one `.safetensors` file, in the layout that `from_single_file` and other programs read. Such a
        file holds no tokenizer, no size to draw in, and no solver's choices.

        Args:
            path: ends in ".safetensors".
            family: as in `from_single_file`, for a model whose widths are not the published ones.
            metadata: further texts for the file's header, beside what it is (ModelSpec).
            checksum: write its SHA-256 beside it, into `<file>.sha256`.

        Raises:
            ValueError: for a model that would be read back as another one; nothing is written then.
            OSError: if the file cannot be written.
        """
        save_single_file(self.components, self._folder_class, Path(path), family=family, metadata=metadata or {})
        if checksum:
            write_sum(Path(path))

    @classmethod
    def _given(cls, components: dict[str, Any]) -> dict[str, Any]:
        """Every component by name, None for those that the caller did not give."""
        given: dict[str, Any] = dict.fromkeys(cls.component_kinds)
        for name, value in components.items():
            if name in ABSENT:
                check_absent(name, value or None)
            elif name == "use_safetensors":
                if value is False:
                    raise ValueError("use_safetensors=False asks for pickles, which are never opened: leave it out.")
            elif name not in given:
                raise TypeError(
                    f"{cls.__name__}.from_pretrained does not know {name}; components are {', '.join(given)}."
                )
            else:
                if value is not None:
                    check_component(name, value, cls.component_kinds[name])
                given[name] = value
        return given

    @classmethod
    def from_pipe(cls, pipe: Pipeline, **components: Any) -> Self:
        """This pipeline on the components of another, which they share; further ones, or replacements, by name.

        Raises:
            ValueError: for components that do not fit, or are missing.
            TypeError: for a name that is not known.
        """
        theirs = {n: part for n, part in pipe.components.items() if n in cls.component_kinds and part is not None}
        given = theirs | {name: part for name, part in cls._given(components).items() if part is not None}
        if missing := [name for name in cls.component_kinds if name not in given and name not in cls.optional]:
            raise ValueError(
                f"{type(pipe).__name__} has no {', '.join(missing)}, which {cls.__name__} needs: pass {missing[0]}=..."
            )
        made = cls(**dict.fromkeys(cls.component_kinds) | given)
        made.show_progress, made.max_pixels = pipe.show_progress, pipe.max_pixels
        return made

    def _take(self, name: str, how: How) -> None:
        """Bring a network that the caller gave to the others' device; its dtype is the caller's choice."""
        module = self.components[name]
        if name == DRAWS:
            warn_of_clipping(module)
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
        """Write the pipeline as a model folder that `from_pretrained`, and diffusers, load, with SHA256SUMS of its files.

        Args:
            folder: made if it is missing. Weights of another variant that it holds stay: they may be of another model then.
            variant: goes into the names of the weight files ("fp16"); nothing is cast: `pipe.to(dtype=...)` does that.
            max_shard_size: bytes, or for example "5GB": larger weights go into several files. None is no limit.

        Raises:
            ValueError: for a size or a variant that is not one; nothing is written then.
        """
        check_variant(variant)
        limit = shard_limit(max_shard_size)
        names = self.folder_names.get(self._folder_class, {})
        named = {names.get(name, name): component for name, component in self.components.items()}
        with recording(Path(folder)):
            save_components(folder, self._folder_class, named, variant=variant, max_shard_size=limit)
