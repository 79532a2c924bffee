"""Filling a network with tensors, strictly: a parameter is never left random or empty."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from latentgen.weights.allocation import allocate
from latentgen.weights.errors import WeightsError
from latentgen.weights.stored import StoredTensor

LISTED = 10  # names of each kind in an error

INPUT_CHANNELS = {
    5: "a depth-to-image checkpoint",
    7: "an x4 upscaler or an LDM inpainting checkpoint",
    8: "an image-editing (InstructPix2Pix) checkpoint",
    9: "an inpainting checkpoint",
}
"""What a UNet with so many input channels was trained for, when 4 were expected."""

FOREIGN_PREFIXES = {
    "model.diffusion_model.": "It is a whole model in one file, not one component of a model folder.",
    "first_stage_model.": "It is a whole model in one file, not one component of a model folder.",
    "cond_stage_model.": "It is a whole model in one file, not one component of a model folder.",
    "lora_": "It is an adapter (LoRA): load the model it was made for, and then the adapter.",
    "unet.": "It is an adapter (LoRA): load the model it was made for, and then the adapter.",
}
"""Beginnings of tensor names that betray another kind of file."""


READERS = min(4, os.cpu_count() or 1)
"""Threads: each reads and casts one tensor at a time, so that few are in memory in the file's dtype too."""


def fill(
    module: nn.Module,
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    source: str,
    settings: str = "its config.json",
) -> None:
    """Give a network that was built on the meta device its weights, and make it ready to run: frozen and in eval mode.

    Where dtype and device already fit, a parameter is the very tensor that was fetched.

    Args:
        module: its persistent buffers are filled too; its other buffers must hold their numbers already.
        tensors: exactly the names and shapes of `module.state_dict()`.
        dtype: of floating-point parameters and persistent buffers; integers keep theirs. None keeps what the file has.
        device: where everything goes; on "meta" nothing is read, and names and shapes alone are checked.
        source: the file or folder, for errors.
        settings: what the network was built from, for errors.

    Raises:
        WeightsError: if a tensor is missing, unexpected, of another shape, or an integer in a fraction's place; if one
            holds values that are not finite (in `dtype`), or all hold zeros only. The module is unchanged then.
        RuntimeError: if a buffer outside the file was left on the meta device, a mistake of whoever built the module.
    """
    expected = module.state_dict()
    hollow = [name for name, buffer in module.named_buffers() if buffer.is_meta and name not in expected]
    if hollow:
        raise RuntimeError(f"{', '.join(hollow)}: no file holds these buffers; give them their values before fill().")
    _check(expected, tensors, source, settings)

    def ready(name: str) -> tuple[Tensor, float]:
        given = (tensors[name].like if device.type == "meta" else tensors[name].fetch()).detach()
        if not expected[name].is_floating_point():
            return given.to(device=device, dtype=expected[name].dtype), 0.0
        cast = given if dtype in (None, given.dtype) else _cast(given, dtype, device)
        return cast.to(device), math.nan if cast.is_meta else largest(cast)

    with ThreadPoolExecutor(READERS) as pool:
        found = dict(zip(expected, pool.map(ready, expected), strict=True))
    if device.type != "meta":
        _check_values({name: most for name, (_, most) in found.items()}, tensors, dtype, source)
    module.load_state_dict({name: tensor for name, (tensor, _) in found.items()}, assign=True)
    for child in module.modules():
        for name, buffer in child.named_buffers(recurse=False):
            child._buffers[name] = buffer.to(device)  # those outside the file; their dtype is the builder's choice
    module.requires_grad_(False).eval()


