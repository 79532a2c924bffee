"""Folders of pictures: what is read, what is refused, and in which order training sees it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from tiny_runs import make_pictures, write_metadata

from latentgen.training.data import check_pictures, load_picture, order, to_tensor
from latentgen.training.image_folder import read_folder


@pytest.fixture
def pictures(tmp_path):
    return make_pictures(tmp_path / "pictures", 6)


def test_metadata_gives_captions(pictures):
    examples = read_folder(pictures)
    assert [e.path.name for e in examples] == [f"{i:03d}.png" for i in range(6)]
    assert examples[0].text == "a red square on black"


def test_without_metadata_every_picture_counts(pictures):
    (pictures / "metadata.jsonl").unlink()
    (pictures / "below").mkdir()
    (pictures / "000.png").rename(pictures / "below" / "z.PNG")
    (pictures / "notes.txt").write_text("no picture")
    (pictures / "folder.png").mkdir()
    assert [(e.path.name, e.text) for e in read_folder(pictures)][-1] == ("z.PNG", "")
    assert len(read_folder(pictures)) == 6


def test_metadata_with_a_byte_order_mark_and_empty_lines(pictures):
    text = (pictures / "metadata.jsonl").read_text()
    (pictures / "metadata.jsonl").write_text("\ufeff" + text.replace("\n", "\n\n"), encoding="utf-8")
    assert len(read_folder(pictures)) == 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{not json", "line 2: expected"),
        (b'{"text": "no file"}', "line 2: expected"),
        (b'["a list"]', "line 2: expected"),
        (b"7", "line 2: expected"),
        (b'{"file_name": "\xff\xfe.png"}', "line 2: expected"),
        (b"[" * 100_000, "line 2: expected"),
        (b'{"file_name": 3}', "line 2: file_name and text must be strings"),
        (b'{"file_name": "000.png", "text": null}', "line 2: file_name and text must be strings"),
        (b'{"file_name": "missing.png", "text": "gone"}', "line 2: 'missing.png' is not there"),
        (b'{"file_name": "", "text": "gone"}', "line 2: '' is not there"),
        (b'{"file_name": "' + b"x" * 5000 + b'", "text": ""}', "is not there"),
        (b'{"file_name": "../pictures/000.png"}', "leaves the folder"),
        (b'{"file_name": "/etc/hostname"}', "leaves the folder"),
        (b'{"file_name": "a\\u0000.png"}', "leaves the folder"),
        (b'{"file_name": "C:000.png"}', "leaves the folder"),
        (b'{"file_name": "a\\\\..\\\\..\\\\000.png"}', "leaves the folder"),
        (b'{"file_name": "\\\\\\\\server\\\\share\\\\000.png"}', "leaves the folder"),
        (b'{"file_name": "000.png", "text": "a \\ud83d cat"}', r"line 2: \\ud83d is half of a character"),
        (b'{"file_name": "\\udc00.png"}', r"line 2: \\udc00 is half of a character"),
    ],
)
def test_bad_lines_are_named(pictures, line, message):
    (pictures / "metadata.jsonl").write_bytes(b'{"file_name": "000.png", "text": "good"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=message) as error:
        read_folder(pictures)
    assert "metadata.jsonl" in str(error.value)


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
def test_links_and_pipes_among_pictures(pictures, tmp_path):
    """A link to a picture is how pictures are shared; a folder that is a link leads anywhere."""
    other, metadata = tmp_path / "other", pictures / "metadata.jsonl"
    other.mkdir()
    (pictures / "000.png").rename(other / "000.png")
    (pictures / "000.png").symlink_to(other / "000.png")
    (pictures / "away").symlink_to(other)
    (pictures / "here").symlink_to(pictures)
    metadata.write_text('{"file_name": "000.png"}\n{"file_name": "here/000.png"}\n')
    assert len(read_folder(pictures)) == 2
    metadata.write_text('{"file_name": "away/000.png"}\n')
    with pytest.raises(ValueError, match=r"line 1: 'away/000\.png' lies in a link that leads out of the folder"):
        read_folder(pictures)
    metadata.unlink()
    os.mkfifo(metadata)
    with pytest.raises(ValueError, match=r"metadata\.jsonl is no file"):
        read_folder(pictures)


def test_no_folder_and_no_pictures(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no pictures"):
        read_folder(tmp_path)


@pytest.fixture
def warned(recwarn):
    """The texts of all warnings so far."""
    return lambda: [str(w.message) for w in recwarn]


def test_lines_without_a_caption_are_counted_where_captions_are_wanted(pictures, warned):
    lines = [{"file_name": f"{i:03d}.png", "text": "a cat"} for i in range(6)]
    lines[2] = {"file_name": "002.png", "caption": "a dog"}
    del lines[4]["text"]
    write_metadata(pictures, lines)
    assert [e.text for e in read_folder(pictures)] == ["a cat", "a cat", "", "a cat", "", "a cat"]
    assert warned() == []
    read_folder(pictures, captions=True)
    (text,) = warned()
    assert text.startswith('2 of 6 lines have no "text"')
    assert text.endswith("metadata.jsonl, line 3, with the keys file_name, caption.")


def test_folder_without_any_caption_says_what_to_do(pictures, warned):
    (pictures / "metadata.jsonl").rename(pictures / "elsewhere.jsonl")
    read_folder(pictures, captions=True)
    (pictures / "metadata.csv").write_text("file_name,text")
    read_folder(pictures, captions=True)
    (pictures / "train").mkdir()
    (pictures / "metadata.csv").rename(pictures / "train" / "metadata.jsonl")
    read_folder(pictures, captions=True)
    write_metadata(pictures, [{"file_name": "000.png", "caption": "a cat"}])
    read_folder(pictures, captions=True)
    write_metadata(pictures, [{"file_name": "000.png", "text": ""}])
    read_folder(pictures, captions=True)
    texts = warned()
    assert all("no picture has a caption: the model will not follow prompts" in text for text in texts)
    for text, remedy in zip(
        texts,
        [
            "Give them in",
            "metadata.csv is not read: captions are looked for in",
            "train/metadata.jsonl is not read",
            '1 lines have no "text", from which captions are read. The first is',
            "Give them in",
        ],
        strict=True,
    ):
        assert remedy in text


def test_pictures_of_other_formats_are_counted(pictures, warned):
    (pictures / "metadata.jsonl").unlink()
    read_folder(pictures)
    assert warned() == []
    Image.new("RGB", (16, 16)).save(pictures / "a.gif")
    for name in ("b.TIFF", "c.tiff"):
        Image.new("RGB", (16, 16)).save(pictures / name)
    assert len(read_folder(pictures)) == 6
    (text,) = warned()
    assert "left out 3 pictures in formats that are not read here (1 .gif, 2 .tiff)" in text
    write_metadata(pictures, [{"file_name": "a.gif"}])
    assert [e.path.name for e in check_pictures(read_folder(pictures), 16, skip=False, show=False)] == ["a.gif"]


def test_samples_of_a_run_are_not_pictures(pictures):
    (pictures / "metadata.jsonl").unlink()
    for folder in (pictures / "run" / "samples", pictures / "samples"):
        folder.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folder / "00000001.png")
    assert len(read_folder(pictures)) == 8  # someone's own pictures may lie in a folder of that name
    (pictures / "run" / "metrics.jsonl").touch()
    assert len(read_folder(pictures)) == 7
    (pictures / "metrics.jsonl").touch()
    assert len(read_folder(pictures)) == 6


def break_some(pictures):
    whole = (pictures / "000.png").read_bytes()
    (pictures / "001.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "003.png").write_bytes(b"")
    (pictures / "004.png").write_bytes(b"not a picture at all")
    return ["001.png", "003.png", "004.png"]


def test_broken_pictures_stop_or_are_skipped(pictures):
    broken = break_some(pictures)
    examples = read_folder(pictures)
    with pytest.raises(ValueError, match="3 of 6 pictures are broken") as error:
        check_pictures(examples, 16, skip=False)
    assert all(name in str(error.value) for name in broken)
    with pytest.warns(UserWarning, match="left out 3 broken pictures") as caught:
        kept = check_pictures(examples, 16, skip=True)
    assert all(name in str(caught[0].message) for name in broken)
    assert [e.path.name for e in kept] == ["000.png", "002.png", "005.png"]


def test_nothing_but_broken_pictures(pictures):
    write_metadata(pictures, [{"file_name": name} for name in break_some(pictures)])
    with pytest.raises(ValueError, match="all 3 pictures are broken"):
        check_pictures(read_folder(pictures), 16, skip=True)


def test_grey_palette_and_cmyk(tmp_path):
    colour = Image.new("RGB", (16, 16), (200, 100, 50))
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    Image.new("L", (16, 16), 77).save(tmp_path / "grey.png")
    Image.new("1", (16, 16), 1).save(tmp_path / "one_bit.png")
    colour.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert (load_picture(tmp_path / "palette.png", 16) == (200, 100, 50)).all()
    assert (load_picture(tmp_path / "grey.png", 16) == 77).all()
    assert (load_picture(tmp_path / "one_bit.png", 16) == 255).all()
    assert np.abs(load_picture(tmp_path / "cmyk.jpg", 16).astype(int) - (200, 100, 50)).max() <= 3


def test_transparent_becomes_white(tmp_path):
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("LA", (16, 16), (0, 128)).save(tmp_path / "half.png")
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([255, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert (load_picture(tmp_path / "clear.png", 16) == 255).all()
    assert (load_picture(tmp_path / "half.png", 16) == 127).all()
    assert (load_picture(tmp_path / "palette.png", 16) == 255).all()


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_sixteen_bits_are_reduced_to_eight(tmp_path, ending):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / f"deep.{ending}")
    loaded = load_picture(tmp_path / f"deep.{ending}", 16)
    assert np.abs(loaded[..., 0].astype(int) - np.arange(256).reshape(16, 16)).max() <= 1
    assert loaded.shape == (16, 16, 3)


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)).save(tmp_path / "float.tiff")
    with pytest.raises(
        ValueError, match=r"float\.tiff .* floating-point numbers of unknown range; save it with 8 or 16"
    ):
        load_picture(tmp_path / "float.tiff", 16)


def save_scene(path, width, height):
    """A smooth coloured picture with edges."""
    y, x = np.mgrid[0:height, 0:width] / min(width, height)
    pixels = np.stack([np.sin(5 * x), np.cos(4 * y), np.sign(np.sin(9 * (x + y)))], axis=-1)
    Image.fromarray((127.5 + 100 * pixels).astype(np.uint8)).save(path, quality=95)


def in_full(path, size):
    """The same without any shortcut."""
    with Image.open(path) as picture:
        return np.asarray(ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.LANCZOS))


@pytest.mark.parametrize(("width", "height", "ending"), [(16, 16, "jpg"), (90, 63, "jpg"), (640, 480, "png")])
def test_pictures_that_are_not_much_larger_are_decoded_in_full(tmp_path, width, height, ending):
    path = tmp_path / f"a.{ending}"
    save_scene(path, width, height)
    assert np.array_equal(load_picture(path, 16), in_full(path, 16))


def test_large_jpeg_is_decoded_at_a_lower_resolution(tmp_path, monkeypatch):
    path = tmp_path / "large.jpg"
    save_scene(path, 640, 480)
    sizes, fit = [], ImageOps.fit
    monkeypatch.setattr(ImageOps, "fit", lambda picture, *rest: sizes.append(picture.size) or fit(picture, *rest))
    loaded = load_picture(path, 32)
    assert sizes == [(160, 120)]  # a quarter; with an eighth there would be fewer than two pixels for one
    assert np.abs(loaded.astype(int) - in_full(path, 32)).mean() < 1.5
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="is not a readable picture"):
        load_picture(path, 32)


def test_exif_rotation(tmp_path):
    picture = Image.new("RGB", (32, 16), "black")
    picture.paste("white", (0, 0, 16, 16))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn it a quarter clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    loaded = load_picture(tmp_path / "turned.png", 16)  # upright it is 16 x 32, its upper half white
    assert (loaded[:8] == 255).all()
    assert (loaded[8:] == 0).all()


def test_scaled_by_the_shorter_side_and_cut_in_the_centre(tmp_path):
    picture = Image.new("RGB", (64, 32), "red")
    picture.paste("blue", (16, 0, 48, 32))
    picture.save(tmp_path / "wide.png")
    loaded = load_picture(tmp_path / "wide.png", 16)
    assert loaded.shape == (16, 16, 3)
    assert np.abs(loaded[:, 3:-3].astype(int) - (0, 0, 255)).max() <= 2  # but for ringing at the edges


def test_to_tensor_range():
    pictures = [np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)]
    tensor = to_tensor(pictures)
    assert tensor.shape == (2, 3, 2, 2)
    assert (float(tensor.min()), float(tensor.max())) == (-1, 1)
    assert tensor.dtype == torch.float32


@pytest.mark.parametrize(("count", "batch", "processes"), [(24, 4, 1), (24, 4, 2), (10, 4, 3), (3, 8, 2)])
def test_every_epoch_sees_each_picture_once(count, batch, processes):
    """All processes together read permutations, one after the other; none reads another's part."""
    seen = np.concatenate(
        [
            order(count, batch, step, seed=5, process=process, processes=processes)
            for step in range(3 * count)
            for process in range(processes)
        ]
    )
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert not np.array_equal(seen[:count], seen[count : 2 * count])


def test_order_is_a_pure_function_of_seed_step_and_process():
    one = order(100, 8, 7, seed=1, process=1, processes=2)
    assert np.array_equal(one, order(100, 8, 7, seed=1, process=1, processes=2))
    assert not np.array_equal(one, order(100, 8, 7, seed=2, process=1, processes=2))
    assert not np.array_equal(one, order(100, 8, 8, seed=1, process=1, processes=2))


def test_a_picture_that_may_not_be_read_is_named(pictures):
    link = pictures / "000.png"
    link.unlink()
    link.symlink_to(Path("loop.png"))
    (pictures / "loop.png").symlink_to("000.png")
    with pytest.raises(ValueError, match=r"line 1: '000\.png' is not there"):
        read_folder(pictures)
    assert json.loads((pictures / "metadata.jsonl").read_text().splitlines()[0])["file_name"] == os.path.basename(link)
