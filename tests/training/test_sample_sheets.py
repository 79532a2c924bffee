"""The PNG of samples."""

import numpy as np
import pytest
import torch
from PIL import Image

from latentgen.training.grid import save_grid


def test_pictures_lie_in_rows(tmp_path):
    pictures = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    save_grid(pictures, tmp_path / "new" / "a.png", columns=2)
    pixels = np.asarray(Image.open(tmp_path / "new" / "a.png"))
    assert pixels.shape == (10, 10, 3)
    assert [int(pixels[y, x, 0]) for y, x in ((0, 0), (0, 6), (6, 0), (6, 6), (0, 4))] == [0, 128, 255, 255, 255]


def test_sheet_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_grid(torch.zeros(1, 3, 4, 4), path, columns=1)
    before = path.read_bytes()

    def half(self, file, *_, **__):
        with open(file, "wb") as opened:
            opened.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="No space left"):
        save_grid(torch.ones(1, 3, 4, 4), path, columns=1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
