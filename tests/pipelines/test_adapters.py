"""LoRAs on pipelines: what calls draw with them, beside them, and after them."""

import contextlib
import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
import tiny_lora as tiny
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_sd import make_model_folder, make_upscaler_folder

from latentgen import DDIMScheduler, UNet2DModel, VQModel
from latentgen.models.unet import UNet2DConditionModel
from latentgen.pipelines.adapted import KEPT, with_deltas
from latentgen.pipelines.img2img import Img2ImgPipeline
from latentgen.pipelines.inpaint import InpaintPipeline
from latentgen.pipelines.superres import SuperResPipeline
from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.weights.errors import WeightsError

CALL = {"prompt": "a cat", "num_inference_steps": 2, "seed": 5, "output_type": "pt"}
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
MASK = Image.fromarray(np.pad(np.full((12, 12), 255, np.uint8), 10))


def files(folder, unet, text_encoder):
    made = {"both": tiny.peft(tiny.factors(unet, tiny.LINEAR + tiny.CONV), tiny.factors(text_encoder, tiny.TEXT)),
            "unet": tiny.peft(tiny.factors(unet, tiny.ATTENTION, seed=500)),
            "text": tiny.kohya(text=tiny.factors(text_encoder, tiny.TEXT, seed=900), alpha=1)}  # fmt: skip
    return {name: tiny.write(folder / f"{name}.safetensors", tensors) for name, tensors in made.items()}


@pytest.fixture(scope="module")
def loras(_shared_pipe, tmp_path_factory):
    return files(tmp_path_factory.mktemp("loras"), _shared_pipe.unet, _shared_pipe.text_encoder)


def draw(pipe, **options):
    return pipe(**{**CALL, **options}).images


def weights(pipe):
    networks = (pipe.unet, pipe.text_encoder)
    return [tensor.clone() for network in networks for tensor in network.state_dict().values()]


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def merged(pipe, used, dtype=torch.float32):
    """A pipeline whose weights have LoRAs in them, by hand: W + scale * up down."""
    networks = {"unet": copy.deepcopy(pipe.unet), "text_encoder": copy.deepcopy(pipe.text_encoder)}
    for path, scale in used:
        tensors = load_file(path)
        for name, down in tensors.items():
            if name.endswith(".lora_A.weight"):
                network, _, layer = name.removesuffix(".lora_A.weight").partition(".")
                modules = dict(networks[network].named_modules())
                weight = (modules.get(layer) or modules[layer.removeprefix("text_model.")]).weight
                up = tensors[name.replace("lora_A", "lora_B")]
                weight.data += scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    return type(pipe).from_pipe(pipe, **networks)


def test_a_picture_is_that_of_merged_weights(pipe, loras):
    plain = draw(pipe)
    assert pipe.load_lora(loras["both"], 0.5) == "both"
    assert pipe.load_lora(loras["unet"], -0.3) == "unet"
    drawn = draw(pipe)
    assert (drawn - plain).abs().max() > 0.01
    pipe.unload_lora()
    expected = draw(merged(pipe, [(loras["both"], 0.5), (loras["unet"], -0.3)]))
    assert (drawn - expected).abs().max() < 1e-5


def test_unloading_leaves_nothing_behind(pipe, loras):
    before, plain = weights(pipe), draw(pipe)
    for name, path in loras.items():
        pipe.load_lora(path, 3.0)
        assert not torch.equal(draw(pipe), plain)
        assert same(weights(pipe), before)  # not even while it is loaded
        pipe.unload_lora(name)
        assert torch.equal(draw(pipe), plain)
    for path in loras.values():
        pipe.load_lora(path)
    pipe.unload_lora("unet")
    assert [*pipe.lora_scales] == ["both", "text"]
    pipe.unload_lora()
    assert pipe.lora_scales == {}
    assert torch.equal(draw(pipe), plain)
    assert same(weights(pipe), before)


