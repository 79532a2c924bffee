"""What of a picture inpainting draws anew, and how that gets back into the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from latentgen.pipelines.inputs import is_whole
from latentgen.pipelines.pictures import MAX_PIXELS, decoded, pad_to_multiple, to_rgb

Region = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of a picture, in pixels; the last two lie outside."""


@dataclass(frozen=True)
class Canvas:
    """Pictures and masks as the networks are shown them, and the way back.

    Attributes:
        pictures: (N, 3, H, W) in [0, 1], as they were given.
        masks: (N, 1, H, W), 1 where they are drawn anew.
        shown: (N, 3, h, w) what the networks see: the whole pictures, or a part of each at another size.
        shown_masks: (N, 1, h, w).
        regions: the part of each picture that is shown; None if it is the whole one.
    """

    pictures: Tensor
    masks: Tensor
    shown: Tensor
    shown_masks: Tensor
    regions: list[Region] | None

    @classmethod
    def whole(cls, pictures: Tensor, masks: Tensor, factor: int) -> Canvas:
        """All of the pictures, their edges repeated up to multiples of `factor`."""
        return cls(pictures, masks, pad_to_multiple(pictures, factor), pad_to_multiple(masks, factor), None)

    @classmethod
    def around_masks(cls, pictures: Tensor, masks: Tensor, padding: int, height: int, width: int) -> Canvas:
        """The surroundings of each mask, `padding` pixels wide at least, in height x width pixels."""
        regions = [surroundings(mask[0], padding, width / height) for mask in masks]
        parts = [_resized(p[:, y:y2, x:x2], height, width) for p, (x, y, x2, y2) in zip(pictures, regions, strict=True)]
        cut = [F.adaptive_max_pool2d(m[:, y:y2, x:x2], (height, width))  # no stroke is too thin to be seen
               for m, (x, y, x2, y2) in zip(masks, regions, strict=True)]  # fmt: skip
        return cls(pictures, masks, torch.stack(parts), torch.stack(cut), regions)

    def put_back(self, drawn: Tensor, k: int, *, keep_unmasked: bool, blur: float) -> Tensor:
        """What was drawn for picture k, (3, h, w) in [0, 1], in its place, (3, H, W).

        Args:
            drawn: in the size of `shown`.
            k: which picture.
            keep_unmasked: take every pixel outside the mask from the picture, bit for bit.
            blur: with that, how many pixels wide the seam is, inside the mask.
        """
        picture = self.pictures[k].to(drawn.device)
        if not self.masks[k].any():
            return picture
        height, width = picture.shape[-2:]
        if self.regions is None:
            whole = drawn[:, :height, :width]
        else:
            x, y, x2, y2 = self.regions[k]
            whole = picture.clone()
            whole[:, y:y2, x:x2] = _resized(drawn, y2 - y, x2 - x)
        if not keep_unmasked:
            return whole
        weight = soft_mask(self.masks[k], blur).to(drawn.device)
        return torch.where(weight > 0, weight * whole + (1 - weight) * picture, picture)


