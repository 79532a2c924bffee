"""Model folders: what is loaded, what is written, and what is refused."""

import dataclasses
import json
import os
import pickle
import warnings
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import make_encoder
from tiny_sd import SD1, adopt, their_unet, their_vae

from latentgen.models.autoencoder_kl import AutoencoderConfig, AutoencoderKL
from latentgen.models.unet import UNet2DConditionModel
from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.schedulers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from latentgen.text import save_text_encoder
from latentgen.weights.errors import WeightsError

F32 = {"device": "cpu", "dtype": "float32"}
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
CALL = {"num_inference_steps": 2, "seed": 1, "output_type": "pt", "show_progress": False}


def load(folder, **options):
    return Text2ImagePipeline.from_pretrained(folder, **{**F32, **options})


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder, *words, error=WeightsError, **options):
    with pytest.raises(error) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert all(word in message for word in words), message


def tensors_of(pipe):
    parts = {"unet": pipe.unet, "vae": pipe.vae, "text_encoder": pipe.text_encoder}
    return {f"{name}.{key}": t for name, part in parts.items() for key, t in part.state_dict().items()}


def assert_same(pipe, other):
    first, second = tensors_of(pipe), tensors_of(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(pipe("a cat", **CALL).images, other("a cat", **CALL).images)


# What is loaded.


def test_the_four_lines_of_the_readme(model_folder, tmp_path):
    pipe = Text2ImagePipeline.from_pretrained(str(model_folder))
    pipe("a cat", guidance_scale=7.5, num_inference_steps=1, show_progress=False).images[0].save(tmp_path / "cat.png")


def test_a_folder_is_read_and_nothing_else_is(model_folder):
    pipe = load(model_folder)
    assert isinstance(pipe.scheduler, PNDMScheduler)
    assert pipe.components.keys() == {"vae", "text_encoder", "tokenizer", "unet", "scheduler"}
    assert pipe.device == torch.device("cpu")
    assert pipe.dtype == torch.float32
    assert not any(p.requires_grad for p in [*pipe.unet.parameters(), *pipe.vae.parameters()])


@pytest.mark.parametrize("dtype", ["bfloat16", "bf16", torch.bfloat16])
def test_dtypes_have_names(model_folder, dtype):
    for name in ("dtype", "torch_dtype"):
        pipe = Text2ImagePipeline.from_pretrained(model_folder, device="cpu", **{name: dtype})
        assert {pipe.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.bfloat16}


def test_dtype_is_given_once(model_folder):
    refused(model_folder, "dtype and torch_dtype were both given", error=ValueError, torch_dtype="bfloat16")


def test_a_wrong_dtype_or_device_is_named(model_folder):
    refused(model_folder, "dtype='int8'", error=ValueError, dtype="int8")
    refused(model_folder, "device='gpu'", error=ValueError, device="gpu")


def test_bfloat16_draws_the_picture_and_keeps_latents_in_float32(model_folder):
    pipe = load(model_folder, dtype="bfloat16")
    half, full = pipe("a cat", **CALL), load(model_folder)("a cat", **CALL)
    assert half.images.dtype == torch.float32
    assert torch.allclose(half.images, full.images, atol=0.1)
    seen = []
    pipe("a cat", callback_on_step_end=lambda p, i, t, values: seen.append(values["latents"].dtype), **CALL)
    assert seen == [torch.float32] * 2
    assert pipe.dtype == torch.bfloat16


def test_to_moves_and_casts(model_folder):
    pipe = load(model_folder)
    assert pipe.to("cpu") is pipe
    assert pipe.to() is pipe
    assert pipe.dtype == torch.float32
    for arguments, options, dtype in [
        ((), {"dtype": "bfloat16"}, torch.bfloat16),
        ((torch.float32,), {}, torch.float32),
        (("cpu", torch.bfloat16), {}, torch.bfloat16),
    ]:
        assert pipe.to(*arguments, **options) is pipe
        assert {pipe.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {dtype}
    with pytest.raises(ValueError, match="device='float16' is not a device"):
        pipe.to("float16")


def test_components_that_are_given_replace_the_folders(model_folder, folder_copy):
    for name in ("unet", "vae"):
        (folder_copy / name / "diffusion_pytorch_model.safetensors").unlink()  # not even looked at
    other = load(model_folder)
    scheduler = EulerDiscreteScheduler.from_config(other.scheduler.config)
    given = {**other.components, "unet": adopt(UNet2DConditionModel, their_unet(**SD1)), "scheduler": scheduler}
    pipe = load(folder_copy, **given)
    assert all(getattr(pipe, name) is component for name, component in given.items())


def test_networks_that_are_given_are_moved_and_keep_their_dtype(model_folder):
    half = load(model_folder, dtype="bfloat16")
    moved = []
    half.vae.to = lambda device: moved.append(device)
    pipe = load(model_folder, vae=half.vae, unet=half.unet)
    assert moved == [torch.device("cpu")]
    assert (pipe.vae.dtype, pipe.unet.dtype, pipe.text_encoder.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert pipe.dtype == torch.bfloat16
    assert torch.isfinite(pipe("a cat", **CALL).images).all()


def test_a_network_without_numbers_is_not_taken(model_folder):
    with torch.device("meta"):
        hollow = AutoencoderKL(load(model_folder).vae.config)
    refused(model_folder, "vae is on the meta device and holds no numbers", error=ValueError, vae=hollow)


def test_float16_on_a_cpu_is_warned_about_however_it_comes_about(model_folder):
    def warned(action):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            result = action()
        assert [warning.filename for warning in caught] == [__file__]
        assert "float16 on a CPU" in str(caught[0].message)
        return result

    pipe = warned(lambda: load(model_folder, dtype="float16"))
    warned(lambda: pipe.to("cpu"))
    warned(lambda: load(model_folder, unet=pipe.unet))
    warned(lambda: AutoencoderKL.from_pretrained(model_folder, subfolder="vae", device="cpu", dtype="float16"))


def test_a_safety_checker_may_be_said_to_be_absent(model_folder):
    absent = {"safety_checker": None, "feature_extractor": None}
    assert_same(load(model_folder), load(model_folder, **absent, requires_safety_checker=False))
    for name, value in [("safety_checker", object()), ("feature_extractor", 5), ("requires_safety_checker", True)]:
        refused(model_folder, f"{name}=", "cannot be used", "not checked", error=ValueError, **{name: value})


@pytest.mark.parametrize("value", [None, 3, b"model", ["owner/name"]])
def test_what_is_no_model(value):
    refused(value, repr(value), "is not a model", "Hub id", error=ValueError)


@pytest.mark.parametrize(("name", "value"), [("variant", 16), ("revision", 3)])
def test_names_are_texts(model_folder, name, value):
    refused(model_folder, f"{name}={value}", "text", error=ValueError, **{name: value})


def test_components_can_be_shared(model_folder):
    pipe = load(model_folder)
    assert Text2ImagePipeline(**pipe.components).components == pipe.components


# What is written.


@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}, {"max_shard_size": "40KB"},
                                     {"variant": "fp16", "max_shard_size": 40_000}, {"max_shard_size": None}])  # fmt: skip
