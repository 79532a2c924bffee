"""Pictures of any mode to pixels, and what is refused."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from latentgen.pipelines.pictures import open_picture, pad_to_multiple, read_masks, read_pictures

RED = (255, 0, 0)


def solid(mode, colour, size=(4, 3)):
    return Image.new(mode, size, colour)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (solid("RGB", RED), (1, 0, 0)),
        (solid("L", 51), (0.2, 0.2, 0.2)),
        (solid("1", 1), (1, 1, 1)),
        (solid("RGB", RED).convert("P"), (1, 0, 0)),
        (solid("RGBA", (255, 0, 0, 0)), (1, 1, 1)),  # what is transparent is white
        (solid("RGBA", (255, 0, 0, 255)), (1, 0, 0)),
        (solid("LA", (0, 0)), (1, 1, 1)),
        (solid("CMYK", (0, 255, 255, 0)), (1, 0, 0)),
        (Image.fromarray(np.full((3, 4), 51 * 257, np.uint16)), (0.2, 0.2, 0.2)),
        (solid("I", 51 * 257), (0.2, 0.2, 0.2)),
        (solid("I", 51), (0.2, 0.2, 0.2)),  # 8 bits in a wider mode
        (np.full((3, 4), 51, np.uint8), (0.2, 0.2, 0.2)),
        (np.full((3, 4), 0.2, ">f4"), (0.2, 0.2, 0.2)),
        (np.full((3, 4), 0.2, np.longdouble), (0.2, 0.2, 0.2)),
        (torch.full((3, 4), 0.2), (0.2, 0.2, 0.2)),
        (np.full((3, 4, 1), 0.2), (0.2, 0.2, 0.2)),
        (torch.full((1, 3, 4), 0.2), (0.2, 0.2, 0.2)),
    ],
)
def test_any_mode(image, expected):
    pixels = read_pictures("image", image)
    assert pixels.shape == (1, 3, 3, 4)
    assert pixels.dtype == torch.float32
    assert torch.allclose(
        pixels, torch.tensor(expected, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 3, 4), atol=2e-3
    )


def test_8_bits_survive_exactly():
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    assert torch.equal((read_pictures("image", values) * 255).round().byte()[0], values)


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    pixels = read_pictures("image", Image.open(file))
    assert pixels.shape == (1, 3, 4, 2)
    assert pixels[0, :, 0, 1].tolist() == [1, 0, 0]


def animated():
    file = io.BytesIO()
    frames = [solid("L", v) for v in (0, 255)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return Image.open(file)


def truncated():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "JPEG")
    return Image.open(io.BytesIO(file.getvalue()[:1500]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "image is a NoneType; it must be a PIL image, an array"),
        ("photo.png", r"image is 'photo.png'; it must be .* Open the file first"),
        ([], "image is a list; it must be"),
        (np.zeros((3, 4, 2)), r"image is an array of shape \(3, 4, 2\); it must be"),
        (np.zeros((2, 2, 3, 4, 3)), "image is an array of shape"),
        (torch.zeros(4, 8, 8), r"image is a tensor of shape \(4, 8, 8\)"),
        (np.zeros((0, 4, 3)), "image is 4 x 0 pixels; there must be at least one"),
        (np.zeros((3, 4, 3), np.int64), "image holds numbers of torch.int64; they must be uint8"),
        (np.full((3, 4, 3), 200.0), r"image holds numbers from 200 to 200; floating-point pixels must be in \[0, 1\]"),
        (torch.linspace(-1, 1, 48).view(3, 4, 4), r"numbers from -1 to 1; .* pass x / 2 \+ 0.5"),
        (torch.full((3, 4, 4), torch.nan), "image holds numbers from nan"),
        ([solid("L", 0), solid("L", 0, (5, 3))], "image holds pictures of 4 x 3, 5 x 3 pixels; a batch has one size"),
        (animated(), "image holds 2 frames or pages; give one of them"),
        (np.full((3, 4), None), "image holds numbers of object; they must be uint8"),
        (truncated(), "image is no whole picture"),
        (solid("F", 0.5), "image cannot be used: its pixels are floating-point numbers"),
    ],
)
def test_what_is_no_picture(image, message):
    with pytest.raises(ValueError, match=message):
        read_pictures("image", image)


def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded(monkeypatch):
    image = truncated()
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(
        ValueError, match=r"image is 64 x 64 pixels, more than max_pixels=4095: make it smaller, or raise that"
    ):
        read_pictures("image", image, max_pixels=4095)


def test_a_photograph_with_a_second_picture_behind_it_is_the_first():
    file = io.BytesIO()
    solid("RGB", RED).save(file, "MPO", save_all=True, append_images=[solid("RGB", (0, 0, 255))])
    image = Image.open(file)
    assert image.n_frames == 2
    assert read_pictures("image", image)[0, 0].min() > 0.9


def test_a_limit_above_that_of_pil_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # a stand-in for 89 million
    solid("RGB", RED, (8, 6)).save(tmp_path / "x.png")
    assert open_picture(tmp_path / "x.png", max_pixels=48).size == (8, 6)
    with pytest.raises(ValueError, match=r"x.png is 8 x 6 pixels, more than max_pixels=47"):
        open_picture(tmp_path / "x.png", max_pixels=47)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_one_picture_may_be_read_by_several_threads():
    pixels = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    for _ in range(3):
        image = Image.open(io.BytesIO(file.getvalue()))
        with ThreadPoolExecutor(4) as pool:
            for read in pool.map(lambda _, image=image: read_pictures("image", image), range(4)):
                assert np.array_equal((read[0] * 255).round().byte().permute(1, 2, 0).numpy(), pixels)


def test_nothing_that_is_given_is_changed_and_torchs_defaults_do_not_matter():
    array, tensor = np.random.default_rng(0).random((3, 4, 3)), torch.rand(3, 3, 4, requires_grad=True)
    kept = array.copy(), tensor.detach().clone()
    torch.set_default_device("meta")
    try:
        assert read_pictures("image", array).device.type == "cpu"
        assert read_masks("mask", array).device.type == "cpu"
        assert not read_pictures("image", tensor).requires_grad
    finally:
        torch.set_default_device(None)
    assert np.array_equal(array, kept[0])
    assert torch.equal(tensor, kept[1])


@pytest.mark.parametrize(
    ("mask", "value"),
    [
        (solid("L", 127), 0),
        (solid("L", 128), 1),
        (solid("1", 1), 1),
        (solid("RGBA", (255, 255, 255, 0)), 0),  # what is transparent is black
        (solid("RGBA", (255, 255, 255, 255)), 1),
        (solid("RGB", RED), 0),
        (solid("RGB", (0, 255, 0)), 1),
        (np.full((3, 4), True), 1),
        (np.full((3, 4, 3), 0.6), 1),
        (torch.full((1, 3, 4), 0.4), 0),
    ],
)
def test_a_mask_is_what_is_brighter_than_half(mask, value):
    got = read_masks("mask_image", mask)
    assert torch.equal(got, torch.full((1, 1, 3, 4), float(value)))


@pytest.mark.parametrize(("size", "becomes"), [((8, 8), (8, 8)), ((7, 9), (8, 12)), ((1, 1), (4, 4))])
def test_padding_repeats_the_edge(size, becomes):
    pixels = torch.rand(2, 3, *size)
    padded = pad_to_multiple(pixels, 4)
    assert padded.shape[-2:] == becomes
    assert torch.equal(padded[..., : size[0], : size[1]], pixels)
    assert torch.equal(padded[..., -1, -1], pixels[..., -1, -1])