def test_scales(pipe, loras):
    plain = draw(pipe)
    pipe.load_lora(loras["both"], 0.5)
    pipe.load_lora(loras["unet"], 0.25)
    half = draw(pipe)
    pipe.lora_scales = {"both": 1, "unet": 0.5}
    assert pipe.lora_scales == {"both": 1.0, "unet": 0.5}
    whole = draw(pipe)
    assert not torch.equal(half, whole)
    assert torch.equal(draw(pipe, lora_scale=0.5), half)
    assert torch.equal(draw(pipe, lora_scale={"both": 0.5, "unet": 0.25}), half)
    assert torch.equal(draw(pipe, lora_scale=0), plain)
    assert torch.equal(draw(pipe, lora_scale={"both": 0, "unet": 0}), plain)
    assert pipe.lora_scales == {"both": 1.0, "unet": 0.5}
    assert torch.equal(draw(pipe), whole)
    pipe.set_lora_scale("both", 0.0)
    unet_alone = draw(pipe)
    pipe.unload_lora("both")
    assert torch.equal(draw(pipe), unet_alone)


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda p: p(**CALL, lora_scale={"three": 1}), "no LoRA is called 'three'; there are 'both'"),
        (lambda p: p(**CALL, lora_scale="1"), "lora_scale='1'"),
        (lambda p: p(**CALL, lora_scale=float("nan")), "lora_scale=nan"),
        (lambda p: p(**CALL, lora_scale={"both": 1e6}), "the scale of 'both'=1000000.0 must be"),
        (lambda p: p.set_lora_scale("three", 1), "no LoRA is called 'three'"),
        (lambda p: setattr(p, "lora_scales", 0.5), "table of names and scales"),
        (lambda p: setattr(p, "lora_scales", {"three": 1}), "no LoRA is called 'three'"),
        (lambda p: p.unload_lora("three"), "no LoRA is called 'three'"),
        (lambda p: p.load_lora("x.safetensors", name="both"), "loaded already"),
        (lambda p: p.load_lora("both.safetensors"), "loaded already"),
        (lambda p: p.load_lora("x.safetensors", "much"), "scale='much'"),
        (lambda p: p.load_lora("x.safetensors", name=""), "name='' must be a text"),
        (lambda p: p.load_lora("x.safetensors"), "x.safetensors does not exist"),
    ],
)
def test_arguments_that_break_their_rule(pipe, loras, use, reason):
    pipe.load_lora(loras["both"], 0.5)
    with pytest.raises(ValueError, match=reason):
        use(pipe)
    assert pipe.lora_scales == {"both": 0.5}


def test_scales_cannot_be_written_where_it_would_change_nothing(pipe, loras):
    pipe.load_lora(loras["both"])
    with pytest.raises(TypeError):
        pipe.lora_scales["both"] = 0.5


def test_a_scale_without_effect_is_warned_of(pipe):
    with pytest.warns(UserWarning, match="no LoRA is loaded"):
        draw(pipe, lora_scale=0.5)


def test_loading_is_all_or_nothing(pipe, loras, tmp_path):
    """A name, a shape or a number that is wrong, in the file's last tensor."""
    pipe.load_lora(loras["unet"], 0.5)
    before, drawn = weights(pipe), draw(pipe)
    good = tiny.peft(tiny.factors(pipe.unet, tiny.ATTENTION), tiny.factors(pipe.text_encoder, tiny.TEXT))
    last = sorted(good)[0]
    for number, bad in enumerate(
        [
            good | {"text_encoder.text_model.encoder.layers.9.mlp.fc1.lora_A.weight": torch.ones(4, 32)},
            good | {"unet.conv_in.lora_A.weight": torch.ones(4, 4, 3, 3)},
            good | {last: good[last][:, 1:]},
            good | {last: good[last] * torch.nan},
            good | {last: good[last].int()},
            {name: tensor for name, tensor in good.items() if name != last},
        ]
    ):
        path = tiny.write(tmp_path / f"bad-{number}.safetensors", bad)
        with pytest.raises(WeightsError, match=f"bad-{number}"):
            pipe.load_lora(path)
    assert pipe.lora_scales == {"unet": 0.5}
    assert same(weights(pipe), before)
    assert torch.equal(draw(pipe), drawn)