def test_a_round_trip_keeps_every_bit(model_folder, tmp_path, options):
    pipe = load(model_folder)
    pipe.save_pretrained(tmp_path / "saved", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load(tmp_path / "saved", variant=options.get("variant"))
    assert_same(pipe, again)
    assert again.scheduler == pipe.scheduler
    files = [file.name for file in (tmp_path / "saved" / "unet").glob("*.safetensors")]
    assert (len(files) > 1) == (options.get("max_shard_size") is not None)
    assert all(("fp16" in file) == ("variant" in options) for file in files)


@pytest.mark.parametrize("options", [{"max_shard_size": "5XB"}, {"max_shard_size": True}, {"max_shard_size": [1]},
                                     {"max_shard_size": 0}, {"variant": "a/b"}])  # fmt: skip
def test_nothing_is_written_for_a_wrong_option(model_folder, tmp_path, options):
    pipe = load(model_folder)
    (name,) = options
    for save in (pipe.save_pretrained, pipe.vae.save_pretrained, partial(save_text_encoder, pipe.text_encoder)):
        with pytest.raises(ValueError, match=f"{name}="):
            save(tmp_path / "saved", **options)
        assert not (tmp_path / "saved").exists()


def test_half_precision_files_are_converted_where_they_run(model_folder, tmp_path):
    pipe = load(model_folder, dtype="bfloat16")
    pipe.save_pretrained(tmp_path / "half", variant="bf16")
    assert (
        load_file(tmp_path / "half" / "unet" / "diffusion_pytorch_model.bf16.safetensors").popitem()[1].dtype
        == torch.bfloat16
    )
    again = load(tmp_path / "half", variant="bf16")
    assert again.dtype == torch.float32
    assert_same(pipe.to(dtype="float32"), again)


def test_a_variant_that_only_some_components_have(folder_copy):
    load(folder_copy).unet.save_pretrained(folder_copy / "unet", variant="fp16")
    with pytest.warns(UserWarning, match="has no 'fp16' weights") as caught:
        load(folder_copy, variant="fp16")
    assert sorted(str(warning.message).split(" has no")[0] for warning in caught) == [
        str(folder_copy / name) for name in ("text_encoder", "vae")
    ]


def test_a_variant_that_no_component_has(model_folder, folder_copy):
    refused(model_folder, str(model_folder), "no weights of the variant 'fp16' in any component", "plain ones only",
            variant="fp16")  # fmt: skip
    load(folder_copy).unet.save_pretrained(folder_copy / "unet", variant="ema")
    refused(folder_copy, "no weights of the variant 'fp16'", "it has 'ema' and plain ones", variant="fp16")


def test_the_old_spelling_of_the_autoencoders_attention_is_read(model_folder, folder_copy):
    file = folder_copy / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for name in [name for name in tensors if ".attentions." in name and "norm" not in name]:
        front, layer = name.split(".attentions.0.")
        spelling, kind = layer.rsplit(".", 1)
        tensors[f"{front}.attentions.0.{old[spelling]}.{kind}"] = tensors.pop(name)
    save_file(tensors, file)
    assert_same(load(model_folder), load(folder_copy))


# What is refused.


def test_a_folder_without_an_index(folder_copy):
    (folder_copy / "model_index.json").unlink()
    refused(folder_copy, "it has no model_index.json", "scheduler", "Give the folder that holds model_index.json")
    refused(folder_copy / "unet", "it has no model_index.json")
    refused(folder_copy / "nowhere", "nowhere does not exist")


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_an_index_that_is_none(folder_copy, text):
    (folder_copy / "model_index.json").write_text(text)
    refused(folder_copy, "model_index.json")


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "os.system", None, 5, ["StableDiffusionPipeline"]])
def test_a_pipeline_that_is_not_in_the_table(folder_copy, name):
    edit(folder_copy / "model_index.json", _class_name=name)
    refused(folder_copy, "model_index.json", f"is of a {name}", "it loads", "StableDiffusionPipeline")


