"""Folders of pictures: what is read, what is refused, and in which order training sees it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import make_pictures, write_metadata

from latentgen.training.data import check_pictures, load_picture, order, read_folder, to_tensor


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
    ],
)
def test_bad_lines_are_named(pictures, line, message):
    (pictures / "metadata.jsonl").write_bytes(b'{"file_name": "000.png", "text": "good"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=message) as error:
        read_folder(pictures)
    assert "metadata.jsonl" in str(error.value)


def test_no_folder_and_no_pictures(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no pictures"):
        read_folder(tmp_path)


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
