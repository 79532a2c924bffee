"""Files that appear whole or not at all."""

import os

import pytest

from latentgen.weights.atomic import check_writable, replacing


def test_a_check_leaves_the_folder_and_no_file(tmp_path):
    (tmp_path / "kept.png").write_bytes(b"kept")
    check_writable(tmp_path / "kept.png")
    check_writable(tmp_path / "a" / "b" / "new.png")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "kept.png"]
    assert (tmp_path / "kept.png").read_bytes() == b"kept"


@pytest.mark.parametrize("name", ["folder", "file/x.png", "x" * 300, "closed/x.png"])
def test_what_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0o500)
    if name.startswith("closed") and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    with pytest.raises(OSError, match=r"is a folder|cannot be written") as caught:
        check_writable(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def interrupted():
        with replacing(path) as fresh:
            fresh.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]