def test_threads_with_different_scales_draw_what_they_draw_alone(pipe, loras):
    for path in loras.values():
        pipe.load_lora(path)
    calls = [
        {"lora_scale": scale, "seed": k} for k, scale in enumerate([0.2, 0.4, {"unet": 0, "both": 0.3}, 0, 1.0, -0.5])
    ]
    assert len(calls) > 2 * KEPT  # more than are kept
    serial = [draw(pipe, **call) for call in calls]
    assert len({tensor.sum().item() for tensor in serial}) == len(calls)
    start = Barrier(len(calls))

    def run(call):
        start.wait()
        return [draw(pipe, **call) for _ in range(3)]

    with ThreadPoolExecutor(len(calls)) as pool:
        for alone, together in zip(serial, pool.map(run, calls), strict=True):
            assert all(torch.equal(alone, one) for one in together)


def test_a_call_keeps_what_was_loaded_when_it_began(pipe, loras):
    pipe.load_lora(loras["both"])
    expected = draw(pipe)

    def unload(pipe, step, timestep, values):
        pipe.unload_lora()

    assert torch.equal(draw(pipe, callback_on_step_end=unload), expected)
    assert pipe.lora_scales == {}


def test_the_next_call_uses_the_same_network_again(pipe, loras):
    pipe.load_lora(loras["both"])
    first, second, other = pipe.adapted()(), pipe.adapted()(), pipe.adapted(0.5)()
    assert first.unet is second.unet is not other.unet
    pipe.set_lora_scale("both", 0.5)
    assert pipe.adapted()().unet is other.unet
    pipe.set_lora_scale("both", 1)
    assert pipe.adapted()().unet is first.unet
    assert first.text_encoder is second.text_encoder
    ours = {id(p) for p in pipe.unet.parameters()}
    own = [name for name, p in first.unet.named_parameters() if id(p) not in ours]
    assert sorted(own) == sorted(f"{layer}.weight" for layer in tiny.LINEAR + tiny.CONV)  # all else is shared
    assert all(one is two for one, two in zip(first.unet.buffers(), pipe.unet.buffers(), strict=True))


def test_without_adapters_the_networks_themselves_draw(pipe, loras):
    pipe.load_lora(loras["text"])
    assert pipe.adapted()().unet is pipe.unet
    assert pipe.adapted()().text_encoder is not pipe.text_encoder
    pipe.set_lora_scale("text", 0)
    assert pipe.adapted()().text_encoder is pipe.text_encoder


def test_weights_that_change_are_seen(folder_copy, loras):
    """A network that is cast, filled anew or written into after a call: the next call's are made of what it holds then."""
    pipe = Text2ImagePipeline.from_pretrained(folder_copy, device="cpu", dtype="float32")
    pipe.show_progress = False
    pipe.load_lora(loras["both"])
    first = draw(pipe)
    pipe.to(dtype="bfloat16")
    assert next(pipe.adapted()().unet.parameters()).dtype == torch.bfloat16
    assert (draw(pipe).float() - first).abs().max() < 0.2
    pipe.to(dtype="float32").to(dtype="bfloat16").to(dtype="float32")  # memory may lie where it lay before
    assert not torch.equal(draw(pipe), first)
    written = {name: tensor * 1.01 for name, tensor in pipe.unet.state_dict().items()}
    for assign in (False, True):
        draw(pipe)
        pipe.unet.load_state_dict(written, assign=assign)
        got = draw(pipe)
        plain = Text2ImagePipeline(**pipe.components)
        plain.show_progress = False
        assert (got - draw(merged(plain, [(loras["both"], 1.0)]))).abs().max() < 1e-5
        written = {name: tensor * 1.02 for name, tensor in written.items()}


