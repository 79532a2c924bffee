"""Pictures that a caller gives: of PIL, arrays or tensors, in any mode, to pixels in [0, 1]; and the sizes that networks need."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

MAX_PIXELS = 64_000_000
"""Pictures with more pixels are refused before they are decoded, unless a pipeline's `max_pixels` says otherwise."""

_decoding = threading.Lock()
"""PIL decodes a picture where it is first read, in the object that threads may share, and has its limit in a global."""

FORMS = "a PIL image, an array of (H, W, 3) or (H, W), a tensor of (3, H, W), (1, H, W) or (H, W), or a list or batch of them"


def open_picture(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture's file; its pixels are decoded later, by whoever reads them.

    Raises:
        ValueError: naming the file, if it is no picture, or has more than `max_pixels`.
    """
    try:
        with _decoding:
            theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # PIL's limit; ours is checked below
            try:
                picture = Image.open(path)
            finally:
                Image.MAX_IMAGE_PIXELS = theirs
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"{path} is no picture, or of a kind that is not read: PNG, JPEG, WebP and others are."
        ) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (SyntaxError, ValueError) as error:  # what decoders raise for a damaged file
        raise ValueError(f"{path} is no whole picture ({error}).") from None
    _check_size(str(path), picture.width, picture.height, max_pixels)
    return picture


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode in RGB: what is transparent becomes white, 16-bit grey is reduced to 8.

    Raises:
        ValueError: for pixels that are floating-point numbers.
    """
    picture = _eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits.")
    if picture.mode.startswith("I"):  # 16 bits, as a rule: a plain conversion would cut all above 255
        grey = np.asarray(picture).clip(0, 65535)
        few = picture.mode == "I" and grey.max(initial=0) <= 255
        return Image.fromarray((grey if few else grey // 257).astype(np.uint8))
    return picture


def read_pictures(name: str, value: Any, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Pixels (N, 3, H, W) float32 in [0, 1], on the CPU, of one picture or of N of one size.

    Args:
        name: the argument, for errors.
        value: a PIL image of any mode, turned as its EXIF says; uint8 or floating-point arrays (H, W), (H, W, C) or (N, H, W, C)
            and tensors (C, H, W) or (N, C, H, W) with C of 1 or 3, floats in [0, 1]; or a list of these.
        max_pixels: the most that one picture may have.

    Raises:
        ValueError: for what is no picture, or too large, animated, damaged, or of different sizes.
    """
    return _batch(name, [p if len(p) == 3 else p.expand(3, -1, -1) for p in _planes(name, value, max_pixels, to_rgb)])


def read_masks(name: str, value: Any, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Masks (N, 1, H, W), float32, 1 where a mask is brighter than half and 0 elsewhere: as `read_pictures`.

    Of a colour picture the brightness counts; what is transparent is black.
    """
    if isinstance(value, Tensor) and value.ndim == 3 and len(value) == 3 and not (value == value[:1]).all():
        raise ValueError(
            f"{name} is a tensor of shape {tuple(value.shape)}, three masks or one in colour: give masks as (N, 1, H, W)."
        )
    masks = []
    for plane in _planes(name, value, max_pixels, _to_grey):
        if len(plane) == 3:  # ITU-R 601, as PIL's "L"
            plane = 0.299 * plane[:1] + 0.587 * plane[1:2] + 0.114 * plane[2:]
        masks.append(plane.ge(0.5).float())
    return _batch(name, masks)


def _to_grey(picture: Image.Image) -> Image.Image:
    picture = _eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    return picture.convert("L")


def _batch(name: str, pictures: list[Tensor]) -> Tensor:
    sizes = list(dict.fromkeys(f"{p.shape[-1]} x {p.shape[-2]}" for p in pictures))
    if len(sizes) > 1:
        raise ValueError(
            f"{name} holds pictures of {', '.join(sizes)} pixels; a batch has one size: call once for each."
        )
    return torch.stack(pictures)


def _planes(name: str, value: Any, max_pixels: int, convert: Any) -> list[Tensor]:
    """Each picture as (C, H, W) float32 in [0, 1] with C of 1 or 3."""
    if isinstance(value, Image.Image):
        return [_of_pil(name, value, max_pixels, convert)]
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "buif":
            raise ValueError(f"{name} holds numbers of {value.dtype}; they must be uint8, or floating-point in [0, 1].")
        value = value.astype(np.float64 if value.dtype.kind == "f" else value.dtype.newbyteorder("="))
        stack = value[..., None] if value.ndim == 2 else value
        if stack.ndim == 3 and stack.shape[-1] in (1, 3):
            stack = stack[None]
        if stack.ndim == 4 and stack.shape[-1] in (1, 3) and len(stack):
            return [_of_numbers(name, torch.from_numpy(p.copy()).permute(2, 0, 1), max_pixels) for p in stack]
        raise ValueError(f"{name} is an array of shape {value.shape}; it must be {FORMS}.")
    if isinstance(value, Tensor):
        batch = {2: lambda v: v[None, None], 3: lambda v: v[None]}.get(value.ndim, lambda v: v)(value)
        if batch.ndim == 4 and batch.shape[1] in (1, 3) and len(batch):
            return [_of_numbers(name, p.detach().cpu(), max_pixels) for p in batch]
        raise ValueError(f"{name} is a tensor of shape {tuple(value.shape)}; it must be {FORMS}.")
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value):
        return [plane for one in value for plane in _planes(name, one, max_pixels, convert)]
    shown = repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
    raise ValueError(
        f"{name} is {shown}; it must be {FORMS}." + (" Open the file first." if isinstance(value, str) else "")
    )


def decoded(
    name: str, picture: Image.Image, max_pixels: int, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """A picture with its pixels, turned as its EXIF says and converted.

    Raises:
        ValueError: naming the argument, if it is too large, animated, damaged, or `convert` refuses it.
    """
    _check_size(name, picture.width, picture.height, max_pixels)
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # a photograph with a preview or a depth map behind it
        raise ValueError(f"{name} holds {frames} frames or pages; give one of them.")
    try:
        with _decoding:
            picture.load()
        return convert(ImageOps.exif_transpose(picture))
    except ValueError as error:
        raise ValueError(f"{name} cannot be used: {error}") from None
    except (OSError, SyntaxError) as error:  # what decoders raise for a file that is cut short or damaged
        raise ValueError(f"{name} is no whole picture ({error}): fetch or save it again.") from error


def _of_pil(name: str, picture: Image.Image, max_pixels: int, convert: Any) -> Tensor:
    pixels = torch.from_numpy(np.array(decoded(name, picture, max_pixels, convert)))
    return (pixels[..., None] if pixels.ndim == 2 else pixels).permute(2, 0, 1).float() / 255


def _of_numbers(name: str, numbers: Tensor, max_pixels: int) -> Tensor:
    _check_size(name, numbers.shape[2], numbers.shape[1], max_pixels)
    if numbers.dtype in (torch.uint8, torch.bool):
        return numbers.float() / (255 if numbers.dtype == torch.uint8 else 1)
    if not numbers.is_floating_point():
        raise ValueError(f"{name} holds numbers of {numbers.dtype}; they must be uint8, or floating-point in [0, 1].")
    numbers = numbers.float()
    low, high = float(numbers.min()), float(numbers.max())
    if not 0 <= low <= high <= 1:  # NaN is neither
        raise ValueError(
            f"{name} holds numbers from {low:.4g} to {high:.4g}; floating-point pixels must be in [0, 1] "
            "(of pixels in [-1, 1], pass x / 2 + 0.5)."
        )
    return numbers


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"{name} is {width} x {height} pixels; there must be at least one.")
    if width * height > max_pixels:
        raise ValueError(
            f"{name} is {width} x {height} pixels, more than max_pixels={max_pixels}: make it smaller, or raise that."
        )


def pad_to_multiple(pixels: Tensor, factor: int) -> Tensor:
    """Repeat the right and the lower edge of (N, C, H, W) until both sides are multiples of `factor`."""
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, -width % factor, 0, -height % factor), mode="replicate")
