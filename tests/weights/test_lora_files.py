"""Adapter files against closed forms, and files that must be refused."""

import json
import re
import time

import pytest
import tiny_lora as tiny
import torch
import torch.nn.functional as F
from published import published, unet_words
from safetensors.torch import load_file

from latentgen.weights.adapters import Decomposed, Difference, LowRank, read_lora, save_lora
from latentgen.weights.adapters.names import Layers
from latentgen.weights.compvis.unet import original_layers
from latentgen.weights.errors import WeightsError

LINEAR, POINT, CONV = (20, 12), (20, 12, 1, 1), (20, 12, 3, 3)
UNET = {
    "block.attn2.to_k.weight": LINEAR, "block.attn2.to_out.0.weight": (20, 20), "block.proj_in.weight": POINT,
    "block.conv.weight": CONV, "block.conv.bias": (20,), "block.norm.weight": (20,), "block.norm.bias": (20,),
}  # fmt: skip
TEXT = {"encoder.layers.0.self_attn.q_proj.weight": (8, 8)}
K, POINTS, CONVS, NORM = ("lora_unet_block_" + name for name in ("attn2_to_k", "proj_in", "conv", "norm"))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def read(tmp_path, tensors, **metadata):
    path = tiny.write(tmp_path / "some.safetensors", tensors, **metadata)
    return read_lora(path, unet=UNET, text_encoder=TEXT)


def change(tmp_path, layer, tensors, weight=None, parameter="weight"):
    """What a file changes of a layer whose name in kohya's spelling its tensors' names are put behind."""
    lora = read(tmp_path, {f"lora_unet_{layer.replace('.', '_')}.{name}": tensor for name, tensor in tensors.items()})
    name = f"{layer}.{parameter}"
    return lora.unet[name].change(torch.zeros(UNET[name]) if weight is None else weight)


def close(one, other):
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_convolutions_change_is_two_convolutions(tmp_path):
    down, up, x = random(4, 12, 3, 3), random(20, 4, 1, 1), random(2, 12, 7, 6)
    delta = change(tmp_path, "block.conv", {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.0)})
    assert close(F.conv2d(x, delta, padding=1), F.conv2d(F.conv2d(x, down, padding=1), up) * 2 / 4)


def test_in_tuckers_form_it_is_three(tmp_path):
    down, mid, up, x = random(4, 12, 1, 1), random(4, 4, 3, 3), random(20, 4, 1, 1), random(2, 12, 7, 6)
    factors = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(1)}
    expected = F.conv2d(F.conv2d(F.conv2d(x, down), mid, padding=1), up) / 4
    assert close(F.conv2d(x, change(tmp_path, "block.conv", factors), padding=1), expected)


@pytest.mark.parametrize("layer", ["block.attn2.to_k", "block.proj_in"])
@pytest.mark.parametrize("point", [(), (1, 1)], ids=["linear", "1 x 1"])
def test_linear_layers_and_points_take_each_others_changes(tmp_path, layer, point):
    down, up = random(4, 12, *point), random(20, 4, *point)
    delta = change(tmp_path, layer, {"lora_down.weight": down, "lora_up.weight": up})
    assert delta.shape == UNET[f"{layer}.weight"]
    assert close(delta.flatten(1), up.flatten(1) @ down.flatten(1))


def test_loha_is_a_product_of_products(tmp_path):
    a, b, c, d = random(20, 3), random(3, 12 * 9), random(20, 3, seed=1), random(3, 12 * 9, seed=1)
    factors = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(1.5)}
    expected = torch.stack([(a @ b)[o] * (c @ d)[o] for o in range(20)]).reshape(CONV) * 1.5 / 3
    assert close(change(tmp_path, "block.conv", factors), expected)


def test_lokr_is_a_table_of_scaled_copies(tmp_path):
    w1, w2 = random(4, 3), random(5, 4, 3, 3)
    delta = change(
        tmp_path, "block.conv", {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(7.0)}
    )  # no rank, no alpha
    for i in range(4):
        for j in range(3):
            assert close(delta[5 * i : 5 * i + 5, 4 * j : 4 * j + 4], w1[i, j] * w2)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("layer", ["block.attn2.to_k", "block.conv"])
