import json
import os
import pickle
import shutil
import warnings

import pytest
import torch

from latentgen.weights import WeightsError
from latentgen.weights.safetensors_io import read_shapes, write_tensors
from latentgen.weights.sharding import load_tensors, save_tensors, shard_limit

STEM = "diffusion_pytorch_model"


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{i}.weight": torch.randn(10, 10, generator=generator) for i in range(7)}


def same(stored, tensors):
    return same_values({name: tensor.fetch() for name, tensor in stored.items()}, tensors)


def same_values(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("variant", [None, "fp16", "non_ema"])
@pytest.mark.parametrize("stem", [STEM, "model"])
@pytest.mark.parametrize("size", ["10GB", "1KB", 799])
def test_round_trip(tmp_path, tensors, stem, variant, size):
    save_tensors(tmp_path, stem, tensors, variant=variant, max_shard_size=size)
    assert same(load_tensors(tmp_path, stem, variant), tensors)
    files = os.listdir(tmp_path)
    dotted = f".{variant}" if variant else ""
    if size == "10GB":
        assert files == [f"{stem}{dotted}.safetensors"]
        return
    count = 4 if size == "1KB" else 7  # each tensor has 400 bytes
    shards = [f"{stem}{dotted}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    index = f"{stem}.safetensors.index{dotted}.json"
    assert sorted(files) == sorted([index, *shards])
    content = json.loads((tmp_path / index).read_text())
    assert content["metadata"]["total_size"] == 7 * 400
    assert set(content["weight_map"]) == set(tensors)


def test_shards_are_filled_in_order(tmp_path, tensors):
    save_tensors(tmp_path, STEM, tensors | {"large": torch.zeros(1000)}, max_shard_size="1.2KB")
    sizes = [len(read_shapes(tmp_path / f"{STEM}-{i:05d}-of-00004.safetensors")) for i in (1, 2, 3, 4)]
    assert sizes == [3, 3, 1, 1]


def test_limits_in_bytes():
    assert [shard_limit(size) for size in (5, "5", "1.5 KB", "2MiB", "10GB")] == [5, 5, 1500, 2**21, 10**10]
    assert shard_limit(None) > 2**60


@pytest.mark.parametrize(
    "size", ["", "GB", "10 apples", "-1MB", 0, "0GB", "nan", True, [1], float("nan"), float("inf")]
)
def test_what_is_not_a_size(tmp_path, tensors, size):
    with pytest.raises(ValueError, match=r"max_shard_size=.*'10GB'"):
        save_tensors(tmp_path, STEM, tensors, max_shard_size=size)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("variant", ["", "../fp16", "a.b", "a/b"])
def test_what_is_not_a_variant(tmp_path, tensors, variant):
    with pytest.raises(ValueError, match="variant="):
        load_tensors(tmp_path, STEM, variant)
    with pytest.raises(ValueError, match="variant="):
        save_tensors(tmp_path, STEM, tensors, variant=variant)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_later_save_removes_the_files_of_the_earlier_one(tmp_path, tensors, variant):
    kept = {f"{STEM}.bf16.safetensors", "config.json", f"{STEM}.bf16-00001-of-00002.safetensors", "model.safetensors"}
    for name in kept:
        (tmp_path / name).write_bytes(b"another variant's, or not ours")
    save_tensors(tmp_path, STEM, tensors, variant=variant, max_shard_size=400)
    save_tensors(tmp_path, STEM, tensors, variant=variant, max_shard_size=900)
    assert same(load_tensors(tmp_path, STEM, variant), tensors)
    assert len(os.listdir(tmp_path)) == len(kept) + 4 + 1
    save_tensors(tmp_path, STEM, tensors, variant=variant)
    assert set(os.listdir(tmp_path)) == kept | {f"{STEM}{'.fp16' if variant else ''}.safetensors"}
    assert same(load_tensors(tmp_path, STEM, variant), tensors)


def write_shards(folder, tensors, index, names):
    """Shards and an index under the given names; each tensor goes into the next shard."""
    weight_map = {name: names[i % len(names)] for i, name in enumerate(tensors)}
    for file in names:
        write_tensors(folder / file, {name: tensors[name] for name in tensors if weight_map[name] == file})
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def test_older_spelling_of_a_sharded_variant(tmp_path, tensors):
    names = [f"{STEM}-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]
    write_shards(tmp_path, tensors, f"{STEM}.safetensors.fp16.index.json", names)
    assert same(load_tensors(tmp_path, STEM, "fp16"), tensors)
    save_tensors(tmp_path, STEM, tensors, variant="fp16")
    assert os.listdir(tmp_path) == [f"{STEM}.fp16.safetensors"]


@pytest.mark.parametrize("size", ["10GB", "1KB"])
def test_a_component_without_the_variant_is_read_from_its_plain_file(tmp_path, tensors, size):
    save_tensors(tmp_path, STEM, tensors, max_shard_size=size)
    with pytest.warns(UserWarning, match=rf"no 'fp16' weights: {STEM}\.safetensors.* is read instead"):
        assert same(load_tensors(tmp_path, STEM, "fp16"), tensors)


def test_the_variant_is_preferred_and_read_only_when_asked_for(tmp_path, tensors):
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    save_tensors(tmp_path, STEM, tensors)
    save_tensors(tmp_path, STEM, other, variant="fp16", max_shard_size="1KB")
    assert same(load_tensors(tmp_path, STEM), tensors)
    assert same(load_tensors(tmp_path, STEM, "fp16"), other)


@pytest.mark.parametrize("size", ["10GB", "1KB"])
def test_only_a_variant_is_there(tmp_path, tensors, size):
    save_tensors(tmp_path, STEM, tensors, variant="fp16", max_shard_size=size)
    with pytest.raises(WeightsError, match=rf"Looked for {STEM}\.safetensors.*Pass variant='fp16'"):
        load_tensors(tmp_path, STEM)
    with pytest.raises(WeightsError, match=rf"Looked for {STEM}\.bf16\.safetensors.*, {STEM}\.safetensors"):
        load_tensors(tmp_path, STEM, "bf16")


def test_only_a_pickle_is_there(tmp_path):
    (tmp_path / f"{STEM}.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(WeightsError, match=rf"{STEM}\.bin is a pickle.*not opened.*latentgen convert"):
        load_tensors(tmp_path, STEM)


def test_nothing_is_there(tmp_path):
    with pytest.raises(WeightsError, match=r"has no weights.*there is nothing.*Fetch"):
        load_tensors(tmp_path, STEM)
    with pytest.raises(WeightsError, match=r"absent is not a folder: the component is missing"):
        load_tensors(tmp_path / "absent", STEM)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors", "sub/x.safetensors", "..", 3, None])
def test_an_index_that_leaves_the_folder(tmp_path, tensors, name):
    write_tensors(tmp_path / "outside.safetensors", tensors)
    folder = tmp_path / "unet"
    folder.mkdir()
    weight_map = dict.fromkeys(tensors, name)
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightsError, match="not a plain name"):
        load_tensors(folder, STEM)


def test_an_index_that_names_a_pickle(tmp_path, tensors):
    weight_map = dict.fromkeys(tensors, "pytorch_model.bin")
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightsError, match=r"only \.safetensors files are opened"):
        load_tensors(tmp_path, STEM)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}', "[]", "{"])
def test_an_index_without_a_table(tmp_path, content):
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match=r"index\.json"):
        load_tensors(tmp_path, STEM)


