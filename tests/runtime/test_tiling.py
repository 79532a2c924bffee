"""Maps in tiles: what comes of them, and what the network is shown."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentgen import Tiling
from latentgen.runtime.tiling import in_tiles, starts_of_tiles


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(8, 8, 2), (9, 8, 4), (21, 8, 4), (64, 16, 0), (65, 16, 8), (100, 7, 3), (5, 8, 4)]
)
def test_tiles_cover_everything_and_overlap_enough(length, tile, overlap):
    starts = starts_of_tiles(length, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(length - tile, 0)
    assert all(b > a and a + tile - b >= overlap for a, b in itertools.pairwise(starts))
    fewer = (len(starts) - 1) * (tile - overlap) + overlap
    assert len(starts) == 1 or fewer < length  # one tile less would not reach


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("overlap", [0, 1, 4])
@pytest.mark.parametrize("size", [(8, 8), (9, 30), (17, 17), (21, 8), (3, 40)])
def test_a_network_that_looks_at_single_places_is_not_changed(size, overlap, scale):
    x = torch.randn(2, 3, *size)

    def network(part):
        return F.interpolate(part * 2 + 1, scale_factor=scale, mode="nearest")

    assert torch.allclose(in_tiles(network, x, tile=8, overlap=overlap, scale=scale), network(x), atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (17, 9), (21, 30)])
def test_an_encoder_that_looks_at_single_places_is_not_changed(size):
    x = torch.randn(1, 2, 4 * size[0], 4 * size[1])

    def network(part):
        assert max(part.shape[-2:]) <= 32
        return F.avg_pool2d(part, 4)

    assert torch.allclose(in_tiles(network, x, tile=8, overlap=3, shrink=4), F.avg_pool2d(x, 4), atol=1e-5)


def test_what_the_network_returns_is_not_changed_and_torchs_default_dtype_does_not_matter():
    x = torch.rand(1, 1, 20, 20)
    kept = x.clone()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.allclose(in_tiles(lambda part: part, x, tile=8, overlap=3), x, atol=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(x, kept)


def test_no_tile_is_larger_than_asked_for_and_the_dtype_is_the_networks():
    seen = []

    def network(part):
        seen.append((tuple(part.shape[-2:]), part.dtype))
        return part

    result = in_tiles(network, torch.zeros(1, 1, 20, 6, dtype=torch.bfloat16), tile=8, overlap=2)
    assert seen == [((8, 6), torch.bfloat16)] * 3
    assert result.dtype == torch.float32


def test_there_is_no_seam():
    """A network that gives each tile a number of its own: the result rises steadily from one to the next.

    The five tiles of 12 share 7 places with their neighbours, and where three meet the outer two differ by 2.
    """
    numbers = itertools.count()
    result = in_tiles(lambda part: torch.full_like(part, next(numbers)), torch.zeros(1, 1, 8, 32), tile=12, overlap=6)
    row = result[0, 0, 0]
    assert row[0] == 0
    assert row[-1] == next(numbers) - 1
    assert (row.diff() >= 0).all()
    assert row.diff().max() <= 2 / 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vae": 0}, "vae=0 must be a whole number of at least 1"),
        ({"unet": 1.5}, "unet=1.5 must be"),
        ({"batch": True}, "batch=True must be"),
        ({"overlap": -8}, "overlap=-8 must be a whole number of at least 0"),
        ({"vae": 64, "overlap": 40}, "overlap=40 must be at most half of vae=64"),
    ],
)
def test_bad_tilings(fields, message):
    with pytest.raises(ValueError, match=message):
        Tiling(**fields)


def test_lengths_must_fit_the_latents():
    Tiling(unet=64, vae=64, overlap=16).check(8)
    Tiling(batch=2, overlap=3).check(8)  # nothing is tiled
    assert Tiling(vae=np.int64(64), overlap=np.int32(16)) == Tiling(vae=64, overlap=16)
    for fields in ({"unet": 60, "overlap": 16}, {"vae": 64, "overlap": 12}):
        with pytest.raises(ValueError, match="must be a multiple of 8, the pixels that a latent stands for"):
            Tiling(**fields).check(8)