@pytest.mark.parametrize("part", ["unet", "scheduler", "tokenizer"])
@pytest.mark.parametrize("entry", [["os", "system"], ["diffusers", "UNet3DModel"], ["mine", "UNet2DConditionModel"]])
def test_a_class_that_is_not_in_the_table(folder_copy, part, entry):
    edit(folder_copy / "model_index.json", **{part: entry})
    known = "DDIMScheduler" if part == "scheduler" else "AutoencoderKL"
    refused(folder_copy, "model_index.json", f"names {'.'.join(entry)} as {part}", "supported are", known)


@pytest.mark.parametrize("entry", [None, [None, None], "UNet2DConditionModel", ["diffusers"], {"diffusers": 1}])
def test_a_component_that_the_index_does_not_name(folder_copy, entry):
    edit(folder_copy / "model_index.json", unet=entry)
    refused(folder_copy, "model_index.json has no unet", repr(entry), "pass unet=...")


def test_a_class_in_the_place_of_another(folder_copy):
    edit(folder_copy / "model_index.json", unet=["diffusers", "AutoencoderKL"])
    refused(folder_copy, "unet/config.json describes a UNet2DConditionModel, not a AutoencoderKL")
    edit(folder_copy / "model_index.json", unet=["diffusers", "PNDMScheduler"])
    (folder_copy / "unet" / "scheduler_config.json").write_text("{}")
    refused(
        folder_copy, "unet is a latentgen.PNDMScheduler; it must be a latentgen.UNet2DConditionModel", error=ValueError
    )


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component(folder_copy, part):
    (folder_copy / part).rename(folder_copy.parent / part)
    refused(folder_copy, f"lacks the folder {part}", "fetch the whole model")