def test_dora_gives_each_row_its_length(tmp_path, axis, layer):
    """... or each column, as the first files of LyCORIS have it."""
    shape = UNET[f"{layer}.weight"]
    weight, length = random(*shape, seed=5), random(shape[axis]).abs() + 1
    down, up = random(4, *shape[1:]), random(shape[0], 4, *[1] * (len(shape) - 2))
    scale = length.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    factors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.0)}
    whole = weight + change(tmp_path, layer, {**factors, "dora_scale": scale}, weight)
    rows = whole.transpose(0, axis).flatten(1)
    assert close(rows.norm(dim=1), length)
    plain = (weight + change(tmp_path, layer, factors)).transpose(0, axis).flatten(1)
    assert close(F.normalize(rows), F.normalize(plain))


def test_a_row_of_zeros_stays_one_in_dora(tmp_path):
    weight, (down, up) = torch.zeros(LINEAR), (random(4, 12), torch.zeros(20, 4))
    factors = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": torch.ones(20, 1)}
    assert torch.equal(change(tmp_path, "block.attn2.to_k", factors, weight), weight)


def test_a_full_difference_is_added_to_weight_and_bias(tmp_path):
    weight, bias = random(*CONV), random(20)
    for parameter, expected in (("weight", weight), ("bias", bias)):
        got = change(tmp_path, "block.conv", {"diff": weight.half(), "diff_b": bias.half()}, parameter=parameter)
        assert torch.equal(got, expected.half().float())
    for parameter, expected in (("weight", bias), ("bias", -bias)):
        got = change(tmp_path, "block.norm", {"w_norm": bias, "b_norm": -bias}, parameter=parameter)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("layer", ["block.attn2.to_k", "block.conv"])
def test_ia3_scales_rows_or_columns(tmp_path, axis, layer):
    weight = random(*UNET[f"{layer}.weight"], seed=5)
    scales = random(weight.shape[axis])
    got = change(tmp_path, layer, {"weight": scales, "on_input": torch.tensor(axis)}, weight)
    for number, scale in enumerate(scales):
        assert close(got.select(axis, number), scale * weight.select(axis, number))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_factors_of_any_float_are_multiplied_in_float32(tmp_path, kind):
    down, up = random(4, 12).to(kind), random(20, 4).to(kind)
    delta = change(tmp_path, "block.attn2.to_k", {"lora_down.weight": down, "lora_up.weight": up})
    assert delta.dtype == torch.float32
    assert torch.equal(delta, up.float() @ down.float())


