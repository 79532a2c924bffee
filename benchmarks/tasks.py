"""Pictures made from pictures, both libraries in this process, taking turns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionUpscalePipeline,
)
from PIL import Image
from torch import nn

from benchmarks.model_folder import UPSCALER
from benchmarks.networks import Bench
from benchmarks.rows import Row
from latentgen import Img2ImgPipeline, InpaintPipeline, SuperResPipeline

SEED = 1
"""A seed of latentgen and a generator of diffusers on the CPU draw the same noise in float32; diffusers draws it in the model's
format, and in another one has other numbers."""


def img2img_rows(bench: Bench) -> list[Row]:
    """From a picture and a prompt to a picture: half of the steps, on the text-to-image model's components."""
    ours = Img2ImgPipeline(**bench.ours.components)
    theirs = StableDiffusionImg2ImgPipeline(**bench.theirs.components, requires_safety_checker=False)
    picture, steps = _picture(bench.settings.pixels), bench.settings.task_steps
    call = {"image": picture, "strength": 0.5, "guidance_scale": bench.settings.guidance_scale}
    return [_row(bench, "img2img", f"image to image, {steps} steps", ours, theirs, call, call, per_step=2)]


def inpaint_rows(bench: Bench) -> list[Row]:
    """The same UNet with 9 channels: those of the mask and of the masked picture have weights of their own."""
    torch.manual_seed(0)
    channels, widths = 9, bench.settings.unet_widths
    entry = nn.Conv2d(channels, widths[0], 3, padding=1).to(bench.device, bench.dtype)
    our_unet, their_unet = _with_entry(bench.ours.unet, entry), _with_entry(bench.theirs.unet, entry)
    our_unet.config = replace(bench.ours.unet.config, in_channels=channels)
    their_unet._internal_dict = type(their_unet.config)({**their_unet.config, "in_channels": channels})
    ours = InpaintPipeline(**bench.ours.components | {"unet": our_unet})
    theirs = StableDiffusionInpaintPipeline(
        **bench.theirs.components | {"unet": their_unet}, requires_safety_checker=False
    )
    side, steps = bench.settings.pixels, bench.settings.task_steps
    mask = np.zeros((side, side), np.uint8)
    mask[side // 4 : side // 2, side // 4 : side // 2] = 255
    call = {
        "image": _picture(side), "mask_image": Image.fromarray(mask), "guidance_scale": bench.settings.guidance_scale,
        "strength": 1.0,
    }  # fmt: skip
    extra = {"height": side, "width": side}
    own = {"keep_unmasked": False}  # the plain decoder output, as theirs
    return [_row(bench, "inpaint", f"inpainting, 9 channels, {steps} steps", ours, theirs, call | own, call | extra)]


def upscale_rows(bench: Bench) -> list[Row]:
    """A quarter of the width and height enlarged by the x4 upscaler."""
    folder, settings = bench.folder / UPSCALER, bench.settings
    ours = SuperResPipeline.from_pretrained(folder, device=bench.device, dtype=bench.dtype)
    theirs = StableDiffusionUpscalePipeline.from_pretrained(str(folder), dtype=bench.dtype, local_files_only=True)
    theirs = theirs.to(bench.device)
    call = {"image": _picture(settings.pixels // 4), "guidance_scale": 9.0, "noise_level": 20}
    name = f"x4 upscaler, {settings.pixels // 4} to {settings.pixels}, {settings.task_steps} steps"
    return [_row(bench, "upscale", name, ours, theirs, call, call)]


MEASURE: dict[str, Callable[[Bench], list[Row]]] = {
    "img2img": img2img_rows, "inpaint": inpaint_rows, "upscale": upscale_rows,
}  # fmt: skip


def _row(
    bench: Bench,
    part: str,
    name: str,
    ours: Any,
    theirs: Any,
    our_call: dict[str, Any],
    their_call: dict[str, Any],
    *,
    per_step: int = 1,
) -> Row:
    """Both pipelines called in turn, after a warm-up of one step.

    Args:
        bench: where the components are.
        part, name: of the row.
        ours, theirs: the pipelines.
        our_call, their_call: what each is called with beside the prompt.
        per_step: how many steps are asked for, for one to be run.
    """
    theirs.set_progress_bar_config(disable=True)

    def draw_ours(steps: int) -> Any:
        made = ours("a red square", **our_call, seed=SEED, num_inference_steps=per_step * steps, output_type="np",
                    show_progress=False)  # fmt: skip
        assert not made.decoded_in_float32, "the decoder ran twice: that is no fair comparison"
        return made.images

    def draw_theirs(steps: int) -> Any:
        noise = torch.Generator().manual_seed(SEED)
        return theirs("a red square", **their_call, generator=noise, num_inference_steps=per_step * steps,
                      output_type="np").images  # fmt: skip

    bench.say(part, "warm-up")
    draw_ours(1)
    draw_theirs(1)
    steps = bench.settings.task_steps
    turns = bench.measure(part, {"latentgen": lambda: draw_ours(steps), "diffusers": lambda: draw_theirs(steps)})
    row = bench.row(part, name, turns, "latentgen", "diffusers")
    return row if bench.dtype == torch.float32 else replace(row, difference=None)


def _with_entry(unet: Any, entry: nn.Conv2d) -> Any:
    """The network with another first layer, all others shared."""
    twin = copy.copy(unet)
    twin._modules = {**unet._modules, "conv_in": entry}
    return twin


def _picture(side: int) -> Image.Image:
    """A smooth one, the same every time."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
