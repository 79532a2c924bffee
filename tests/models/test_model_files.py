"""Networks from and to their folders: `config.json` and weights."""

import json
import re

import diffusers
import pytest
import torch
from tiny_sd import SD1, SD2_V, UNET, VAE, adopt, their_unet, their_vae

from latentgen.models.autoencoder_kl import AutoencoderConfig, AutoencoderKL
from latentgen.models.unet import UNet2DConditionModel, UNetConfig
from latentgen.weights.errors import WeightsError

F32 = {"device": "cpu", "dtype": "float32"}


@pytest.fixture
def unet_folder(tmp_path):
    their_unet(**SD1).save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("cls", "theirs"),
    [(UNet2DConditionModel, lambda: their_unet(**SD2_V)), (AutoencoderKL, lambda: their_vae(shift_factor=0.1))],
)
def test_a_round_trip_keeps_every_bit_and_diffusers_reads_it(cls, theirs, tmp_path):
    ours = adopt(cls, theirs())
    ours.save_pretrained(tmp_path / "ours")
    again = cls.from_pretrained(tmp_path / "ours", **F32)
    assert again.config == ours.config
    assert same(again.state_dict(), ours.state_dict())
    read = getattr(diffusers, cls.__name__).from_pretrained(tmp_path / "ours")
    assert same(read.state_dict(), ours.state_dict())
    assert {k: v for k, v in read.config.items() if k in theirs().config and not k.startswith("_")} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in theirs().config.items() if not k.startswith("_")
    }


def test_a_loaded_network_is_ready_to_run(unet_folder):
    unet = UNet2DConditionModel.from_pretrained(unet_folder.parent, subfolder="unet", device="cpu", dtype="bf16")
    assert unet.dtype == torch.bfloat16
    assert unet.device == torch.device("cpu")
    assert not unet.training
    assert not any(p.requires_grad for p in unet.parameters())


def test_what_a_config_leaves_out_takes_the_class_default():
    assert UNet2DConditionModel.config_class() == UNetConfig()
    with torch.device("meta"):
        vae = AutoencoderKL.from_config({"_class_name": "AutoencoderKL", "norm_num_groups": 8})
    assert vae.config == AutoencoderConfig(norm_num_groups=8)
    assert vae.config.scaling_factor == 0.18215


@pytest.mark.parametrize("cls", [UNetConfig, AutoencoderConfig])
def test_class_defaults_are_those_of_the_format(cls):
    theirs = {UNetConfig: diffusers.UNet2DConditionModel, AutoencoderConfig: diffusers.AutoencoderKL}[cls]
    with torch.device("meta"):
        config = theirs().config
    for name, value in vars(cls()).items():
        assert (tuple(config[name]) if isinstance(config[name], list) else config[name]) == value, name


def test_an_unknown_key_is_named_with_its_file(unet_folder):
    edit(unet_folder, use_magic=True, zeal=1)
    with pytest.raises(WeightsError, match=r"unet/config.json: UNetConfig does not know use_magic, zeal\. Known keys"):
        UNet2DConditionModel.from_pretrained(unet_folder, **F32)


@pytest.mark.parametrize(
    ("key", "value"),
    [("act_fn", "gelu"), ("dual_cross_attention", True), ("addition_embed_type", "text_time"), ("conv_in_kernel", 5),
     ("resnet_time_scale_shift", "scale_shift"), ("time_embedding_type", "fourier"), ("dropout", 0.1)],
)  # fmt: skip
def test_a_known_key_that_asks_for_more_is_named(unet_folder, key, value):
    edit(unet_folder, **{key: value})
    with pytest.raises(WeightsError, match=rf"UNetConfig: {key}={value!r} is not supported; only .* is"):
        UNet2DConditionModel.from_pretrained(unet_folder, **F32)


@pytest.mark.parametrize(
    ("key", "value"),
    [("block_out_channels", 16), ("block_out_channels", []), ("layers_per_block", "2"), ("norm_num_groups", 0),
     ("cross_attention_dim", None), ("in_channels", -4), ("sample_size", 1.5), ("transformer_layers_per_block", [1, 1, 2]),
     ("use_linear_projection", "yes"), ("norm_eps", "small"), ("norm_eps", float("inf")), ("down_block_types", "DownBlock2D"),
     ("only_cross_attention", 1), ("layers_per_block", True), ("in_channels", 10**9), ("sample_size", [8]),
     ("sample_size", [8, 8, 8]), ("sample_size", [8, 0]), ("norm_eps", -1e-5), ("norm_eps", 0),
     pytest.param("norm_eps", 10**400, id="norm_eps-huge")],
)  # fmt: skip
def test_a_value_of_a_wrong_kind_is_named(unet_folder, key, value):
    edit(unet_folder, **{key: value})
    edited = tuple(value) if isinstance(value, list) else value
    with pytest.raises(WeightsError, match=rf"config.json: {key}={re.escape(repr(edited))} does not fit; it must be "):
        UNet2DConditionModel.from_pretrained(unet_folder, **F32)