def test_another_unet_is_checked(pipe, loras):
    pipe.load_lora(loras["unet"])
    with torch.random.fork_rng():
        narrow = UNet2DConditionModel(replace(pipe.unet.config, cross_attention_dim=24)).eval()
        torch.manual_seed(1)
        other = UNet2DConditionModel(pipe.unet.config).requires_grad_(False).eval()
    old = pipe.unet
    with pytest.raises(
        ValueError, match=r"the LoRA 'unet', which is loaded, does not fit: unet\..*unload_lora\('unet'\)"
    ):
        pipe.unet = narrow
    with pytest.raises(ValueError, match="text_encoder is a"):
        pipe.text_encoder = None
    assert pipe.unet is old
    draw(pipe)
    pipe.unet = other
    got = draw(pipe)
    pipe.unload_lora()
    assert (got - draw(merged(pipe, [(loras["unet"], 1.0)]))).abs().max() < 1e-5


def test_a_text_encoder_with_the_names_of_older_transformers(pipe, loras):
    """Its layers are one level down there, in `text_model`; here it is put there."""
    inner = torch.nn.Module()
    inner.text_model = pipe.text_encoder
    pipe.load_lora(loras["text"])
    changed = with_deltas(inner, [("text", pipe._loras["text"].lora.text_encoder, 1.0)], "text_encoder")
    assert same([*changed.text_model.parameters()], [*pipe.adapted()().text_encoder.parameters()])
    assert not same([*changed.text_model.parameters()], [*pipe.text_encoder.parameters()])


def test_in_inference_mode_and_out_of_it(pipe, loras):
    pipe.load_lora(loras["both"])
    with torch.inference_mode():
        first = draw(pipe)
    assert torch.equal(draw(pipe), first)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        changed = pipe.adapted(0.9)().unet.conv_in.weight
    pipe.unload_lora()
    pipe.load_lora(loras["both"])
    assert torch.equal(pipe.adapted(0.9)().unet.conv_in.weight, changed)  # not summed in bfloat16


def test_from_pipe_takes_them_along(pipe, loras):
    pipe.load_lora(loras["both"], 0.5)
    img2img = Img2ImgPipeline.from_pipe(pipe)
    assert img2img.lora_scales == {"both": 0.5}
    pipe.unload_lora()
    assert img2img.lora_scales == {"both": 0.5}  # each has its own from then on
    assert Text2ImagePipeline(**img2img.components).lora_scales == {}
    narrow = UNet2DConditionModel(replace(pipe.unet.config, block_out_channels=(32, 32, 32))).eval()
    with pytest.raises(ValueError, match="the LoRA 'both'"):
        Img2ImgPipeline.from_pipe(img2img, unet=narrow)


def test_saving_writes_the_networks_own_weights_and_says_so(pipe, loras, tmp_path):
    pipe.save_pretrained(tmp_path / "before")
    pipe.load_lora(loras["both"])
    with (
        pytest.warns(UserWarning, match="'both' are not written"),
        contextlib.suppress(ValueError),
    ):  # too narrow for one
        pipe.save_single_file(tmp_path / "one.safetensors", family="sd-v1")
    with pytest.warns(UserWarning, match="'both' are not written"):
        pipe.save_pretrained(tmp_path / "after")
    for path in (tmp_path / "before").rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "after" / path.relative_to(tmp_path / "before")).read_bytes()


