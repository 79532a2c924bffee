"""The benchmark's command line: what is refused, at once and in words, and where results go."""

import json

import pytest

from benchmarks.options import WHOLE, choose
from benchmarks.run import main
from benchmarks.settings import FULL, QUICK
from benchmarks.stamp import read_variants, write_stamp


def job(*arguments, cuda=False):
    return choose(arguments, cuda=lambda: cuda)


@pytest.mark.parametrize(
    ("arguments", "cuda", "words"),
    [
        (["--device", "cpu", "--dtype", "float16"], False, "float16 is not measured on a CPU: CPUs have no such"),
        (["--dtype", "float32", "float16"], False, "float16 is not measured on a CPU"),
        (["--cpu", "--dtype", "float16"], True, "a GPU without --cpu"),
        (["--device", "cuda"], False, "PyTorch finds no GPU here"),
        (["--repeats", "0"], False, "--repeats 0: give at least 1"),
        (["--quick", "--merge"], False, "say with --json what to add to"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, cuda, words):
    with pytest.raises(ValueError, match=words):
        job(*arguments, cuda=cuda)


def test_a_refusal_is_a_line_and_an_exit_code(capsys, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryDirectory", lambda **_: pytest.fail("it began to measure"))
    assert main(["--device", "cpu", "--dtype", "float16"]) == 2
    assert capsys.readouterr().err.startswith("benchmark: --dtype float16 is not measured on a CPU")


def test_devices_and_formats():
    assert job().kinds == [("cpu", "float32"), ("cpu", "bfloat16")]
    assert job("--quick").kinds == [("cpu", "float32")]
    assert job(cuda=True).kinds == [("cuda", "float16"), ("cuda", "bfloat16")]
    assert job("--device", "cuda", "--cpu", "--dtype", "float32", "float32", cuda=True).kinds == [
        ("cuda", "float32"), ("cpu", "float32"),
    ]  # fmt: skip


def test_where_the_result_goes(tmp_path):
    assert job().result == WHOLE["cpu"]
    assert job(cuda=True).result == WHOLE["cuda"]
    assert job("--only", "vae", "--merge").result == WHOLE["cpu"]
    for part_of_it in (["--only", "vae"], ["--quick"], ["--repeats", "1"], ["--dtype", "float32"]):
        assert job(*part_of_it).result is None
    assert job("--quick", "--json", str(tmp_path / "x")).result == tmp_path / "x"


def test_parts_are_measured_in_their_order():
    assert job("--only", "vae", "import").parts == ["import", "vae"]


def test_a_folder_with_a_model_of_other_settings_is_refused(tmp_path, capsys):
    write_stamp(tmp_path, QUICK, [None])
    assert read_variants(tmp_path, QUICK) == [None]
    with pytest.raises(ValueError, match=r"unet_widths is \[32, .*\] there and \[320, .*\] here"):
        read_variants(tmp_path, FULL)
    assert main(["--folder", str(tmp_path), "--only", "load", "--device", "cpu"]) == 2
    assert "holds a model of other settings" in capsys.readouterr().err


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    assert read_variants(tmp_path, QUICK) == read_variants(tmp_path / "new", QUICK) == []
    (tmp_path / "model_index.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"no benchmark\.json that says"):
        read_variants(tmp_path, QUICK)


def test_a_folder_gets_the_variants_that_it_lacks_and_no_other(tmp_path):
    from benchmarks.model_folder import ensure_model_folder

    written = []
    for variants in ([None], [None, "fp16"]):
        ensure_model_folder(tmp_path, QUICK, variants)
        files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("unet/*.safetensors")}
        written.append(files)
    assert read_variants(tmp_path, QUICK) == [None, "fp16"]
    assert [len(files) for files in written] == [1, 2]
    assert written[0].items() <= written[1].items()  # the float32 file was not touched