def test_null_is_false_and_equal_counts_are_one(unet_folder):
    plain = UNet2DConditionModel.from_pretrained(unet_folder, **F32).config
    edit(unet_folder, upcast_attention=None, only_cross_attention=None, transformer_layers_per_block=[1, 1, 1])
    assert UNet2DConditionModel.from_pretrained(unet_folder, **F32).config == plain
    for counts in ([2, 2], [2, 2, 1]):  # three levels
        edit(unet_folder, layers_per_block=counts)
        with pytest.raises(WeightsError, match=r"layers_per_block=.* does not fit"):
            UNet2DConditionModel.from_pretrained(unet_folder, **F32)


def test_a_size_is_one_number_or_two(unet_folder):
    for size in (8, [8, 6], None):
        edit(unet_folder, sample_size=size)
        unet = UNet2DConditionModel.from_pretrained(unet_folder, **F32)
        assert unet.config.sample_size == (tuple(size) if isinstance(size, list) else size)


def test_a_network_of_more_layers_than_anyone_has_is_refused_at_once():
    """Each number is one that a network may have; together they are 32,000 layers, which take a minute to build."""
    many = {"layers_per_block": 64, "transformer_layers_per_block": 64}
    with pytest.raises(
        ValueError, match=r"layers_per_block=64, transformer_layers_per_block=64 .* 3 levels .* at most 1024"
    ):
        UNetConfig(**{**UNET, **SD1, **many})
    with pytest.raises(ValueError, match=r"layers_per_block=64 .* 16 levels .* at most 1024"):
        AutoencoderConfig(
            block_out_channels=(32,) * 16, down_block_types=("DownEncoderBlock2D",) * 16,
            up_block_types=("UpDecoderBlock2D",) * 16, layers_per_block=64,
        )  # fmt: skip
    for name in many:
        UNetConfig(**{**UNET, **SD1, name: 40})


def test_a_folder_of_another_class_is_refused(unet_folder):
    with pytest.raises(WeightsError, match=r"unet/config.json describes a UNet2DConditionModel, not a AutoencoderKL"):
        AutoencoderKL.from_pretrained(unet_folder, **F32)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", ["10GB", "50KB"])
def test_shards_and_variants_are_read_back(variant, size, tmp_path):
    ours = adopt(UNet2DConditionModel, their_unet(**SD1))
    ours.save_pretrained(tmp_path, variant=variant, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (size == "50KB")
    assert all(variant is None or f".{variant}" in path.name for path in tmp_path.glob("*.safetensors"))
    again = UNet2DConditionModel.from_pretrained(tmp_path, variant=variant, **F32)
    assert same(again.state_dict(), ours.state_dict())
    assert same(
        diffusers.UNet2DConditionModel.from_pretrained(tmp_path, variant=variant).state_dict(), ours.state_dict()
    )


def test_shards_that_diffusers_wrote_are_read(tmp_path):
    theirs = their_unet(**SD1)
    theirs.save_pretrained(tmp_path, max_shard_size="50KB", variant="fp16")
    ours = UNet2DConditionModel.from_pretrained(tmp_path, variant="fp16", **F32)
    assert same(ours.state_dict(), theirs.state_dict())


def test_the_autoencoders_attention_in_its_old_spelling_is_read(tmp_path):
    from safetensors.torch import load_file, save_file

    theirs = their_vae()
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(file).items():
        if ".attentions.0." in name:
            for new, spelling in old.items():
                name = name.replace(f".attentions.0.{new}.", f".attentions.0.{spelling}.")
        tensors[name] = tensor
    assert sum(".query." in name for name in tensors) == 4  # weight and bias, encoder and decoder
    save_file(tensors, file)
    assert same(AutoencoderKL.from_pretrained(tmp_path, **F32).state_dict(), theirs.state_dict())


def test_tiny_settings_are_our_own_fields():
    """The settings in tiny_sd are given to diffusers and to us; a slip there would test a default."""
    UNetConfig(**{**UNET, **SD2_V})
    AutoencoderConfig(**VAE)
