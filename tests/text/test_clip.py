import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import FAMILIES, REFERENCE, make_encoder

from latentgen.text import load_clip_text_encoder, save_text_encoder
from latentgen.text.clip import _known_settings
from latentgen.weights import WeightsError

CPU = torch.device("cpu")
IDS = torch.randint(0, 600, (2, 77), generator=torch.Generator().manual_seed(1))


def load(folder, variant=None, dtype=torch.float32):
    return load_clip_text_encoder(folder, variant=variant, dtype=dtype, device=CPU)


def edit(folder, **changes):
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def rename(folder, change):
    path = folder / "model.safetensors"
    tensors = {change(name): tensor.clone() for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def bare(name):
    return name.removeprefix("text_model.")


def prefixed(name):
    return "text_model." + bare(name)


@pytest.fixture(params=["quick_gelu", "gelu"])
def encoder(request):
    return make_encoder(hidden_act=request.param)


@pytest.fixture
def folder(tmp_path):
    """A text encoder that transformers wrote."""
    make_encoder().save_pretrained(tmp_path / "text_encoder")
    return tmp_path / "text_encoder"


@pytest.mark.parametrize("spelling", [bare, prefixed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_those_of_transformers(encoder, tmp_path, spelling, dtype):
    from transformers import CLIPTextModel

    encoder.save_pretrained(tmp_path)
    rename(tmp_path, spelling)
    ours = load(tmp_path, dtype=dtype)
    others = [encoder.to(dtype)]
    if spelling is prefixed or not hasattr(encoder, "text_model"):  # before 5.6, it leaves such a model random
        others.append(CLIPTextModel.from_pretrained(tmp_path, dtype=dtype, attn_implementation="sdpa").eval())
    with torch.no_grad():
        a = ours(input_ids=IDS)
        for b in (other(input_ids=IDS) for other in others):
            assert a.last_hidden_state.dtype == dtype
            assert torch.equal(a.last_hidden_state, b.last_hidden_state)
            assert torch.equal(a.pooler_output, b.pooler_output)
    assert ours.config._attn_implementation == "sdpa"
    assert not ours.training
    assert not any(p.requires_grad for p in ours.parameters())


def test_position_numbers_of_old_files_are_left_out(folder):
    path = folder / "model.safetensors"
    expected = load(folder)(input_ids=IDS).last_hidden_state
    for dtype in (torch.int64, torch.float16):
        position_ids = {"text_model.embeddings.position_ids": torch.arange(77).unsqueeze(0).to(dtype)}
        tensors = {prefixed(name): tensor.clone() for name, tensor in load_file(path).items()}
        save_file(tensors | position_ids, path)
        assert torch.equal(load(folder)(input_ids=IDS).last_hidden_state, expected)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", ["10GB", "50KB"])
def test_saved_files_read_back(encoder, tmp_path, variant, size):
    from transformers import CLIPTextModel

    save_text_encoder(encoder, tmp_path, variant=variant, max_shard_size=size)
    ours = load(tmp_path, variant)
    other = CLIPTextModel.from_pretrained(tmp_path, variant=variant).eval()
    assert other.dtype == torch.float32
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)
        assert torch.equal(other.state_dict()[name], tensor)
    with torch.no_grad():
        expected = encoder(input_ids=IDS).last_hidden_state
        assert torch.equal(ours(input_ids=IDS).last_hidden_state, expected)
        assert torch.equal(other(input_ids=IDS).last_hidden_state, expected)


def test_saved_names_are_those_of_published_folders(encoder, tmp_path):
    save_text_encoder(encoder.half(), tmp_path, variant="fp16")
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.fp16.safetensors"]
    names = load_file(tmp_path / "model.fp16.safetensors").keys()
    assert "text_model.embeddings.token_embedding.weight" in names
    assert "text_model.encoder.layers.2.mlp.fc2.bias" in names
    assert all(name.startswith("text_model.") for name in names)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["CLIPTextModel"]
    assert config["torch_dtype"] == "float16"
    if (REFERENCE / FAMILIES[0]).is_dir():
        published = json.loads((REFERENCE / FAMILIES[0] / "text_encoder" / "config.json").read_text())
        assert published.keys() - config.keys() == {"_name_or_path", "dropout", "transformers_version"}


@pytest.mark.parametrize("family", FAMILIES)
def test_published_settings(family):
    if not (REFERENCE / family).is_dir():
        pytest.skip(f"the reference folder {family} is not on this machine")
    path = REFERENCE / family / "text_encoder" / "config.json"
    content = json.loads(path.read_text())
    config = _known_settings(content, str(path))
    for name, value in content.items():
        if name in {
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "hidden_act",
            "eos_token_id",
        }:
            assert getattr(config, name) == value


def test_settings_that_could_run_or_fetch_something_have_no_effect(folder):
    expected = load(folder)(input_ids=IDS).last_hidden_state
    edit(
        folder,
        auto_map={"AutoModel": "evil.Evil"},
        quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True},
        _attn_implementation="kernels-community/evil",
        attn_implementation="kernels-community/evil",
        _name_or_path="owner/name",
        output_hidden_states=True,
        return_dict=False,
        torch_dtype="evil",
    )
    encoder = load(folder)
    assert encoder.config._attn_implementation == "sdpa"
    assert torch.equal(encoder(input_ids=IDS).last_hidden_state, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 10**9}, "hidden_size=1000000000 is not a whole number from 1 to 16384"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"hidden_size": "32"}, "hidden_size='32'"),
        ({"vocab_size": 600.0}, r"vocab_size=600\.0"),
        ({"num_attention_heads": True}, "num_attention_heads=True"),
        ({"num_attention_heads": 5}, "hidden_size=32 is not a multiple of num_attention_heads=5"),
        ({"hidden_act": "evil"}, "hidden_act='evil' is unknown"),
        (
            {"hidden_act": "xielu"},
            "hidden_act='xielu' is unknown",
        ),  # transformers' own, which imports a library of that name
        ({"hidden_act": 3}, "hidden_act=3 is not a str"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps='x' is not a float"),
        ({"layer_norm_eps": 10**400}, "layer_norm_eps=10+ is not a finite number"),
        ({"attention_dropout": float("nan")}, "attention_dropout=nan is not a finite number"),
        ({"architectures": ["CLIPTextModelWithProjection"]}, "only CLIPTextModel"),
        ({"architectures": ["Evil"]}, "only CLIPTextModel"),
        ({"model_type": "clip"}, "of type 'clip'"),
    ],
)
def test_bad_settings(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(WeightsError, match=rf"config\.json.*{message}"):
        load(folder)


def test_settings_left_out_take_the_formats_defaults(folder):
    edit(folder, hidden_act=None, layer_norm_eps=None, architectures=None, model_type=None, bos_token_id=None)
    config = load(folder).config
    assert (config.hidden_act, config.layer_norm_eps) == ("quick_gelu", 1e-5)


def test_weights_that_do_not_fit(folder):
    edit(folder, num_hidden_layers=4)
    with pytest.raises(WeightsError, match=r"encoder\.layers\.3\.\S+ \(.*\) is missing in the file"):
        load(folder)
    edit(folder, num_hidden_layers=3, vocab_size=601)
    with pytest.raises(
        WeightsError, match=r"token_embedding\.weight is \(600, 32\) in the file and \(601, 32\) in the model"
    ):
        load(folder)


def test_a_projection_is_unexpected(folder):
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"text_projection.weight": torch.zeros(32, 32)}, path)
    with pytest.raises(WeightsError, match=r"text_projection\.weight \(32, 32\) is in the file and not in the model"):
        load(folder)


def test_both_spellings_at_once(folder):
    path = folder / "model.safetensors"
    tensors = {bare(name): tensor for name, tensor in load_file(path).items()}
    save_file(tensors | {"text_model.final_layer_norm.bias": torch.zeros(32)}, path)
    with pytest.raises(WeightsError, match=r"final_layer_norm\.bias with and without the prefix"):
        load(folder)


def test_missing_files(folder):
    with pytest.raises(WeightsError, match=r"config\.json does not exist"):
        load(folder / "absent")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is a pickle"):
        load(folder)


def test_only_a_clip_text_model_is_saved(tmp_path):
    with pytest.raises(TypeError, match="only a CLIPTextModel"):
        save_text_encoder(torch.nn.Linear(1, 1), tmp_path)
    assert os.listdir(tmp_path) == []


def test_heavy_libraries_are_imported_on_use_only():
    code = (
        "import sys, latentgen, latentgen.text, latentgen.weights.hub, latentgen.weights.sharding, latentgen.runtime\n"
        "heavy = {'transformers', 'accelerate', 'huggingface_hub', 'tokenizers', 'diffusers'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
