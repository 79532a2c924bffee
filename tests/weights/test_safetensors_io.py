import os
import pickle
import struct
import time
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentgen.weights import WeightsError
from latentgen.weights import safetensors_io as module
from latentgen.weights.safetensors_io import open_tensors, read_header, read_shapes, read_tensors, write_tensors


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "half": torch.randn(3, 5, generator=generator).half(),
        "brain": torch.randn(7, generator=generator).bfloat16(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "integers": torch.arange(6).reshape(2, 3),
    }


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_round_trip(tmp_path, tensors):
    write_tensors(tmp_path / "a.safetensors", tensors)
    assert same(read_tensors(tmp_path / "a.safetensors"), tensors)
    assert read_shapes(tmp_path / "a.safetensors") == {name: tuple(t.shape) for name, t in tensors.items()}


def test_other_readers_and_writers(tmp_path, tensors):
    write_tensors(tmp_path / "ours.safetensors", tensors, metadata={"made_by": "a test"})
    assert same(load_file(tmp_path / "ours.safetensors"), tensors)
    from safetensors import safe_open

    with safe_open(tmp_path / "ours.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "made_by": "a test"}
    save_file(tensors, tmp_path / "theirs.safetensors")
    assert same(read_tensors(str(tmp_path / "theirs.safetensors")), tensors)


def test_writing_into_a_tensor_leaves_the_file_alone(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(1000)})
    first = read_tensors(path)["a"]
    first += 1
    assert read_tensors(path)["a"].sum() == 0
    assert first.sum() == 1000


def test_a_file_that_was_read_can_be_replaced(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(1000)})
    old = read_tensors(path)
    write_tensors(path, {"a": old["a"] + 1})
    assert old["a"].sum() == 0
    write_tensors(path, read_tensors(path))
    assert read_tensors(path)["a"].sum() == 1000


def test_writing_packs_strided_and_shared_tensors(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    given = {
        "whole": base,
        "same": base,
        "turned": base.t(),
        "row": base[1],
        "every_other": base[:, ::2],
        "one": base[:1, 0][::2],
    }
    write_tensors(tmp_path / "a.safetensors", given)
    assert same(read_tensors(tmp_path / "a.safetensors"), given)


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_umask_is_respected(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == mode


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(1)})

    def no_more(tensor):
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "_bytes", no_more)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, {"a": torch.ones(1)})
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert read_tensors(path)["a"] == 0


def test_a_link_stays_a_link(tmp_path):
    kept, link = tmp_path / "elsewhere" / "kept.safetensors", tmp_path / "link.safetensors"
    write_tensors(kept, {"a": torch.zeros(1)})
    link.symlink_to(kept)
    assert read_tensors(link)["a"] == 0
    write_tensors(link, {"a": torch.ones(1)})
    assert link.is_symlink()
    assert read_tensors(kept)["a"] == 1
    assert os.listdir(tmp_path / "elsewhere") == ["kept.safetensors"]


def test_only_safetensors_are_written(tmp_path):
    with pytest.raises(ValueError, match=r"\.safetensors"):
        write_tensors(tmp_path / "a.bin", {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="a is on the meta device"):
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1, device="meta")})
    assert os.listdir(tmp_path) == []


def header(text, size=None):
    return struct.pack("<Q", len(text) if size is None else size) + text


def many(count):
    """A header in which the last of many names stands twice."""
    names = ",".join(f'"{k:07d}":""' for k in [*range(count), count - 1])
    return header(b'{"__metadata__":{' + names.encode() + b"}}")


BAD_FILES = {
    "one name twice among many": (many(50_000), "'0049999' stands there twice"),
    "more names than tensors have": (many(72_000), "its header has 72002 keys"),
    "a name that writes into the terminal": (
        header(b'{"a\\u001b[2J":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}') + bytes(4),
        "control characters",
    ),
    "a name of two lines": (
        header(b'{"a\\nb":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}') + bytes(4),
        "control characters",
    ),
    "empty": (b"", "empty: fetch it again"),
    "short": (b"abc", "cut short or altered"),
    "huge header": (header(b"{}", 2**60), "cut short or altered"),
    "header past the end": (header(b"{}", 1000), "damaged|cut short"),
    "not JSON": (header(b"not json"), "damaged"),
    "not an object": (header(b"[1]"), "damaged"),
    "tensor past the end": (header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}') + b"1234", "cut short"),
    "overflowing shape": (
        header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}') + b"1234",
        "damaged|cut short",
    ),
    "unknown dtype": (header(b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}') + b"1234", "damaged"),
    "web page": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167540\n", "git lfs pull"),
}


