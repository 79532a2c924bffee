"""Pictures side by side in one PNG."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from latentgen.weights.atomic import replacing


def save_grid(pictures: Tensor, path: Path, *, columns: int, gap: int = 2) -> None:
    """Write (N, 3, H, W) pictures in [-1, 1], row by row, with a white gap in pixels between them, in one step."""
    count, _, height, width = pictures.shape
    rows = -(-count // columns)
    pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, picture in enumerate(pixels):
        sheet.paste(Image.fromarray(picture), (i % columns * (width + gap), i // columns * (height + gap)))
    with replacing(path) as fresh:
        sheet.save(fresh, format="PNG")