@pytest.mark.parametrize("name", ["sd-v1", "sd-v1-inpainting", "sd-v2-base", "sd-x4-upscaler", "ldm-txt2img-1p4B-eval"])
def test_no_two_layers_have_one_name_in_kohyas_spelling(name):
    cls, words = unet_words(published(name)["model"]["params"]["unet_config"]["params"])
    with torch.device("meta"):
        unet = cls.from_config(words)
    layers = [n for n, m in unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    table = Layers(layers, [])
    for layer in layers:
        for key in (f"lora_unet_{layer.replace('.', '_')}.lora_up.weight", f"unet.{layer}.lora_B.weight"):
            assert table.place(key) == ("unet", f"{layer}.weight", "up")


@pytest.mark.parametrize("name", ["sd-v1", "sd-v2-base", "sd-x4-upscaler"])
def test_the_original_codes_names_are_those_of_the_published_files(name):
    """Each layer of the UNet has both names, and no name means two layers."""
    content = published(name)
    _, words = unet_words(content["model"]["params"]["unet_config"]["params"])
    prefix = "model.diffusion_model."
    theirs = {n.removeprefix(prefix)[:-7] for n in content["tensors"] if n.startswith(prefix) and n.endswith(".weight")}
    original = original_layers(words)
    assert theirs <= original.keys()
    table = Layers([original[layer] for layer in theirs], [], original)
    for layer in theirs:
        for spelt in (layer, original[layer]):
            key = f"lora_unet_{spelt.replace('.', '_')}.lora_up.weight"
            assert table.place(key) == ("unet", f"{original[layer]}.weight", "up")


def test_names_that_would_meet_are_an_error():
    with pytest.raises(RuntimeError, match="both a_b"):
        Layers(["a.b", "a_b"], [])


# Files that are refused -------------------------------------------------------------------------------------------------


def lora(out=20, into=12, rank=4, up_rank=None):
    return {f"{K}.lora_down.weight": random(rank, into), f"{K}.lora_up.weight": random(out, up_rank or rank)}


GOOD = lora()
LOHA = {f"{K}.hada_w{n}_{x}": random(*((20, 3) if x == "a" else (3, 12))) for n in "12" for x in "ab"}


def but(tensors, **changes):
    """The file with some tensors replaced, or, where None is given, taken out."""
    changed = {f"{K}.{name.replace('__', '.')}": tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in (tensors | changed).items() if tensor is not None}


BAD = {
    "a name that fits nothing": (GOOD | {"lora_unet_block_attn9_to_k.lora_down.weight": random(4, 12)}, "attn9_to_k"),
    "a role that is unknown": (GOOD | {f"{K}.lora_sideways.weight": random(4, 12)}, "lora_sideways"),
    "half a LoRA of a norm": (GOOD | {"unet.block.norm.lora_A.weight": random(4, 12)}, r"block\.norm"),
    "a LoRA of a norm": ({f"{NORM}.lora_down.weight": random(4, 1), f"{NORM}.lora_up.weight": random(20, 4)},
                         r"makes \(20, 1\) and the parameter is \(20,\)"),
    "DoRA of a norm": ({f"{NORM}.w_norm": random(20), f"{NORM}.dora_scale": random(20)}, "no matrix"),
    "IA3 of a norm": ({f"{NORM}.weight": random(20), f"{NORM}.on_input": torch.tensor(1)}, "no matrix"),
    "IA3 that does not say of what": ({f"{K}.weight": random(20)}, "scales are no whole change"),
    "IA3 of another size": ({f"{K}.weight": random(20), f"{K}.on_input": torch.tensor(1)}, r"each of the layer's 12"),
    "IA3 of both sides": ({f"{K}.weight": random(20), f"{K}.on_input": torch.ones(2)}, "on_input is None"),
    "a difference of another shape": ({f"{K}.diff": random(12, 20)}, r"makes \(12, 20\)"),
    "a difference of a bias that is not there": ({f"{K}.diff_b": random(20)}, "no such parameter"),
    "a difference and factors": (GOOD | {f"{K}.diff": random(20, 12)}, "no whole change"),
    "OFT": ({f"{K}.oft_blocks": random(4, 4, 4)}, "of the kind OFT"),
    "GLoRA": ({f"{K}.a1.weight": random(4, 4)}, "of the kind GLoRA"),
    "down alone": (but(GOOD, lora_up__weight=None), "down are no whole change"),
    "up alone": (but(GOOD, lora_down__weight=None), "up are no whole change"),
    "alpha alone": ({f"{K}.alpha": torch.tensor(1.0)}, "alpha are no whole change"),
    "two ranks": (lora(up_rank=5), "rank 4 and .* rank 5"),
    "too wide": (lora(into=13), r"makes \(20, 13\) and the parameter is \(20, 12\)"),
    "too tall": (lora(out=21), r"makes \(21, 12\)"),
    "another base model": ({f"{K}.lora_down.weight": random(4, 1024), f"{K}.lora_up.weight": random(20, 4)},
                           r"width 1024 \(Stable Diffusion 2\), and this one attends to width 12"),
    "integers": (but(GOOD, lora_up__weight=torch.ones(20, 4, dtype=torch.int8)), "up is torch.int8"),
    "NaN": (but(GOOD, lora_up__weight=torch.full((20, 4), torch.nan)), "not finite"),
    "infinity": (but(GOOD, lora_down__weight=torch.full((4, 12), -torch.inf)), "not finite"),
    "NaN in float8": (but(GOOD, lora_up__weight=torch.full((20, 4), torch.nan).to(torch.float8_e4m3fn)), "not finite"),
    "no rank": (lora(rank=0, up_rank=0), "down is empty"),
    "three axes": (but(GOOD, lora_down__weight=random(4, 12, 1)), "no two matrices"),
    "one axis": (but(GOOD, lora_up__weight=random(20)), "no two matrices"),
    "a kernel in up": ({f"{CONVS}.lora_down.weight": random(4, 12, 1, 1), f"{CONVS}.lora_up.weight": random(20, 4, 3, 3)},
                       "no two matrices"),
    "another kernel": ({f"{CONVS}.lora_down.weight": random(4, 12, 1, 1), f"{CONVS}.lora_up.weight": random(20, 4, 1, 1)},
                       r"makes \(20, 12, 1, 1\)"),
    "a kernel for a linear layer": (but(GOOD, lora_down__weight=random(4, 12, 3, 3)), r"makes \(20, 12, 3, 3\)"),
    "mid of another rank": (but(GOOD, lora_mid__weight=random(5, 4, 1, 1)), "Tucker"),
    "alpha of two numbers": (but(GOOD, alpha=torch.ones(2)), "alpha is None"),
    "alpha that is NaN": (but(GOOD, alpha=torch.tensor(torch.nan)), "alpha is nan"),
    "LoHa with three factors": (but(LOHA, hada_w2_b=None), "hada_w1_a, hada_w1_b, hada_w2_a are no whole"),
    "LoHa with one of two cores": (but(LOHA, hada_t1=random(3, 3, 3, 3)), "hada_t1"),
    "LoHa of two ranks": (but(LOHA, hada_w2_a=random(20, 4)), "do not multiply"),
    "LoHa of two shapes": (but(LOHA, hada_w2_b=random(3, 13)), "do not multiply"),
    "LoHa and LoRA of one layer": (GOOD | LOHA, "no whole change"),
    "LoKr of another size": ({f"{K}.lokr_w1": random(4, 3), f"{K}.lokr_w2": random(5, 3)}, r"makes \(20, 9\)"),
    "LoKr with a matrix whole and in parts": (
        {f"{K}.lokr_w1": random(4, 3), f"{K}.lokr_w1_a": random(4, 1), f"{K}.lokr_w1_b": random(1, 3),
         f"{K}.lokr_w2": random(5, 4)}, "no whole change"),
    "LoKr with half a pair": ({f"{K}.lokr_w1": random(4, 3), f"{K}.lokr_w2_a": random(5, 2)}, "lokr_w2_a"),
    "LoKr with a core for nothing": (
        {f"{K}.lokr_w1": random(4, 3), f"{K}.lokr_w2": random(5, 4), f"{K}.lokr_t2": random(2, 2, 1, 1)}, "lokr_t2"),
    "DoRA with a length too few": (but(GOOD, dora_scale=torch.ones(19, 1)), r"magnitude \(19, 1\)"),
    "DoRA with lengths twice": (but(GOOD, dora_scale=torch.ones(20, 1), lora_magnitude_vector=torch.ones(20)), "both there"),
    "DoRA without a direction": ({f"{K}.dora_scale": torch.ones(20, 1)}, "dora_scale"),
    "two spellings of one layer": (GOOD | {"unet.block.attn2.to_k.lora_A.weight": random(4, 12)}, "twice"),
    "nothing": ({}, "no tensors"),
    "PEFT's own, without its settings": ({f"base_model.model.block.attn2.to_k.lora_{x}.weight": random(*s) for x, s in
                                         (("A", (4, 12)), ("B", (20, 4)))}, "adapter_config.json, which is not beside it"),
    "LoRA and embeddings": (GOOD | {"bundle_emb.x.string_to_param.*": random(2, 8)}, "bundle_emb"),
    "a factor without axes": (but(GOOD, lora_up__weight=torch.tensor(1.0)), "no two matrices"),
    "a difference without axes": ({f"{K}.diff": torch.tensor(1.0)}, r"makes \(\)"),
    "Stable Diffusion XL": (GOOD | {"lora_te2_text_model_x.lora_up.weight": random(4, 4)}, "Stable Diffusion XL"),
    "Stable Diffusion XL's labels": ({"lora_unet_label_emb_0_0.lora_up.weight": random(4, 4)}, "Stable Diffusion XL"),
    "Flux": ({"transformer.single_blocks.0.lora_A.weight": random(4, 4)}, "Flux"),
    "a whole model": ({"model.diffusion_model.out.2.weight": random(4, 4, 3, 3)}, "from_single_file"),
    "an embedding": ({"emb_params": random(2, 8)}, "load_textual_inversion"),
    "a text encoder's layer that is not there": (
        {"text_encoder.text_model.encoder.layers.7.self_attn.q_proj.lora_A.weight": random(4, 8)}, r"layers\.7"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_wrong_file_is_refused_and_says_why(tmp_path, what):
    tensors, reason = BAD[what]
    with pytest.raises(WeightsError, match=reason) as caught:
        read(tmp_path, tensors)
    assert "some.safetensors" in str(caught.value)


def test_the_good_one_is_not(tmp_path):
    assert set(read(tmp_path, GOOD).unet) == {"block.attn2.to_k.weight"}
    assert set(read(tmp_path, LOHA).unet) == {"block.attn2.to_k.weight"}


def test_up_to_ten_names_are_listed(tmp_path):
    wrong = {f"lora_unet_nowhere_{k:02d}.lora_up.weight": random(4, 4) for k in range(25)}
    with pytest.raises(WeightsError, match="25 of them") as caught:
        read(tmp_path, GOOD | wrong)
    lines = str(caught.value).splitlines()
    assert sum("nowhere" in line for line in lines) == 10
    assert lines[-1] == "  ... and 15 more"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[1]", "no table"),
        (json.dumps({"unet.lora_alpha": "4"}), "lora_alpha is 4, and must be one finite number"),
        (json.dumps({"unet.lora_alpha": True}), "lora_alpha is True"),
        ('{"unet.lora_alpha": NaN}', "lora_alpha is nan"),
        ('{"unet.lora_alpha": 1e999}', "lora_alpha is inf"),
        (json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": [1]}), "no table"),
        (json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": {f"x{k}": 1 for k in range(5000)}}), "no table"),
        (json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": {"(a+)+x": 1}}), "no layer's name"),
    ],
    ids=lambda value: value[:20],
)
def test_a_wrong_header_is_refused(tmp_path, text, reason):
    with pytest.raises(WeightsError, match=reason):
        read(tmp_path, tiny.peft({"block.attn2.to_k": (random(4, 12), random(20, 4))}), lora_adapter_metadata=text)


def test_an_own_alpha_counts_before_the_headers(tmp_path):
    settings = json.dumps({"unet.lora_alpha": 8})
    tensors = tiny.peft({"block.attn2.to_k": (random(4, 12), random(20, 4))})
    alphas = [read(tmp_path, t, lora_adapter_metadata=settings).unet["block.attn2.to_k.weight"].alpha
              for t in (tensors, tensors | {"unet.block.attn2.to_k.alpha": torch.tensor(3.0)})]  # fmt: skip
    assert alphas == [8, 3]


@pytest.mark.parametrize(
    "settings", [{"r": 4}, {"lora_alpha": None}, {"lora_alpha": 4, "init_lora_weights": "pissa"}, {"peft_type": "LOHA"}]
)
def test_settings_of_peft_that_leave_the_strength_open(tmp_path, settings):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))
    layer = "base_model.model.block.attn2.to_k"
    with pytest.raises(WeightsError, match=r"strength is not known|of the kind LOHA"):
        read(tmp_path, {f"{layer}.lora_A.weight": random(4, 12), f"{layer}.lora_B.weight": random(20, 4)})


PATTERNS = {"to_k": 1, "^block.attn2.to_k": 2, "block.attn2.to_k": 3, "^attn2.to_k": 4, "k": 5, "block": 6}


@pytest.mark.parametrize("order", [list(PATTERNS), list(reversed(PATTERNS)), ["k", "^attn2.to_k", "block"]])
def test_the_first_pattern_that_fits_counts_as_in_peft(tmp_path, order):
    tensors = tiny.peft({"block.attn2.to_k": (random(4, 12), random(20, 4))})
    chosen = {name: PATTERNS[name] for name in order}
    key = next((p for p in order if re.match(rf"(.*\.)?({p})$", "block.attn2.to_k")), None)
    text = json.dumps({"unet.lora_alpha": 8, "unet.alpha_pattern": chosen})
    read_back = read(tmp_path, tensors, lora_adapter_metadata=text)
    assert read_back.unet["block.attn2.to_k.weight"].alpha == PATTERNS.get(key, 8)


def test_many_patterns_for_many_layers_take_no_time(tmp_path):
    layers = [f"block_{k}.to_q" for k in range(800)]
    shapes = {f"{layer}.weight": (1, 1) for layer in layers}
    patterns = {f"{'a.' * 100}{k}": 1.0 for k in range(4000)}
    text = json.dumps({"unet.lora_alpha": 8, "unet.alpha_pattern": patterns})
    tensors = tiny.peft({layer: (random(1, 1), random(1, 1)) for layer in layers})
    path = tiny.write(tmp_path / "one.safetensors", tensors, lora_adapter_metadata=text)
    began = time.process_time()
    assert len(read_lora(path, unet=shapes, text_encoder={}).unet) == 800
    assert time.process_time() - began < 2
    with pytest.raises(WeightsError, match="no layer's name"):
        read(tmp_path, GOOD | tiny.peft({"block.proj_in": (random(1, 12), random(20, 1))}),
             lora_adapter_metadata=json.dumps({"unet.lora_alpha": 8, "unet.alpha_pattern": {"a" * 300: 1}}))  # fmt: skip


@pytest.mark.parametrize("name", ["one.pt", "one.bin", "one.ckpt", "one.PTH"])
def test_a_pickles_name_is_refused_with_a_way_out(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(WeightsError, match=f"latentgen convert {name} one.safetensors"):
        read_lora(tmp_path / name, unet=UNET, text_encoder=TEXT)


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"<html>", b"\xff" * 64, b"PK\x03\x04"])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "one.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"one\.safetensors"):
        read_lora(path, unet=UNET, text_encoder=TEXT)


# Saving -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["peft", "kohya"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_saved_comes_back_bit_for_bit(tmp_path, layout, kind):
    unet = {
        "block.attn2.to_k": LowRank(random(4, 12).to(kind), random(20, 4).to(kind), 0.1),
        "block.attn2.to_out.0": LowRank(random(4, 20).to(kind), random(20, 4).to(kind)),
        "block.conv": LowRank(random(2, 12, 3, 3).to(kind), random(20, 2, 1, 1).to(kind), 4),
    }
    text = {
        "text_model.encoder.layers.0.self_attn.q_proj": LowRank(random(4, 8).to(kind), random(8, 4).to(kind), 1 / 3)
    }
    path = tmp_path / "saved.safetensors"
    save_lora(path, unet=unet, text_encoder=text, layout=layout, metadata={"title": "mine"})
    read = read_lora(path, unet=UNET, text_encoder=TEXT)
    pairs = [(read.unet[f"{layer}.weight"], delta) for layer, delta in unet.items()]
    pairs += [(read.text_encoder["encoder.layers.0.self_attn.q_proj.weight"], *text.values())]
    for got, delta in pairs:
        assert torch.equal(got.down, delta.down)
        assert torch.equal(got.up, delta.up)
        assert got.down.dtype == kind
        assert got.factor == delta.factor
    assert len(load_file(path)) == {"peft": 8, "kohya": 12}[layout]


@pytest.mark.parametrize(("layout", "by_input"), [("peft", False), ("kohya", False), ("kohya", True)])
def test_dora_comes_back_bit_for_bit(tmp_path, layout, by_input):
    axis = 1 if by_input else 0
    unet = {
        "block.attn2.to_k": Decomposed(LowRank(random(4, 12), random(20, 4), 2.0), random(LINEAR[axis]), by_input),
        "block.conv": Decomposed(LowRank(random(2, 12, 3, 3), random(20, 2, 1, 1)), random(CONV[axis]), by_input),
    }
    path = tmp_path / "saved.safetensors"
    save_lora(path, unet=unet, layout=layout)
    read = read_lora(path, unet=UNET, text_encoder=TEXT)
    for layer, delta in unet.items():
        got, weight = read.unet[f"{layer}.weight"], random(*UNET[f"{layer}.weight"], seed=9)
        assert torch.equal(got.magnitude.flatten(), delta.magnitude)
        assert torch.equal(got.change(weight), delta.change(weight))


def test_tucker_factors_are_saved_in_kohyas_form(tmp_path):
    delta = LowRank(random(4, 12, 1, 1), random(20, 4, 1, 1), 2.0, random(4, 4, 3, 3))
    path = tmp_path / "saved.safetensors"
    save_lora(path, unet={"block.conv": delta}, layout="kohya")
    assert torch.equal(read_lora(path, unet=UNET, text_encoder={}).unet["block.conv.weight"].mid, delta.mid)
    with pytest.raises(ValueError, match="Tucker"):
        save_lora(path, unet={"block.conv": delta})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"layout": "diffusers"}, "layout='diffusers' must be one of 'peft', 'kohya'"),
        ({"unet": {}}, "nothing to write"),
        ({"unet": {"block.attn2.to_k": LowRank(random(4, 12), random(20, 5))}}, "rank"),
        ({"unet": {"block.attn2.to_k": Difference(random(20, 12))}}, "is a Difference: only LoRA and DoRA"),
        ({"unet": {"k": Decomposed(LowRank(random(4, 12), random(20, 4)), random(19))}}, r"magnitude \(19,\)"),
        ({"unet": {"k": Decomposed(LowRank(random(4, 12), random(20, 4)), random(12), True)}}, "magnitudes by input"),
        (
            {
                "unet": {
                    "k": Decomposed(LowRank(random(4, 12), random(20, 4)), random(20)),
                    "q": LowRank(random(4, 12), random(20, 4)),
                }
            },
            "q has no magnitude and k has",
        ),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path, arguments, reason):
    with pytest.raises(ValueError, match=reason):
        save_lora(tmp_path / "no.safetensors", **arguments)
    assert not list(tmp_path.iterdir())