def _resized(pixels: Tensor, height: int, width: int) -> Tensor:
    if pixels.shape[-2:] == (height, width):
        return pixels
    resized = F.interpolate(pixels[None].float(), (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)


def soft_mask(mask: Tensor, blur: float) -> Tensor:
    """A mask (1, H, W) of 0 and 1 that rises evenly to 1 over `blur` pixels from its edge inwards; outside it stays 0.

    The picture's border is no edge. What is nowhere so deep stays below 1 and above 0.
    """
    width = max(1, math.ceil(blur))
    depth, left = torch.zeros_like(mask), mask
    for _ in range(width):
        depth = depth + left
        left = -F.max_pool2d(-left, 3, stride=1, padding=1)  # takes off the pixels along the edge
    return depth / width


def filled(pictures: Tensor, masks: Tensor) -> Tensor:
    """Pictures whose masked part is painted over with the colours around it, smoothly, (N, 3, H, W).

    Pull and push (Gortler et al. 1996, section 3.4): means of what is known, at half the size again and again, fill what has no
    known pixel one size above. Where nothing at all is known, that is grey.

    Args:
        pictures: (N, 3, H, W).
        masks: (N, 1, H, W), 1 where they are painted over.
    """
    known = 1 - masks
    if bool(known.all()):
        return pictures
    if pictures.shape[-2:] == (1, 1):
        return torch.where(masks > 0, 0.5, pictures)
    size = (-(-pictures.shape[-2] // 2), -(-pictures.shape[-1] // 2))
    share = F.adaptive_avg_pool2d(known, size)
    means = F.adaptive_avg_pool2d(pictures * known, size) / share.clamp(min=1e-6)
    coarse = filled(means, (share == 0).float())
    fine = F.interpolate(coarse, pictures.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(masks > 0, fine, pictures)


def surroundings(mask: Tensor, padding: int, aspect: float) -> Region:
    """The smallest part of a picture that holds its mask (H, W) and `padding` pixels around, with a side ratio near `aspect`.

    Where the picture is too small for that ratio, the part ends at its border.
    """
    height, width = mask.shape
    rows, columns = mask.any(dim=1).nonzero().flatten().tolist(), mask.any(dim=0).nonzero().flatten().tolist()
    if not rows:
        return 0, 0, width, height
    left, right = max(columns[0] - padding, 0), min(columns[-1] + 1 + padding, width)
    top, bottom = max(rows[0] - padding, 0), min(rows[-1] + 1 + padding, height)
    left, right = _widened(left, right, math.ceil((bottom - top) * aspect), width)
    top, bottom = _widened(top, bottom, math.ceil((right - left) / aspect), height)
    return left, top, right, bottom


def _widened(start: int, end: int, length: int, most: int) -> tuple[int, int]:
    """The span from `start` to `end` at least `length` long, about its middle, inside 0 to `most`."""
    length = min(max(length, end - start), most)
    start = min(max(start - (length - (end - start)) // 2, 0), most - length)
    return start, start + length


def extend_canvas(
    image: Image.Image,
    *,
    left: int = 0,
    top: int = 0,
    right: int = 0,
    bottom: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Image.Image, Image.Image]:
    """A picture with room to draw on beside it, and the mask of that room: for outpainting with `InpaintPipeline`.

    Args:
        image: the picture, of any mode, turned as its EXIF says.
        left, top, right, bottom: pixels to add, at least 0. The edge is repeated there.
        max_pixels: the most that the larger picture may have.

    Returns:
        The larger picture in RGB and its mask, white where there is room.

    Raises:
        ValueError: for a number below 0, nothing to add, or a picture that is too large, animated, damaged, or none.
    """
    sides = {"left": left, "top": top, "right": right, "bottom": bottom}
    for name, value in sides.items():
        if not is_whole(value) or value < 0:
            raise ValueError(f"{name}={value!r} must be a whole number of pixels, at least 0.")
    if not any(sides.values()):
        raise ValueError("left, top, right and bottom are all 0: say how many pixels to add.")
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"image is a {type(image).__name__}; it must be a PIL image: Image.open(path) or Image.fromarray(array)."
        )
    pixels = np.asarray(decoded("image", image, max_pixels, to_rgb))
    larger = (pixels.shape[1] + left + right, pixels.shape[0] + top + bottom)
    if larger[0] * larger[1] > max_pixels:
        raise ValueError(
            f"the larger picture is {larger[0]} x {larger[1]} pixels, more than max_pixels={max_pixels}: add less."
        )
    mask = np.zeros(pixels.shape[:2], np.uint8)
    room = ((top, bottom), (left, right))
    pixels = np.pad(pixels, (*room, (0, 0)), mode="edge")
    mask = np.pad(mask, room, constant_values=255)
    return Image.fromarray(pixels), Image.fromarray(mask)
