"""The networks and the whole pipeline, both libraries in this process, taking turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import synchronizer
from benchmarks.pairing import Turns, take_turns
from benchmarks.progress import say
from benchmarks.rows import Row, make_row
from benchmarks.settings import Effort, Settings
from latentgen import Text2ImagePipeline

Contenders = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Bench:
    """Both pipelines on one device in one format, with all that a measurement needs to know.

    Attributes:
        folder: of the model.
        rate: FLOP/s of a matrix product here.
        efforts: by part, how often to measure.
    """

    folder: Path
    ours: Text2ImagePipeline
    theirs: Any
    settings: Settings
    device: str
    dtype: torch.dtype
    rate: float
    efforts: dict[str, Effort]

    @property
    def dtype_name(self) -> str:
        """For example "float32"."""
        return str(self.dtype).removeprefix("torch.")

    def randn(self, *shape: int) -> Tensor:
        """The same numbers every time."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(self.device, self.dtype)

    def latents(self, count: int) -> Tensor:
        """Noise in the latents' shape."""
        side = self.settings.latent_side
        return self.randn(count, 4, side, side)

    def turns(self, part: str, contenders: Contenders) -> tuple[Turns, int]:
        """Warm up, then measure, a GPU's short calls several at once; and the first contender's FLOPs in one call."""
        first, *others = contenders
        self.say(part, "warm-up")
        flops = count_flops(contenders[first])  # this is the first one's warm-up
        take_turns({name: contenders[name] for name in others}, 1, synchronize=synchronizer(self.device))
        if self.device == "cuda":
            take_turns(contenders, 1, synchronize=synchronizer(self.device))
        return self.measure(part, contenders, calls=5 if self.device == "cuda" else 1), flops

    def measure(self, part: str, contenders: Contenders, *, calls: int = 1) -> Turns:
        """What is warm already."""
        effort = self.efforts[part]
        return take_turns(
            contenders,
            effort.pairs,
            seconds=effort.seconds,
            calls=calls,
            synchronize=synchronizer(self.device),
            on_round=lambda k: self.say(part, f"round {k + 1} of at most {effort.pairs}"),
        )

    def say(self, part: str, what: str) -> None:
        """Where the measurement is."""
        say(f"{part}, {self.device} {self.dtype_name}: {what}")

    def row(self, part: str, name: str, turns: Turns, ours: str, theirs: str, flops: int | None = None) -> Row:
        """A row from two of the contenders."""
        return make_row(
            part,
            name,
            self.device,
            self.dtype_name,
            turns.seconds[ours],
            turns.seconds[theirs],
            flops=flops,
            rate=self.rate,
            difference=difference(turns.outputs[ours], turns.outputs[theirs]),
        )


def load_both(
    folder: Path,
    settings: Settings,
    device: str,
    dtype: torch.dtype,
    variant: str | None,
    rate: float,
    efforts: dict[str, Effort],
) -> Bench:
    """Load the same folder with both libraries."""
    ours = Text2ImagePipeline.from_pretrained(folder, device=device, dtype=dtype, variant=variant)
    theirs = StableDiffusionPipeline.from_pretrained(
        str(folder), dtype=dtype, variant=variant, local_files_only=True
    ).to(device)
    theirs.set_progress_bar_config(disable=True)
    return Bench(folder, ours, theirs, settings, device, dtype, rate, efforts)


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference, as a share of the largest magnitude of `theirs`."""
    a, b = (torch.as_tensor(x).float() for x in (ours, theirs))
    return float((a - b).abs().max() / b.abs().max())


def count_flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in one call."""
    with _flop_counter() as counter:
        call()
    return int(counter.get_total_flops())


def _flop_counter() -> FlopCounterMode:
    def attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
        batch, heads, length, width = query
        return 2 * batch * heads * length * key[-2] * (width + value[-1])

    missing = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # PyTorch counts the GPU's attention only
    return FlopCounterMode(display=False, custom_mapping={missing: attention})


@torch.no_grad()
def unet_rows(bench: Bench) -> list[Row]:
    """A denoising step: batch 2 is one picture under guidance."""
    ours, theirs, settings = bench.ours.unet, bench.theirs.unet, bench.settings
    x, text = bench.latents(2), bench.randn(2, 77, settings.text_width)
    timestep = torch.tensor([500.0], device=bench.device)
    context, shifts = ours.prepare_context(text), ours.prepare_time(timestep)
    contenders: Contenders = {
        "prepared": lambda: ours.denoise(x, shifts, context),
        "diffusers": lambda: theirs(x, timestep, encoder_hidden_states=text).sample,
        "plain": lambda: ours(x, timestep, text),
    }
    turns, flops = bench.turns("unet", contenders)
    return [
        bench.row("unet", "UNet step, as pipelines run it", turns, "prepared", "diffusers", flops),
        bench.row("unet", "UNet forward, nothing prepared", turns, "plain", "diffusers", flops),
    ]


@torch.no_grad()
def vae_rows(bench: Bench) -> list[Row]:
    """The decoder, on one picture."""
    ours, theirs, z = bench.ours.vae, bench.theirs.vae, bench.latents(1)
    contenders: Contenders = {"latentgen": lambda: ours.decode(z), "diffusers": lambda: theirs.decode(z).sample}
    turns, flops = bench.turns("vae", contenders)
    return [bench.row("vae", "VAE decode", turns, "latentgen", "diffusers", flops)]


def picture_rows(bench: Bench) -> list[Row]:
    """From a prompt to a picture, from the same noise."""
    settings, latents = bench.settings, bench.latents(1)
    arguments: dict[str, Any] = {
        "height": settings.pixels, "width": settings.pixels, "guidance_scale": settings.guidance_scale,
        "latents": latents,
    }  # fmt: skip

    def ours(steps: int, on_step: Callable[..., None] | None = None) -> Any:
        made = bench.ours(
            "a red square", num_inference_steps=steps, output_type="np", show_progress=False,
            callback_on_step_end=on_step, **arguments,
        )  # fmt: skip
        assert not made.decoded_in_float32, "the decoder ran twice: that is no fair comparison"
        return made.images

    def theirs(steps: int) -> Any:
        return bench.theirs("a red square", num_inference_steps=steps, output_type="np", **arguments).images

    bench.say("picture", "warm-up")
    flops = picture_flops(ours, settings.steps)  # and latentgen's warm-up
    theirs(1)
    contenders: Contenders = {"latentgen": lambda: ours(settings.steps), "diffusers": lambda: theirs(settings.steps)}
    turns = bench.measure("picture", contenders)
    return [bench.row("picture", f"picture, {settings.steps} steps", turns, "latentgen", "diffusers", flops)]


def picture_flops(draw: Callable[[int, Callable[..., None]], Any], steps: int) -> int:
    """FLOPs of a picture in `steps` steps, counted in one of 2: every further step takes what the second took.

    Args:
        draw: called as `draw(2, on_step)`; calls `on_step` after each step.
        steps: at least 2.
    """
    totals: list[int] = []
    with _flop_counter() as counter:
        draw(2, lambda *_: totals.append(int(counter.get_total_flops())))
    first, second = totals
    return int(counter.get_total_flops()) + (steps - 2) * (second - first)


MEASURE = {"unet": unet_rows, "vae": vae_rows, "picture": picture_rows}
