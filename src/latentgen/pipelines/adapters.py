"""What pipelines that know texts have more than others: LoRAs and embeddings, loaded and unloaded between calls."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from torch import Tensor

from latentgen.pipelines.adapted import Parts, Shells, changeable_shapes, with_deltas
from latentgen.pipelines.inputs import check_component, check_number
from latentgen.pipelines.pipeline import Pipeline
from latentgen.runtime.warn import warn_user
from latentgen.text import Runs, check_new_token, token_table, with_tokens, with_vectors
from latentgen.weights.adapters import LoRA, read_embedding, read_lora
from latentgen.weights.compvis.unet import original_layers

CHANGED = ("unet", "text_encoder", "tokenizer")
"""The components that adapters change."""

MOST_SCALE = 1000.0
"""The largest factor that is believed to be meant."""

_changing = threading.Lock()  # for the moment in which a pipeline's tables are exchanged for others


class Loaded(NamedTuple):
    """A LoRA and the scale at which calls use it."""

    lora: LoRA
    scale: float


@dataclass(frozen=True, eq=False)
class Embeddings:
    """New tokens: their vectors (n, D), and the tokenizer that knows them; see `latentgen.text.with_tokens`."""

    vectors: Mapping[str, Tensor]
    tokenizer: Any
    runs: Runs


class TextPipeline(Pipeline):
    """A pipeline whose condition may be a text, and whose networks adapters fit.

    The networks in its attributes stay as they are, whatever is loaded: a call draws with networks of its own scales that share
    all else with them. So calls at the same time may have different scales, and unloading leaves nothing behind.
    """

    unet: Any
    text_encoder: Any
    tokenizer: Any
    # Never written into: exchanged whole, so that a call sees one state.
    _loras: Mapping[str, Loaded] = MappingProxyType({})
    _embeddings: Embeddings | None = None
    _shells: Mapping[str, Shells] = MappingProxyType({})

    def load_lora(self, path: str | os.PathLike[str], scale: float = 1.0, name: str | None = None) -> str:
        """Use a LoRA, LoHa, LoKr, DoRA, full difference or IA3 in the calls that follow.

        Args:
            path: a safetensors file in PEFT's, diffusers' or kohya's (A1111's) spelling, or a folder that one of the first two
                wrote.
            scale: in [-1000, 1000], how much of it; `lora_scale` of a call has the last word.
            name: what it is called here; None is the file's name without its ending.

        Returns:
            The name.

        Raises:
            WeightsError: if anything in the file does not fit the UNet or the text encoder; nothing has changed then.
            ValueError: if the name is in use, or the scale is no number.
        """
        self._check_knows_texts()
        scale = check_number("scale", scale, -MOST_SCALE, MOST_SCALE)
        name = Path(path).stem if name is None else name
        if not isinstance(name, str) or not name:
            raise ValueError(f"name={name!r} must be a text, for example 'watercolour'.")
        self._check_unused(name)
        lora = _read(path, self.unet, self.text_encoder)
        with _changing:
            self._check_unused(name)
            self._keep(loras={**self._loras, name: Loaded(lora, scale)})
        return name

    def unload_lora(self, name: str | None = None) -> None:
        """Use a LoRA no more; None is all of them.

        Raises:
            ValueError: for a name that none has.
        """
        with _changing:
            if name is not None:
                self._scales({name: 0})
            self._keep(loras={other: one for other, one in self._loras.items() if name not in (None, other)})

    @property
    def lora_scales(self) -> Mapping[str, float]:
        """The LoRAs that are loaded and their scales. Assigning a table of names and numbers changes those."""
        return MappingProxyType({name: loaded.scale for name, loaded in self._loras.items()})

    @lora_scales.setter
    def lora_scales(self, scales: Mapping[str, float]) -> None:
        if not isinstance(scales, Mapping):
            raise ValueError(
                f"lora_scales={scales!r} must be a table of names and scales, for example {{'watercolour': 0.5}}."
            )
        with _changing:
            checked = self._scales(scales)
            self._loras = {name: one._replace(scale=checked[name]) for name, one in self._loras.items()}

    def set_lora_scale(self, name: str, scale: float) -> None:
        """Change how much of a LoRA calls use.

        Raises:
            ValueError: for a name that none has, or a scale outside [-1000, 1000].
        """
        self.lora_scales = {name: scale}

    def load_textual_inversion(self, path: str | os.PathLike[str], token: str | None = None) -> str:
        """Give a word in prompts the meaning of an embedding (textual inversion, Gal et al. 2022).

        Args:
            path: a safetensors file as diffusers, A1111 or others write it; of one vector or several.
            token: the word; None is the one in the file, or the file's name where it has none.

        Returns:
            The token.

        Raises:
            WeightsError: if the file is no embedding, or one for another text encoder; nothing has changed then.
            ValueError: if the tokenizer knows the word already.
        """
        self._check_knows_texts()
        token, vectors = read_embedding(path, width=token_table(self.text_encoder)[1].embedding_dim, token=token)
        with _changing:
            others = {} if self._embeddings is None else self._embeddings.vectors
            if token in others:
                raise ValueError(
                    f"token={token!r} is loaded already: unload_textual_inversion({token!r}) first, or give another token=."
                )
            check_new_token(self.tokenizer, token)
            self._keep(embeddings=_extended({**others, token: vectors}, self.tokenizer))
        return token

    def unload_textual_inversion(self, token: str | None = None) -> None:
        """Take the meaning from a word again; None does it for all.

        Raises:
            ValueError: for a token that is not loaded.
        """
        with _changing:
            vectors = {} if self._embeddings is None else dict(self._embeddings.vectors)
            if token is not None and token not in vectors:
                loaded = ", ".join(map(repr, vectors)) or "none is loaded"
                raise ValueError(f"token={token!r} is not loaded; there are {loaded}.")
            left = {other: one for other, one in vectors.items() if token not in (None, other)}
            self._keep(embeddings=_extended(left, self.tokenizer))

    def adapted(self, lora_scale: float | Mapping[str, float] | None = None) -> Callable[[], Parts]:
        """Check a call's scales and take note of what is loaded; the result makes the networks, or finds them.

        Raises:
            ValueError: for a scale that is no number, or a name that none has.
        """
        with _changing:
            loras, embeddings, shells = self._loras, self._embeddings, self._shells
            unet, encoder, tokenizer = self.unet, self.text_encoder, self.tokenizer
            scales = self._scales(lora_scale)
        if lora_scale is not None and not loras:
            warn_user("lora_scale has no effect: no LoRA is loaded.")
        used = [(name, loras[name].lora, scale) for name, scale in scales.items() if scale]
        in_unet = [(name, lora, scale) for name, lora, scale in used if lora.unet]
        in_text = [(name, lora, scale) for name, lora, scale in used if lora.text_encoder]

        def make_unet() -> Any:
            return with_deltas(unet, [(name, lora.unet, scale) for name, lora, scale in in_unet], "unet")

        def make_encoder() -> Any:
            changes = [(name, lora.text_encoder, scale) for name, lora, scale in in_text]
            changed = with_deltas(encoder, changes, "text_encoder") if changes else encoder
            if embeddings is None:
                return changed
            return with_vectors(changed, [*embeddings.vectors.values()], embeddings.runs)

        def parts() -> Parts:
            made = shells["unet"].of(unet, _key(in_unet), make_unet) if in_unet else unet
            if not in_text and embeddings is None:
                return Parts(made, encoder, tokenizer, {})
            made_encoder = shells["text_encoder"].of(encoder, (_key(in_text), embeddings), make_encoder)
            if embeddings is None:
                return Parts(made, made_encoder, tokenizer, {})
            return Parts(made, made_encoder, embeddings.tokenizer, embeddings.runs)

        return parts

    @classmethod
    def from_pipe(cls, pipe: Pipeline, **components: Any) -> Self:
        """This pipeline on the components of another, which they share; further ones, or replacements, by name.

        LoRAs and embeddings that the other has are used here too; from then on each pipeline has its own.

        Raises:
            ValueError: for components that do not fit, or are missing, and adapters that do not fit a replacement.
            TypeError: for a name that is not known.
        """
        made = super().from_pipe(pipe, **components)
        if isinstance(pipe, TextPipeline) and (pipe._loras or pipe._embeddings):
            loras, embeddings = pipe._loras, pipe._embeddings
            made._check_fits(loras, embeddings, made.components)
            if embeddings is not None and made.tokenizer is not pipe.tokenizer:
                embeddings = _extended(embeddings.vectors, made.tokenizer)
            made._keep(loras=loras, embeddings=embeddings)
        return made

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, variant: str | None = None, max_shard_size: int | str | None = "10GB"
    ) -> None:
        """Write the pipeline as a model folder that `from_pretrained`, and diffusers, load.

        LoRAs and embeddings are not in it: the networks' own weights are written, and a warning says so.

        Args:
            folder: made if it is missing. Weights of another variant that it holds stay: they may be of another model then.
            variant: goes into the names of the weight files ("fp16"); nothing is cast: `pipe.to(dtype=...)` does that.
            max_shard_size: bytes, or for example "5GB": larger weights go into several files. None is no limit.

        Raises:
            ValueError: for a size or a variant that is not one; nothing is written then.
        """
        self._warn_of_adapters()
        super().save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)

    def save_single_file(
        self,
        path: str | os.PathLike[str],
        *,
        family: str | None = None,
        metadata: Mapping[str, str] | None = None,
        checksum: bool = False,
    ) -> None:
        """Write all weights into one file, as `Pipeline.save_single_file` says.

        LoRAs and embeddings are not in it: the networks' own weights are written, and a warning says so. (`latentgen convert
        --lora` adds LoRAs to the weights.)
        """
        self._warn_of_adapters()
        super().save_single_file(path, family=family, metadata=metadata, checksum=checksum)

    def _warn_of_adapters(self) -> None:
        if loaded := [*self._loras, *(() if self._embeddings is None else self._embeddings.vectors)]:
            warn_user(
                f"{', '.join(map(repr, loaded))} are not written: what is saved are the networks' own weights. Keep the "
                "adapters' files, and load them again."
            )

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a component that the adapters in use do not fit."""
        if name not in CHANGED or not (self._loras or self._embeddings):
            super().__setattr__(name, value)
            return
        check_component(name, value, self.component_kinds[name])
        with _changing:
            embeddings = self._embeddings
            self._check_fits(self._loras, embeddings, {**self.components, name: value})
            if embeddings is not None and name == "tokenizer":
                embeddings = _extended(embeddings.vectors, value)
            super().__setattr__(name, value)
            self._keep(embeddings=embeddings)

    @staticmethod
    def _check_fits(loras: Mapping[str, Loaded], embeddings: Embeddings | None, components: Mapping[str, Any]) -> None:
        """Raise ValueError unless adapters fit these components."""
        unet, encoder = changeable_shapes(components["unet"]), changeable_shapes(components["text_encoder"])
        for name, (lora, _) in loras.items():
            if lines := lora.misfits(unet, encoder):
                raise ValueError(
                    f"the LoRA {name!r}, which is loaded, does not fit: {lines[0]}. Use unload_lora({name!r}) first."
                )
        if embeddings is None:
            return
        width = token_table(components["text_encoder"])[1].embedding_dim
        for token, vectors in embeddings.vectors.items():
            if vectors.shape[1] != width:
                raise ValueError(
                    f"the embedding {token!r}, which is loaded, has vectors of {vectors.shape[1]} numbers and the text encoder "
                    f"takes {width}: use unload_textual_inversion({token!r}) first."
                )

    def _keep(self, **tables: Any) -> None:
        """Exchange tables of what is loaded; networks that were made for others are let go."""
        if not self._shells:
            self._shells = {name: Shells() for name in ("unet", "text_encoder")}
        for name, table in tables.items():
            setattr(self, f"_{name}", table)
        for shells in self._shells.values():
            shells.clear()

    def _check_knows_texts(self) -> None:
        if self.text_encoder is None:
            raise ValueError("this model knows no texts, and adapters are made for models that do: it can have none.")

    def _check_unused(self, name: str) -> None:
        if name in self._loras:
            raise ValueError(
                f"name={name!r} is that of a LoRA that is loaded already: give another name, or unload_lora({name!r}) first."
            )

    def _scales(self, given: float | Mapping[str, float] | None) -> dict[str, float]:
        """The scale of each LoRA that is loaded, under a number that multiplies all, or a table that replaces some."""
        loras = self._loras
        loaded = {name: one.scale for name, one in loras.items()}
        if given is None:
            return loaded
        if isinstance(given, Mapping):
            if unknown := [name for name in given if name not in loaded]:
                raise ValueError(
                    f"no LoRA is called {', '.join(map(repr, unknown))}; there are {', '.join(map(repr, loaded)) or 'none'}."
                )
            return loaded | {
                name: check_number(f"the scale of {name!r}", scale, -MOST_SCALE, MOST_SCALE)
                for name, scale in given.items()
            }
        factor = check_number("lora_scale", given, -MOST_SCALE, MOST_SCALE)
        return {name: scale * factor for name, scale in loaded.items()}


def merged(unet: Any, text_encoder: Any, loras: Sequence[tuple[str | os.PathLike[str], float]]) -> dict[str, Any]:
    """Both networks, by name, with LoRAs added to their weights: files and scales, as `TextPipeline.load_lora` takes them."""
    used = [
        (str(path), _read(path, unet, text_encoder), check_number("scale", scale, -MOST_SCALE, MOST_SCALE))
        for path, scale in loras
    ]
    return {
        "unet": with_deltas(unet, [(name, lora.unet, scale) for name, lora, scale in used], "unet"),
        "text_encoder": with_deltas(
            text_encoder, [(name, lora.text_encoder, scale) for name, lora, scale in used], "text_encoder"
        ),
    }


def _read(path: str | os.PathLike[str], unet: Any, text_encoder: Any) -> LoRA:
    return read_lora(
        path,
        unet=changeable_shapes(unet),
        text_encoder=changeable_shapes(text_encoder),
        original=original_layers(asdict(unet.config)),
    )


Used = list[tuple[str, LoRA, float]]


def _key(used: Used) -> tuple[tuple[LoRA, float], ...]:
    return tuple((lora, scale) for _, lora, scale in used)


def _extended(vectors: Mapping[str, Tensor], tokenizer: Any) -> Embeddings | None:
    """New tokens on a tokenizer; None if there are none."""
    return Embeddings(vectors, *with_tokens(tokenizer, vectors)) if vectors else None
