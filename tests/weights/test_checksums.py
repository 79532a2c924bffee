"""Recorded sums: written with a model, and held to when it is loaded with `verify=True`."""

import hashlib
import os
import random
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch
from tiny_sd import make_model_folder

from latentgen import AutoencoderKL, DDIMScheduler, Text2ImagePipeline
from latentgen.weights import WeightsError
from latentgen.weights.checksums import SUMS, read_sums

HOW = {"device": "cpu", "dtype": "float32"}


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sums")
    pipe = Text2ImagePipeline.from_pretrained(make_model_folder(folder / "theirs"), **HOW)
    pipe.save_pretrained(folder / "ours")
    return folder / "ours"


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def git_sum(path):
    content = path.read_bytes()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def files(folder):
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def test_every_file_that_is_saved_is_recorded(saved):
    there = files(saved)
    assert read_sums(saved / SUMS) == {name: sha(path) for name, path in there.items() if name != SUMS}
    assert not [name for name in there if name.endswith("/" + SUMS)]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_other_programs_read_the_sums(saved):
    done = subprocess.run(["sha256sum", "--strict", "-c", SUMS], cwd=saved, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_was_saved_is_verified(copy):
    pipe = Text2ImagePipeline.from_pretrained(copy, verify=True, **HOW)
    AutoencoderKL.from_pretrained(copy, subfolder="vae", verify=True, **HOW)
    AutoencoderKL.from_pretrained(copy / "vae", verify=True, **HOW)
    assert pipe.unet.dtype == torch.float32


def test_one_bit_anywhere_is_found(copy):
    generator = random.Random(0)
    read = [name for name in files(copy) if name not in (SUMS, "tokenizer/vocab.json", "tokenizer/merges.txt",
                                                         "tokenizer/special_tokens_map.json")]  # fmt: skip
    for number in range(40):
        name = read[number % len(read)]
        path = copy / name
        content = bytearray(path.read_bytes())
        place = generator.randrange(len(content))
        content[place] ^= 1 << generator.randrange(8)
        before = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=rf"{name.rpartition('/')[2]} is not the file that was recorded"):
            Text2ImagePipeline.from_pretrained(copy, verify=True, **HOW)
        path.write_bytes(before)
    Text2ImagePipeline.from_pretrained(copy, verify=True, **HOW)


def test_without_verify_nobody_looks(copy):
    (copy / SUMS).write_text("nonsense")
    Text2ImagePipeline.from_pretrained(copy, **HOW)
    with pytest.raises(WeightsError, match=r"SHA256SUMS, line 1: 'nonsense' is not a sum and a name"):
        Text2ImagePipeline.from_pretrained(copy, verify=True, **HOW)


def test_no_record_is_an_error(copy):
    (copy / SUMS).unlink()
    with pytest.raises(
        WeightsError, match=r"model_index\.json has no recorded SHA-256: SHA256SUMS in .* does not exist"
    ):
        Text2ImagePipeline.from_pretrained(copy, verify=True, **HOW)


def test_a_file_that_the_record_lacks(copy):
    lines = (copy / SUMS).read_text().splitlines()
    (copy / SUMS).write_text("\n".join(line for line in lines if "vae/config.json" not in line) + "\n")
    with pytest.raises(WeightsError, match=r"vae/config\.json has no recorded SHA-256: SHA256SUMS in .* lacks it"):
        Text2ImagePipeline.from_pretrained(copy, verify=True, **HOW)


def test_a_second_save_keeps_what_is_true_and_drops_what_is_gone(copy):
    pipe = Text2ImagePipeline.from_pretrained(copy, **HOW)
    pipe.save_pretrained(copy, variant="half", max_shard_size="50KB")
    pipe.save_pretrained(copy, variant="half")
    there = files(copy)
    assert read_sums(copy / SUMS) == {name: sha(path) for name, path in there.items() if name != SUMS}
    Text2ImagePipeline.from_pretrained(copy, variant="half", verify=True, **HOW)


def test_a_network_alone(tmp_path):
    model = AutoencoderKL.from_config({"block_out_channels": [32]})
    model.save_pretrained(tmp_path)
    assert read_sums(tmp_path / SUMS).keys() == {"config.json", "diffusion_pytorch_model.safetensors"}
    AutoencoderKL.from_pretrained(tmp_path, verify=True, **HOW)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + " ")
    with pytest.raises(WeightsError, match=r"config\.json is not the file that was recorded"):
        AutoencoderKL.from_pretrained(tmp_path, verify=True, **HOW)


def test_a_single_file(tmp_path):
    path = tmp_path / "vae.safetensors"
    AutoencoderKL.from_config({"block_out_channels": [32]}).save_single_file(path)
    with pytest.raises(
        WeightsError, match=r"vae\.safetensors has no recorded SHA-256: there is no vae\.safetensors\.sha256"
    ):
        AutoencoderKL.from_single_file(path, verify=True, **HOW)
    AutoencoderKL.from_single_file(path, verify=sha(path).upper(), **HOW)
    with pytest.raises(WeightsError, match=f"is not the file that was recorded: its SHA-256 is {sha(path)}, and 0000"):
        AutoencoderKL.from_single_file(path, verify="0" * 64, **HOW)
    for nothing in ("abc", "", None):
        with pytest.raises(ValueError, match=f"verify={nothing!r} is no SHA-256"):
            AutoencoderKL.from_single_file(path, verify=nothing, **HOW)
    (tmp_path / "vae.safetensors.sha256").write_text(f"{sha(path)}  vae.safetensors\n")
    AutoencoderKL.from_single_file(path, verify=True, **HOW)
    (tmp_path / "vae.safetensors.sha256").write_text(f"{sha(path)}  other.safetensors\n")
    with pytest.raises(WeightsError, match="has no sum of vae"):
        AutoencoderKL.from_single_file(path, verify=True, **HOW)