def test_pipelines_with_adapters_can_be_copied(pipe, loras):
    pipe.load_lora(loras["both"])
    expected = draw(pipe)
    for other in (copy.copy(pipe), copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert torch.equal(draw(other), expected)
        other.unload_lora()
        assert pipe.lora_scales == {"both": 1.0}


def test_a_weight_that_overflows_is_named(pipe, loras, folder_copy):
    half = Text2ImagePipeline.from_pretrained(folder_copy, device="cpu", dtype="bfloat16")
    assert half.load_lora(loras["both"], 1000) == "both"
    half.adapted()()  # bfloat16 holds it
    half.unet.half()
    half.set_lora_scale("both", 1000)
    down, up = torch.full((1, 16), 100.0), torch.full((16, 1), 100.0)
    path = tiny.write(loras["both"].parent / "large.safetensors", tiny.peft({tiny.ATTENTION[0]: (down, up)}))
    half.load_lora(path, 10.0)
    with pytest.raises(
        FloatingPointError, match=r"attn1\.to_q\.weight is not finite in torch\.float16 with the LoRA .*'large'"
    ):
        half.adapted({"both": 0})()


def test_every_pipeline_of_texts_has_them(pipe, loras, tmp_path):
    pipe.load_lora(loras["both"], 0.5)
    files_of = {"image": IMAGE, "mask_image": MASK}
    for cls, given in ((Img2ImgPipeline, ["image"]), (InpaintPipeline, ["image", "mask_image"])):
        other = cls.from_pipe(pipe)
        pictures = {name: files_of[name] for name in given}
        got = draw(other, **pictures)
        plain = draw(other, lora_scale=0, **pictures)
        other.unload_lora()
        assert torch.equal(draw(other, **pictures), plain)
        assert (got - draw(merged(other, [(loras["both"], 0.5)]), **pictures)).abs().max() < 1e-5
        assert (got - plain).abs().max() > 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        upscale = SuperResPipeline.from_pretrained(make_upscaler_folder(tmp_path / "up"), device="cpu", dtype="float32")
    upscale.show_progress = False
    layers = [name for name, m in upscale.unet.named_modules() if name.endswith(("attn2.to_k", "conv1"))]
    path = tiny.write(tmp_path / "one.safetensors", tiny.peft(tiny.factors(upscale.unet, layers)))
    small = {"image": IMAGE.resize((8, 8)), "noise_level": 4, "memory": "1GB"}
    plain = draw(upscale, **small)
    upscale.load_lora(path)
    got = draw(upscale, **small)
    assert (got - plain).abs().max() > 0.01
    upscale.unload_lora()
    assert (got - draw(merged(upscale, [(path, 1.0)]), **small)).abs().max() < 1e-5


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip_skips_the_changed_encoders_layers(pipe, loras, clip_skip):
    pipe.load_lora(loras["both"], 0.5)
    got = draw(pipe, clip_skip=clip_skip)
    pipe.unload_lora()
    expected = draw(merged(pipe, [(loras["both"], 0.5)]), clip_skip=clip_skip)
    assert (got - expected).abs().max() < 1e-5


def test_in_half_precision_the_sum_is_rounded_once(folder_copy, loras):
    pipe = Text2ImagePipeline.from_pretrained(folder_copy, device="cpu", dtype="bfloat16")
    for name in ("both", "unet"):
        pipe.load_lora(loras[name], 0.01)
    layer = tiny.ATTENTION[0]
    weight = pipe.unet.get_submodule(layer).weight
    exact = weight.double()
    for name in ("both", "unet"):
        tensors = load_file(loras[name])
        product = tensors[f"unet.{layer}.lora_B.weight"].double() @ tensors[f"unet.{layer}.lora_A.weight"].double()
        exact = exact + 0.01 * product
    got = pipe.adapted()().unet.get_submodule(layer).weight
    wrong = got != exact.bfloat16()
    assert wrong.float().mean() < 0.01  # float32's sum may lie on the other side of a middle
    assert not torch.equal(got, weight)


def test_models_without_texts_have_none(tmp_path, loras):
    unet = UNet2DModel.from_config(
        {"in_channels": 7, "out_channels": 3, "block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1,
         "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "sample_size": 8}
    )  # fmt: skip
    vae = VQModel.from_config({"latent_channels": 3, "block_out_channels": [8, 8, 8], "norm_num_groups": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3})  # fmt: skip
    pipe = InpaintPipeline(vae=vae.eval(), unet=unet.eval(), scheduler=DDIMScheduler())
    with pytest.raises(ValueError, match="knows no texts"):
        pipe.load_lora(loras["unet"])
    with pytest.raises(ValueError, match="lora_scale cannot be used"):
        pipe(image=IMAGE, mask_image=MASK, lora_scale=0.5)


def test_a_lora_for_another_model_is_told(loras, tmp_path):
    wide = {"cross_attention_dim": 48, "attention_head_dim": 4}
    folder = make_model_folder(tmp_path / "model", unet=wide, encoder={"hidden_size": 48})
    pipe = Text2ImagePipeline.from_pretrained(folder, device="cpu", dtype="float32")
    with pytest.raises(WeightsError, match="attends to texts of width 32, and this one attends to width 48"):
        pipe.load_lora(loras["unet"])