def _cast(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor in another dtype, in memory that is quick to get where it stays."""
    if tensor.is_meta or device.type != "cpu":
        return tensor.to(dtype)
    return allocate(tensor.shape, dtype).copy_(tensor)


def largest(tensor: Tensor) -> float:
    """The largest magnitude in a tensor; infinity for one with values that are not finite."""
    if not tensor.numel():
        return 0.0
    if tensor.dtype.itemsize == 1:  # 8-bit fractions know no order
        tensor = tensor.float()
    low, high = (float(value) for value in torch.aminmax(tensor))
    return max(-low, high) if math.isfinite(low) and math.isfinite(high) else math.inf


def _check_values(
    magnitudes: Mapping[str, float], tensors: Mapping[str, StoredTensor], dtype: torch.dtype | None, source: str
) -> None:
    """Refuse weights that can draw nothing: a broken training, or a file of zeros in place of one that was not fetched."""
    broken = [name for name, most in magnitudes.items() if not math.isfinite(most)]
    if broken:
        listed = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in broken[:LISTED])
        cast = [] if dtype is None else sorted({str(tensors[name].dtype) for name in broken} - {str(dtype)})
        remedy = (
            f"They are {' and '.join(cast)} there and may be too large for {dtype}: try another dtype. " if cast else ""
        )
        raise WeightsError(
            f"{source} has values that are not finite in {len(broken)} tensors ({listed}{', ...' if broken[LISTED:] else ''}). "
            f"{remedy}Otherwise the file is damaged, or its training went wrong: fetch another one."
        )
    if magnitudes and not any(magnitudes.values()):
        raise WeightsError(f"{source} holds nothing but zeros, in {len(magnitudes)} tensors: fetch it again.")


def _check(expected: Mapping[str, Tensor], tensors: Mapping[str, StoredTensor], source: str, settings: str) -> None:
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    both = sorted(expected.keys() & tensors.keys())
    shaped = [name for name in both if expected[name].shape != tensors[name].shape]
    quantised = [
        name for name in both if expected[name].is_floating_point() and not tensors[name].dtype.is_floating_point
    ]
    if not (missing or unexpected or shaped or quantised):
        return
    findings = {
        "of another shape": [
            f"{name} is {tuple(tensors[name].shape)} in the file and {tuple(expected[name].shape)} in the model"
            for name in shaped
        ],
        "missing": [f"{name} {tuple(expected[name].shape)} is missing in the file" for name in missing],
        "unexpected": [
            f"{name} {tuple(tensors[name].shape)} is in the file and not in the model" for name in unexpected
        ],
        "quantised": [
            f"{name} is {tensors[name].dtype} in the file: quantised weights cannot be read" for name in quantised
        ],
    }
    raise WeightsError(_message(source, settings, findings, _remedy(expected, tensors, unexpected)))


def _message(source: str, settings: str, findings: Mapping[str, list[str]], remedy: str) -> str:
    """One line that says it all: how many of each kind, the first, and the remedy; where there are more, a list follows."""
    counts = ", ".join(f"{len(lines)} {kind}" for kind, lines in findings.items() if lines)
    every = [line for lines in findings.values() for line in lines]
    first = f"{source} does not fit {settings} (tensors: {counts}): {every[0]}. {remedy}"
    if len(every) == 1:
        return first
    return "\n".join([first, *(line for lines in findings.values() for line in _list(lines))])


def _list(lines: list[str]) -> list[str]:
    more = [f"  ... and {len(lines) - LISTED} more of the kind"] if len(lines) > LISTED else []
    return [f"  {line}" for line in lines[:LISTED]] + more


def _remedy(expected: Mapping[str, Tensor], tensors: Mapping[str, StoredTensor], unexpected: list[str]) -> str:
    if "conv_in.weight" in expected and "conv_in.weight" in tensors:
        built, given = expected["conv_in.weight"], tensors["conv_in.weight"]
        channels = given.shape[1] if len(given.shape) == 4 else 0
        if built.shape[1] != channels and channels in INPUT_CHANNELS:
            kind = INPUT_CHANNELS[channels]
            return f'A file with {channels} input channels is {kind}: set "in_channels": {channels} in config.json.'
    for prefix, hint in FOREIGN_PREFIXES.items():
        if any(name.startswith(prefix) for name in unexpected):
            return hint
    return (
        "Weights and config.json are of different models, or one is incomplete: fetch both again from the same place."
    )