class TestIndexAndShardsDisagree:
    names = (f"{STEM}-00001-of-00002.safetensors", f"{STEM}-00002-of-00002.safetensors")

    @pytest.fixture
    def folder(self, tmp_path, tensors):
        write_shards(tmp_path, tensors, f"{STEM}.safetensors.index.json", self.names)
        assert same(load_tensors(tmp_path, STEM), tensors)
        return tmp_path

    def test_missing_shard(self, folder):
        (folder / self.names[1]).unlink()
        with pytest.raises(WeightsError, match=r"00002-of-00002\.safetensors does not exist"):
            load_tensors(folder, STEM)

    def test_missing_tensor(self, folder, tensors):
        write_tensors(folder / self.names[1], {"layer.1.weight": tensors["layer.1.weight"]})
        with pytest.raises(WeightsError, match=r"00002-of-00002.*it lacks layer\.3\.weight, layer\.5\.weight"):
            load_tensors(folder, STEM)

    def test_tensor_in_two_shards(self, folder, tensors):
        odd = {name: tensors[name] for name in list(tensors)[1::2]}
        write_tensors(folder / self.names[1], odd | {"layer.0.weight": torch.zeros(1)})
        with pytest.raises(WeightsError, match=r"it also has layer\.0\.weight"):
            load_tensors(folder, STEM)

    def test_tensor_that_the_index_does_not_name(self, folder, tensors):
        odd = {name: tensors[name] for name in list(tensors)[1::2]}
        write_tensors(folder / self.names[1], odd | {"stranger": torch.zeros(1)})
        with pytest.raises(WeightsError, match=r"it also has stranger"):
            load_tensors(folder, STEM)


def test_links_of_the_hub_cache_are_followed(tmp_path, tensors):
    """The Hub's cache keeps files under blobs/ and links to them from snapshots/."""
    snapshot, blobs = tmp_path / "snapshots" / "abc" / "unet", tmp_path / "blobs"
    save_tensors(snapshot, STEM, tensors, max_shard_size="1KB")
    blobs.mkdir()
    for i, name in enumerate(os.listdir(snapshot)):
        shutil.move(snapshot / name, blobs / str(i))
        (snapshot / name).symlink_to(f"../../../blobs/{i}")
    assert same(load_tensors(snapshot, STEM), tensors)


@pytest.fixture(scope="module")
def model():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, layers_per_block=1, sample_size=8)


class TestDiffusers:
    """Files go to diffusers and come back, and its files are read here."""

    @pytest.mark.parametrize("size", ["10GB", "4KB"])
    @pytest.mark.parametrize("variant", [None, "fp16"])
    def test_to_and_fro(self, tmp_path, model, size, variant):
        model.save_pretrained(tmp_path / "theirs", variant=variant, max_shard_size=size)
        tensors = load_tensors(tmp_path / "theirs", STEM, variant)
        assert same(tensors, model.state_dict())
        save_tensors(tmp_path / "ours", STEM, tensors, variant=variant, max_shard_size=size)
        shutil.copy(tmp_path / "theirs" / "config.json", tmp_path / "ours")
        assert sorted(os.listdir(tmp_path / "ours")) == sorted(os.listdir(tmp_path / "theirs"))
        again = type(model).from_pretrained(tmp_path / "ours", variant=variant)
        assert same_values(again.state_dict(), model.state_dict())

    @pytest.mark.filterwarnings("ignore")
    def test_diffusers_reads_the_older_spelling_too(self, tmp_path, model):
        """So the name of the older index is right."""
        names = [f"{STEM}-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]
        write_shards(tmp_path, model.state_dict(), f"{STEM}.safetensors.fp16.index.json", names)
        model.save_config(tmp_path)
        again = type(model).from_pretrained(tmp_path, variant="fp16")
        assert same_values(again.state_dict(), model.state_dict())