@pytest.mark.parametrize(("content", "remedy"), BAD_FILES.values(), ids=BAD_FILES.keys())
@pytest.mark.parametrize("read", [read_tensors, read_shapes])
def test_bad_files(tmp_path, content, remedy, read):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"bad\.safetensors cannot be read.*({remedy})"):
        read(path)


def test_truncated_file(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    write_tensors(path, tensors)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(WeightsError, match=r"a\.safetensors.*cut short or altered: fetch it again"):
        read_tensors(path)


class Trap:
    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("protocol", [2, 4, "zip"])
def test_a_pickle_under_another_name_is_not_opened(tmp_path, protocol):
    trap = Trap()
    trap.target = str(tmp_path / "sprung")
    path = tmp_path / "model.safetensors"
    if protocol == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", pickle.dumps(trap))
    else:
        path.write_bytes(pickle.dumps(trap, protocol))
    with pytest.raises(WeightsError, match="is a pickle"):
        read_tensors(path)
    assert not (tmp_path / "sprung").exists()


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        read_tensors(tmp_path / "absent.safetensors")
    with pytest.raises(WeightsError, match="is a folder"):
        read_shapes(tmp_path)
    (tmp_path / "nowhere.safetensors").symlink_to(tmp_path / "absent")
    with pytest.raises(WeightsError, match="link to a file that does not exist"):
        read_tensors(tmp_path / "nowhere.safetensors")
    (tmp_path / "circle.safetensors").symlink_to(tmp_path / "circle.safetensors")
    with pytest.raises(WeightsError, match="leads to itself"):
        read_tensors(tmp_path / "circle.safetensors")


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(WeightsError, match="pipe"):
        read_tensors(tmp_path / "pipe.safetensors")


def test_metadata(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, {"made_by": "a test"})
    assert read_header(tmp_path / "a.safetensors").metadata == {"format": "pt", "made_by": "a test"}


def test_a_file_that_is_cut_after_it_was_opened(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    write_tensors(path, tensors)
    stored = open_tensors(path)
    assert torch.equal(stored["half"].fetch(), tensors["half"])
    os.truncate(path, path.stat().st_size - 60)
    with pytest.raises(WeightsError, match=r"a\.safetensors changed while it was read"):
        [tensor.fetch() for tensor in stored.values()]


def test_a_file_that_is_written_into_after_it_was_opened(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    write_tensors(path, tensors)
    stored = open_tensors(path)
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\0")
    with pytest.raises(WeightsError, match="changed while it was read"):
        stored["integers"].fetch()


@pytest.mark.skipif(os.name != "posix", reason="devices")
def test_a_device_is_not_even_opened(tmp_path, monkeypatch):
    (tmp_path / "device.safetensors").symlink_to("/dev/zero")

    def never(path, *_):
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(os, "open", never)
    with pytest.raises(WeightsError, match="is a pipe, socket or device"):
        read_tensors(tmp_path / "device.safetensors")


@pytest.mark.skipif(os.name != "posix", reason="the system's own time of change")
def test_a_file_that_is_written_into_and_has_its_time_put_back(tmp_path):
    """As `cp -p` and `rsync --inplace` leave it."""
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(3), "b": torch.zeros(3)})
    os.utime(path, (1, 1))
    stored = open_tensors(path)
    assert stored["a"].fetch().sum() == 0
    time.sleep(0.05)
    content = path.read_bytes()
    with path.open("rb+") as file:
        file.write(content[:-12] + b"\1" * 12)
    os.utime(path, (1, 1))
    with pytest.raises(WeightsError, match="changed while it was read"):
        stored["b"].fetch()


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_file_that_gains_and_loses_names_is_the_same(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(3)})
    stored = open_tensors(path)
    time.sleep(0.05)
    os.link(path, tmp_path / "b.safetensors")
    assert stored["a"].fetch().sum() == 3
    path.unlink()
    (tmp_path / "b.safetensors").unlink()
    assert stored["a"].fetch().sum() == 3


def test_a_file_that_is_renamed_over_another_leaves_its_readers_alone(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(3)})
    stored = open_tensors(path)
    write_tensors(path, {"a": torch.ones(3)})
    assert stored["a"].fetch().sum() == 0
    assert read_tensors(path)["a"].sum() == 3
