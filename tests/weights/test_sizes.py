"""Numbers of bytes, as people write them."""

import pytest

from latentgen.weights.sizes import read_bytes


@pytest.mark.parametrize(
    ("size", "meant"),
    [(1, 1), (4.0, 4), ("512", 512), ("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), (" 2 mb ", 2 * 10**6), ("7KiB", 7168)],
)
def test_sizes(size, meant):
    assert read_bytes("memory", size) == meant


@pytest.mark.parametrize(
    "size", [0, -1, True, "4 apples", "", "GB", "-4GB", "nan", float("nan"), float("inf"), [4], "1e99"]
)
def test_what_is_no_size_is_named(size):
    with pytest.raises(
        ValueError, match=r"memory=.* is not a size: give a number of bytes, for example '10GB' or '500MB'"
    ):
        read_bytes("memory", size)
