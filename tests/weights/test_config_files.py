import json
import os

import pytest

from latentgen.weights import WeightsError
from latentgen.weights import config_files as module
from latentgen.weights.config_files import component_path, read_json, write_json


def test_round_trip(tmp_path):
    content = {"_class_name": "UNet", "z": [1, 2.5, None, True], "a": {"label": "größe 猫"}}
    write_json(tmp_path / "new" / "config.json", content)
    assert read_json(tmp_path / "new" / "config.json") == content
    assert list(read_json(str(tmp_path / "new" / "config.json"))) == ["_class_name", "z", "a"]
    assert os.listdir(tmp_path / "new") == ["config.json"]


def test_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"a": 1,}', "is not JSON.*line 1, column"),
        (b"[1, 2]", "holds a list, not an object"),
        (b'"text"', "holds a str"),
        (b"\xff\xfe{}", "not text in UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "is not JSON"),
    ],
)
def test_bad_content(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"a\.json.*{message}"):
        read_json(tmp_path / "a.json")


def test_missing_folder_and_too_large(tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match="does not exist"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(WeightsError, match="is a folder, and a file is expected"):
        read_json(tmp_path)
    monkeypatch.setattr(module, "MAX_JSON_BYTES", 10)
    (tmp_path / "a.json").write_text(json.dumps({"a": "x" * 10}))
    with pytest.raises(WeightsError, match="larger than 10 bytes"):
        read_json(tmp_path / "a.json")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})

    def refuses(source, target):
        raise PermissionError("no")

    monkeypatch.setattr(os, "replace", refuses)
    with pytest.raises(PermissionError):
        write_json(tmp_path / "a.json", {"a": 2})
    assert os.listdir(tmp_path) == ["a.json"]
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_component_path(tmp_path):
    assert component_path(tmp_path, "unet", "config.json") == tmp_path / "unet" / "config.json"
    assert component_path(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/etc", "../up", "a/b", "a/", "a\\b", "C:evil", "C:\\evil", "a\0b", None, 3, ["a"]]
)
def test_names_that_leave_the_folder(tmp_path, name):
    with pytest.raises(WeightsError, match="not a plain name"):
        component_path(tmp_path, "unet", name)