def the_same_record(folder):
    assert read_sums(folder / SUMS) == {name: sha(path) for name, path in files(folder).items() if name != SUMS}
    assert [*folder.rglob(SUMS)] == [folder / SUMS]


def test_a_component_that_is_saved_alone_goes_into_its_models_record(copy):
    pipe = Text2ImagePipeline.from_pretrained(copy, **HOW)
    with torch.no_grad():
        next(pipe.vae.parameters()).add_(1)
    pipe.vae.save_pretrained(copy / "vae")
    replace(pipe.scheduler, steps_offset=0).save_pretrained(copy / "scheduler")
    the_same_record(copy)
    Text2ImagePipeline.from_pretrained(copy, verify=True, **HOW)
    AutoencoderKL.from_pretrained(copy / "vae", verify=True, **HOW)


def test_a_model_that_is_saved_around_a_component_has_one_record(saved, tmp_path):
    pipe = Text2ImagePipeline.from_pretrained(saved, **HOW)
    pipe.vae.save_pretrained(tmp_path / "vae")
    with torch.no_grad():
        next(pipe.vae.parameters()).add_(1)
    pipe.save_pretrained(tmp_path)
    the_same_record(tmp_path)
    AutoencoderKL.from_pretrained(tmp_path / "vae", verify=True, **HOW)


def test_a_scheduler_alone_begins_no_record(tmp_path):
    DDIMScheduler().save_pretrained(tmp_path)
    assert [*files(tmp_path)] == ["scheduler_config.json"]


def test_a_save_that_is_broken_off_leaves_no_sum_of_what_it_wrote(copy, monkeypatch):
    pipe = Text2ImagePipeline.from_pretrained(copy, **HOW)
    with torch.no_grad():
        next(pipe.vae.parameters()).add_(1)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(pipe.unet), "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipe.save_pretrained(copy)
    sums = read_sums(copy / SUMS)
    assert "unet/config.json" in sums
    assert all(value == sha(copy / name) for name, value in sums.items())


def test_a_record_that_cannot_be_read_stops_a_save_before_anything_is_written(copy):
    pipe = Text2ImagePipeline.from_pretrained(copy, **HOW)
    (copy / SUMS).write_text("nonsense")
    before = {name: path.stat().st_mtime_ns for name, path in files(copy).items()}
    with pytest.raises(
        WeightsError, match=r"line 1: 'nonsense' is not a sum and a name.*Write the file anew, or remove it"
    ):
        pipe.save_pretrained(copy)
    assert {name: path.stat().st_mtime_ns for name, path in files(copy).items()} == before


def test_nonsense_beside_a_folder_is_not_the_folders(tmp_path):
    (tmp_path / SUMS).write_text("SHA256 (other.iso) = abc")
    AutoencoderKL.from_config({"block_out_channels": [32]}).save_pretrained(tmp_path / "vae")
    AutoencoderKL.from_pretrained(tmp_path / "vae", verify=True, **HOW)


@pytest.mark.parametrize("name", ["tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json"])
def test_settings_that_are_gone(copy, name):
    (copy / name).unlink()
    Text2ImagePipeline.from_pretrained(copy, **HOW)  # means something else, and is no error by itself
    with pytest.raises(WeightsError, match=rf"{name} is recorded in SHA256SUMS and is not there"):
        Text2ImagePipeline.from_pretrained(copy, verify=True, **HOW)


def test_weights_that_are_not_wanted_may_be_gone(copy):
    pipe = Text2ImagePipeline.from_pretrained(copy, **HOW)
    pipe.save_pretrained(copy, variant="half", max_shard_size="50KB")
    for path in [path for name, path in files(copy).items() if "half" in name]:
        path.unlink()
    Text2ImagePipeline.from_pretrained(copy, verify=True, **HOW)


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_the_hubs_cache_keeps_files_under_their_sums(copy, tmp_path):
    """Large files under their SHA-256, small ones under Git's SHA-1 of length and content."""
    (copy / SUMS).unlink()
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("0" * 40)
    blobs.mkdir()
    for name, path in files(copy).items():
        target = blobs / (sha(path) if name.endswith(".safetensors") else git_sum(path))
        shutil.copy(path, target)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(target)
    Text2ImagePipeline.from_pretrained(snapshot, verify=True, **HOW)
    settings = (snapshot / "vae" / "config.json").resolve()
    said = settings.read_text()
    settings.write_text(said.replace("3", "4", 1))
    with pytest.raises(WeightsError, match=r"vae/config\.json is not the file that was recorded: Git would call it"):
        Text2ImagePipeline.from_pretrained(snapshot, verify=True, **HOW)
    settings.write_text(said)
    weights = (snapshot / "vae" / "diffusion_pytorch_model.safetensors").resolve()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 4
    weights.write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"vae/diffusion_pytorch_model\.safetensors is not the file that was recorded"
    ):
        Text2ImagePipeline.from_pretrained(snapshot, verify=True, **HOW)


def test_a_single_file_that_is_saved_again_has_its_sum_written_anew(tmp_path):
    path, model = tmp_path / "vae.safetensors", AutoencoderKL.from_config({"block_out_channels": [32]})
    model.save_single_file(path, checksum=True)
    AutoencoderKL.from_single_file(path, verify=True, **HOW)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_single_file(path)
    AutoencoderKL.from_single_file(path, verify=True, **HOW)
    model.save_single_file(tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors.sha256").exists()