@pytest.mark.parametrize(
    "file",
    ["unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json",
     UNET_FILE, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"],
)  # fmt: skip
def test_a_missing_file(folder_copy, file):
    (folder_copy / file).unlink()
    folder, name = file.split("/")
    refused(folder_copy, folder, name)


def test_a_pickle_is_not_opened(folder_copy):
    (folder_copy / UNET_FILE).unlink()

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(folder_copy / "opened"),)

    (folder_copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    refused(folder_copy, "diffusion_pytorch_model.bin is a pickle", "safetensors")
    assert not (folder_copy / "opened").exists()


def change(folder, function):
    tensors = load_file(folder / UNET_FILE)
    function(tensors)
    save_file(tensors, folder / UNET_FILE)


def test_a_wrong_shape(folder_copy):
    change(folder_copy, lambda t: t.update({"conv_out.bias": torch.zeros(5)}))
    refused(
        folder_copy,
        "unet does not fit its config.json",
        "conv_out.bias is (5,) in the file and (4,) in the model",
        "fetch",
    )


def test_a_missing_tensor(folder_copy):
    change(folder_copy, lambda t: t.pop("conv_out.bias"))
    refused(folder_copy, "unet does not fit its config.json", "conv_out.bias (4,) is missing in the file", "fetch")


def test_an_extra_tensor(folder_copy):
    change(folder_copy, lambda t: t.update(extra=torch.zeros(2)))
    refused(folder_copy, "unet does not fit its config.json", "extra (2,) is in the file and not in the model", "fetch")


@pytest.mark.parametrize("part", [UNET_FILE, "text_encoder/model.safetensors"])
@pytest.mark.parametrize("kept", [0, 5, 200, -8])
def test_truncated_weights(folder_copy, part, kept):
    data = (folder_copy / part).read_bytes()
    (folder_copy / part).write_bytes(data[:kept])
    refused(folder_copy, part, "fetch it again")


def shard(folder):
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", **F32)
    unet.save_pretrained(folder / "unet", max_shard_size="40KB")
    return folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"


def test_a_missing_shard(folder_copy):
    shard(folder_copy)
    (lost := sorted((folder_copy / "unet").glob("*-00002-of-*"))[0]).unlink()
    refused(folder_copy, lost.name, "does not exist")


@pytest.mark.parametrize("path", ["../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "..\\x.safetensors", ""])
def test_a_path_that_leaves_the_folder(folder_copy, path):
    index = shard(folder_copy)
    content = json.loads(index.read_text())
    content["weight_map"]["conv_in.weight"] = path
    index.write_text(json.dumps(content))
    refused(folder_copy, repr(path), "is not a plain name inside", "unet")


def test_a_component_that_is_a_link(folder_copy, tmp_path):
    (folder_copy / "unet").rename(tmp_path / "elsewhere")
    (folder_copy / "unet").symlink_to(tmp_path / "elsewhere")
    refused(
        folder_copy, f"{folder_copy / 'unet'} is a link that leads out", str(tmp_path / "elsewhere"), "Copy the folder"
    )
    (folder_copy / "unet").unlink()
    (tmp_path / "elsewhere").rename(folder_copy / "inner")
    (folder_copy / "unet").symlink_to("inner")
    load(folder_copy)  # it stays inside
    (tmp_path / "name").symlink_to(folder_copy)
    load(tmp_path / "name")  # where the folder itself is, is the user's choice


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("unet/config.json", {"magic": 1}, ["unet/config.json", "does not know magic"]),
        ("vae/config.json", {"latents_mean": [0.0]}, ["vae/config.json", "latents_mean=[0.0] is not supported"]),
        (
            "unet/config.json",
            {"attention_head_dim": [4, 4]},
            ["unet/config.json", "attention_head_dim=(4, 4)", "3 levels"],
        ),
        ("unet/config.json", {"norm_num_groups": 0}, ["unet/config.json", "norm_num_groups=0"]),
        ("scheduler/scheduler_config.json", {"beta_start": -1}, ["scheduler", "beta_start=-1"]),
        ("scheduler/scheduler_config.json", {"skip_prk_steps": False}, ["scheduler", "skip_prk_steps"]),
    ],
)
def test_settings_that_cannot_be_followed_are_named_with_their_file(folder_copy, part, changes, words):
    edit(folder_copy / part, **changes)
    refused(folder_copy, *words)


def test_an_inpainting_model_is_sent_to_its_pipeline(folder_copy):
    their_unet(**SD1, in_channels=9).save_pretrained(folder_copy / "unet")
    refused(folder_copy, "9 input channels", "InpaintPipeline", error=ValueError)


def test_a_component_that_was_assigned_and_does_not_fit_is_found_by_the_call(model_folder):
    pipe = load(model_folder)
    pipe.unet = UNet2DConditionModel(dataclasses.replace(pipe.unet.config, in_channels=9))
    with pytest.raises(ValueError, match="9 input channels: it is an inpainting model, which InpaintPipeline loads"):
        pipe("a cat")


def test_what_no_folder_can_hold_is_refused_before_anything_is_written(model_folder, tmp_path):
    class MyScheduler(DDIMScheduler):
        pass

    class MyUNet(UNet2DConditionModel):
        pass

    pipe = load(model_folder)
    pipe.scheduler = MyScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="scheduler is a MyScheduler, which no folder can hold"):
        pipe.save_pretrained(tmp_path / "saved")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.unet = MyUNet(pipe.unet.config)
    with pytest.raises(ValueError, match="unet is a MyUNet, which no folder can hold"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_what_was_given_is_looked_at_before_weights_are_read(model_folder, monkeypatch):
    monkeypatch.setattr("latentgen.pipelines.pipeline.load_components", lambda *_: pytest.fail("too late"))
    with pytest.raises(ValueError, match=r"scheduler is a builtins.str; it must be a latentgen.schedulers.Scheduler"):
        load(model_folder, scheduler="euler")
    with pytest.raises(TypeError, match="from_pretrained does not know vea; components are vae, text_encoder"):
        load(model_folder, vea=None)
    with pytest.raises(ValueError, match="pickles, which are never opened"):
        load(model_folder, use_safetensors=False)


def test_what_code_for_other_libraries_says_is_accepted(model_folder):
    load(model_folder, use_safetensors=True, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def test_a_revision_of_a_folder_is_refused(model_folder):
    with pytest.raises(ValueError, match=r"revision='main' is of a model on the Hub, and .* is a folder here"):
        load(model_folder, revision="main")


def test_device_and_dtype_in_the_wrong_order_are_refused(model_folder):
    with pytest.raises(ValueError, match="give the device first, then the dtype"):
        load(model_folder).to(torch.bfloat16, "cpu")


def test_components_that_do_not_fit_one_another(model_folder):
    pipe = load(model_folder)

    def together(**changes):
        return Text2ImagePipeline(**{**pipe.components, **changes})

    wide = adopt(AutoencoderKL, their_vae(latent_channels=8))
    with pytest.raises(ValueError, match="the UNet takes 4 channels and gives 4, and the VAE's latents have 8"):
        together(vae=wide)
    for out in (1, 8):
        with pytest.raises(
            ValueError, match=f"the UNet takes 4 channels and gives {out}, and the VAE's latents have 4"
        ):
            together(unet=UNet2DConditionModel(dataclasses.replace(pipe.unet.config, out_channels=out)))
    with pytest.raises(ValueError, match="embeddings of width 64 and the UNet attends to width 32"):
        together(text_encoder=make_encoder(hidden_size=64))
    with pytest.raises(ValueError, match="the UNet wants class labels"):
        together(unet=UNet2DConditionModel(dataclasses.replace(pipe.unet.config, num_class_embeds=5)))
    for name, wrong, given in [
        ("unet", their_unet(**SD1), "diffusers.UNet2DConditionModel"),
        ("vae", AutoencoderConfig(norm_num_groups=8), "latentgen.AutoencoderConfig"),
        ("scheduler", "euler", "builtins.str"),
        ("tokenizer", None, "builtins.NoneType"),
    ]:
        with pytest.raises(ValueError, match=f"{name} is a {given}; it must be a "):
            together(**{name: wrong})
