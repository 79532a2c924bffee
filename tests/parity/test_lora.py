"""LoRA files in every spelling that diffusers loads with PEFT: networks with them give diffusers' numbers."""

import json

import pytest
import safetensors.torch
import tiny_lora as tiny
import torch
from tiny_sd import make_model_folder, relative_error, their_pipeline

from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.weights.adapters import Decomposed, LowRank, read_lora, save_lora

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, at every load

LIMIT = 1e-5
IDS = torch.tensor([[519, 1, 2, 3, 520, 520]])


@pytest.fixture(scope="module", params=["SD1", "SD2"])
def folder(request, tmp_path_factory):
    linear = {"attention_head_dim": (2, 4, 4), "use_linear_projection": True}
    settings = {"SD1": {"attention_head_dim": 4}, "SD2": linear}[request.param]
    return make_model_folder(tmp_path_factory.mktemp("model") / "model", unet=settings)


@pytest.fixture(scope="module")
def ours(folder):
    return Text2ImagePipeline.from_pretrained(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def other(folder):
    """Theirs."""
    return their_pipeline(folder)


def outputs(unet, text_encoder):
    generator = torch.Generator().manual_seed(0)
    latents, context = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 5, 32)))
    with torch.no_grad():
        drawn = unet(latents, 300, context)
        return getattr(drawn, "sample", drawn), text_encoder(IDS).last_hidden_state


def mine(pipe, path, scale=1.0):
    """The UNet's and the text encoder's outputs with a LoRA, and how far these are from those without."""
    pipe.unload_lora()
    plain = outputs(pipe.unet, pipe.text_encoder)
    pipe.load_lora(path, scale=scale, name="one")
    parts = pipe.adapted()()
    got = outputs(parts.unet, parts.text_encoder)
    return got, [relative_error(one, other) for one, other in zip(got, plain, strict=True)]


def theirs(pipe, path, scale=1.0):
    pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="one")
    pipe.set_adapters("one", scale)
    got = outputs(pipe.unet, pipe.text_encoder)
    pipe.unload_lora_weights()
    return got


def unet_files(unet):
    everything = tiny.factors(unet, tiny.LINEAR + tiny.CONV + tiny.TIME)
    attention = tiny.factors(unet, tiny.ATTENTION)
    return {
        "peft": tiny.peft(everything),
        "diffusers": tiny.diffusers(everything),
        "processor": tiny.processor(attention),
        "kohya": tiny.kohya(everything),
        "kohya, alpha": tiny.kohya(everything, alpha=1.5),
    }


@pytest.mark.parametrize("spelling", ["peft", "diffusers", "processor", "kohya", "kohya, alpha"])
@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_unet(ours, other, tmp_path, spelling, scale):
    path = tiny.write(tmp_path / "one.safetensors", unet_files(ours.unet)[spelling])
    (got, _), (change, _) = mine(ours, path, scale)
    expected, _ = theirs(other, path, scale)
    assert change > 0.1
    assert relative_error(got, expected) < LIMIT


@pytest.mark.parametrize("spelling", [tiny.peft, tiny.diffusers], ids=["peft", "diffusers"])
def test_text_encoder(ours, other, tmp_path, spelling):
    """Their loader takes text encoders in the names of the installed transformers alone."""
    prefix = "text_model." if hasattr(ours.text_encoder, "text_model") else ""
    text = tiny.factors(ours.text_encoder, tiny.TEXT)
    path = tiny.write(tmp_path / "one.safetensors", spelling(text=text, prefix=prefix))
    (_, got), (_, change) = mine(ours, path, 0.7)
    _, expected = theirs(other, path, 0.7)
    assert change > 0.1
    assert relative_error(got, expected) < LIMIT


def test_a_text_encoder_is_changed_alike_in_every_spelling(ours, tmp_path):
    text = tiny.factors(ours.text_encoder, [layer for layer in tiny.TEXT if "self_attn" in layer])
    files = [
        tiny.peft(text=text), tiny.peft(text=text, prefix=""), tiny.diffusers(text=text), tiny.diffusers(text=text, prefix=""),
        tiny.processor(text=text), tiny.processor(text=text, prefix=""), tiny.kohya(text=text), tiny.kohya(text=text, alpha=4),
        tiny.kohya(text=text, te="lora_te1_"),
    ]  # fmt: skip
    first = None
    for tensors in files:
        (_, got), (_, change) = mine(ours, tiny.write(tmp_path / "one.safetensors", tensors))
        first = got if first is None else first
        assert change > 0.1
        assert torch.equal(got, first)


def test_a_unet_is_changed_alike_without_the_prefix(ours, tmp_path):
    attention = tiny.factors(ours.unet, tiny.ATTENTION)
    (first, _), _ = mine(ours, tiny.write(tmp_path / "one.safetensors", tiny.processor(attention)))
    bare = {f"base_model.model.{name.removeprefix('unet.')}": tensor for name, tensor in tiny.peft(attention).items()}
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    for other in (tiny.processor(attention, start=""), bare):  # the second is what PEFT saves of one network
        (second, _), _ = mine(ours, tiny.write(tmp_path / "one.safetensors", other))
        assert torch.equal(first, second)


def test_a_unet_is_changed_alike_under_the_original_codes_names(ours, tmp_path):
    layers = {
        "lora_unet_down_blocks_0_attentions_0_proj_in": "lora_unet_input_blocks_1_1_proj_in",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_2":
            "lora_unet_input_blocks_1_1_transformer_blocks_0_ff_net_2",
        "lora_unet_mid_block_resnets_1_conv2": "lora_unet_middle_block_2_out_layers_3",
        "lora_unet_up_blocks_0_upsamplers_0_conv": "lora_unet_output_blocks_2_1_conv",
        "lora_unet_conv_in": "lora_unet_input_blocks_0_0",
    }  # fmt: skip
    tensors = tiny.kohya(tiny.factors(ours.unet, tiny.LINEAR + tiny.CONV + tiny.TIME))
    tensors = {name: tensor for name, tensor in tensors.items() if name.split(".")[0] in layers}
    assert len(tensors) == 2 * len(layers)
    renamed = {".".join([layers[name.split(".")[0]], *name.split(".")[1:]]): tensor for name, tensor in tensors.items()}
    (first, _), (change, _) = mine(ours, tiny.write(tmp_path / "one.safetensors", tensors))
    (second, _), _ = mine(ours, tiny.write(tmp_path / "one.safetensors", renamed))
    assert change > 0.1
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"alpha_pattern": {"attn1.to_q": 3.0}, "rank_pattern": {"attn2.to_k": 2}},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_what_peft_saves_itself(folder, ours, tmp_path, options):
    """The file has no alphas: they stand in adapter_config.json beside it."""
    import diffusers

    theirs = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    layers = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in"]
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=layers, init_lora_weights=False, **options)
    wrapped = peft.get_peft_model(theirs, config).eval()
    wrapped.save_pretrained(tmp_path / "it")
    expected, _ = outputs(wrapped, ours.text_encoder)
    for path in (tmp_path / "it", tmp_path / "it" / "adapter_model.safetensors"):
        (got, _), (change, _) = mine(ours, path)
        assert change > 0.1
        assert relative_error(got, expected) < LIMIT


def test_what_one_network_of_diffusers_saves(folder, ours, tmp_path):
    """The header's table has no prefixes then."""
    import diffusers

    theirs = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    theirs.add_adapter(config)
    theirs.eval().save_lora_adapter(tmp_path)
    expected, _ = outputs(theirs, ours.text_encoder)
    (got, _), (change, _) = mine(ours, tmp_path)
    assert change > 0.1
    assert relative_error(got, expected) < LIMIT


def test_ranks_and_alphas_in_the_header(ours, other, tmp_path):
    """What diffusers writes after training: LoraConfig as metadata, with patterns."""
    import diffusers

    unet = tiny.factors(ours.unet, tiny.ATTENTION[:4], rank=4) | tiny.factors(ours.unet, tiny.CONV[1:3], rank=2)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=list(unet), rank_pattern={"resnets.1.conv2": 2, "downsamplers.0.conv": 2},
        alpha_pattern={"resnets.1.conv2": 5, "attn1.to_q": 1},
    )  # fmt: skip
    metadata = {name: list(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    tensors = tiny.peft(unet)
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers={name.removeprefix("unet."): tensor for name, tensor in tensors.items()},
        unet_lora_adapter_metadata=metadata,
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        assert "lora_adapter_metadata" in file.metadata()
    (got, _), _ = mine(ours, path)
    assert relative_error(got, theirs(other, path)[0]) < LIMIT
    path = tiny.write(tmp_path / "bare.safetensors", tensors)
    assert relative_error(mine(ours, path)[0][0], got) > 0.01  # the header matters


def test_rank_stabilised_lora(ours, other, tmp_path):
    unet = tiny.factors(ours.unet, tiny.ATTENTION)
    settings = {"unet.r": 4, "unet.lora_alpha": 3, "unet.use_rslora": True, "unet.target_modules": tiny.ATTENTION}
    path = tiny.write(tmp_path / "one.safetensors", tiny.peft(unet), lora_adapter_metadata=json.dumps(settings))
    (got, _), _ = mine(ours, path)
    assert relative_error(got, theirs(other, path)[0]) < LIMIT


def test_several_at_once(ours, other, tmp_path):
    layers = tiny.LINEAR + tiny.CONV
    paths = [tiny.write(tmp_path / f"{name}.safetensors", tiny.peft(tiny.factors(ours.unet, some, seed=seed)))
             for name, some, seed in (("a", layers, 0), ("b", layers[3:], 100))]  # fmt: skip
    ours.unload_lora()
    for path, scale in zip(paths, (0.5, -0.8), strict=True):
        ours.load_lora(path, scale)
    got, _ = outputs((parts := ours.adapted()()).unet, parts.text_encoder)
    for path in paths:
        other.load_lora_weights(path.parent, weight_name=path.name, adapter_name=path.stem)
    other.set_adapters(["a", "b"], [0.5, -0.8])
    expected, _ = outputs(other.unet, other.text_encoder)
    other.unload_lora_weights()
    assert relative_error(got, expected) < LIMIT


@pytest.mark.parametrize("spelling", ["peft", "kohya"])
def test_dora(ours, other, tmp_path, spelling):
    layers = tiny.ATTENTION + tiny.CONV[:3]
    unet = tiny.factors(ours.unet, layers)
    tensors = tiny.peft(unet) if spelling == "peft" else tiny.kohya(unet)
    for number, layer in enumerate(layers):
        out, *kernel = tiny.shape_of(ours.unet, layer)
        magnitude = tiny.noise(out, seed=1000 + number).abs() + 0.5
        if spelling == "peft":
            shape = (out,) if len(kernel) == 1 else (1, out, 1, 1)
            tensors[f"unet.{layer}.lora_magnitude_vector"] = magnitude.reshape(shape)
        else:
            tensors[f"lora_unet_{layer.replace('.', '_')}.dora_scale"] = magnitude.reshape(out, *[1] * len(kernel))
    path = tiny.write(tmp_path / "one.safetensors", tensors)
    (got, _), (change, _) = mine(ours, path)
    assert change > 0.1
    if spelling == "kohya":  # theirs leaves the magnitudes in a shape that their convolutions do not take
        both = tiny.peft(unet) | {
            f"unet.{layer}.lora_magnitude_vector": tensors[f"lora_unet_{layer.replace('.', '_')}.dora_scale"].reshape(
                (-1,) if len(tiny.shape_of(ours.unet, layer)) == 2 else (1, -1, 1, 1)
            )
            for layer in layers
        }
        path = tiny.write(tmp_path / "two.safetensors", both)
    assert relative_error(got, theirs(other, path)[0]) < LIMIT


def test_what_is_saved_in_pefts_form_loads_there(ours, other, tmp_path):
    unet = tiny.factors(ours.unet, tiny.LINEAR) | tiny.factors(ours.unet, tiny.CONV, rank=2)
    alphas = [1.0, 2.0, 4.0, 4.0] * 9
    described = {layer: LowRank(*pair, alpha) for (layer, pair), alpha in zip(unet.items(), alphas, strict=False)}
    text = {layer: LowRank(*pair, 3.0) for layer, pair in tiny.factors(ours.text_encoder, tiny.TEXT).items()}
    path = tmp_path / "one.safetensors"
    save_lora(path, unet=described, text_encoder=text)
    got, change = mine(ours, path)
    assert min(change) > 0.1
    for one, expected in zip(got, theirs(other, path), strict=True):
        assert relative_error(one, expected) < LIMIT
    save_lora(path, unet=described, text_encoder=text, layout="kohya")  # theirs mixes up different alphas of this form
    assert all(torch.equal(one, again) for one, again in zip(got, mine(ours, path)[0], strict=True))


def test_dora_that_is_saved_in_pefts_form_loads_there(ours, other, tmp_path):
    def decomposed(pairs):
        lengths = [tiny.noise(up.shape[0], seed=k).abs() + 0.5 for k, (_, up) in enumerate(pairs.values())]
        made = zip(pairs.items(), lengths, strict=True)
        return {layer: Decomposed(LowRank(down, up, 3.0), length) for (layer, (down, up)), length in made}

    unet = decomposed(tiny.factors(ours.unet, tiny.ATTENTION + tiny.CONV[:3]))
    path = tmp_path / "one.safetensors"
    save_lora(path, unet=unet, text_encoder=decomposed(tiny.factors(ours.text_encoder, tiny.TEXT)))
    got, changes = mine(ours, path)
    assert min(changes) > 0.1
    for one, expected in zip(got, theirs(other, path), strict=True):
        assert relative_error(one, expected) < LIMIT


def test_what_is_saved_in_kohyas_form_loads_there(ours, other, tmp_path):
    unet = tiny.factors(ours.unet, tiny.LINEAR + tiny.CONV)
    path = tmp_path / "one.safetensors"
    save_lora(path, unet={layer: LowRank(*pair, 3.0) for layer, pair in unet.items()}, layout="kohya")
    (got, _), (change, _) = mine(ours, path)
    assert change > 0.1
    assert relative_error(got, theirs(other, path)[0]) < LIMIT


def delta_of(tmp_path, layer, tensors):
    """What our reader makes of one layer's factors."""
    path = tiny.write(tmp_path / "one.safetensors", {f"lora_unet_it.{name}": value for name, value in tensors.items()})
    lora = read_lora(path, unet={"it.weight": tuple(layer.weight.shape)}, text_encoder={})
    return lora.unet["it.weight"].change(layer.weight.detach())


LAYERS = {"linear": lambda: torch.nn.Linear(12, 20), "1 x 1": lambda: torch.nn.Conv2d(12, 20, 1),
          "3 x 3": lambda: torch.nn.Conv2d(12, 20, 3)}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("tucker", [False, True])
def test_loha_is_that_of_peft(tmp_path, kind, tucker):
    base = LAYERS[kind]()
    loha = peft.tuners.loha.layer
    cls = loha.Linear if kind == "linear" else loha.Conv2d
    config = peft.LoHaConfig(r=3, alpha=2, use_effective_conv2d=tucker, init_weights=False)
    layer = cls(base, "it", config=config, r=3, alpha=2)
    tensors = {
        name: getattr(layer, name)["it"].detach() for name in layer.adapter_layer_names if "it" in getattr(layer, name)
    }
    assert ("hada_t1" in tensors) == (tucker and kind == "3 x 3")
    with torch.no_grad():
        expected = layer.get_delta_weight("it")
    got = delta_of(tmp_path, base, tensors | {"alpha": torch.tensor(2.0)})
    assert relative_error(got, expected) < LIMIT


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "options",
    [{}, {"decompose_both": True}, {"use_effective_conv2d": True}, {"decompose_factor": 2}, {"r": 40}],
    ids=lambda options: ", ".join(options) or "plain",
)
def test_lokr_is_that_of_peft(tmp_path, kind, options):
    base = LAYERS[kind]()
    r = options.get("r", 2)
    settings = {"use_effective_conv2d": False, "decompose_both": False, "decompose_factor": -1, **options, "r": r}
    lokr = peft.tuners.lokr.layer
    cls = lokr.Linear if kind == "linear" else lokr.Conv2d
    layer = cls(base, "it", config=peft.LoKrConfig(alpha=r, init_weights=False, **settings), r=r, alpha=r)
    tensors = {
        name: getattr(layer, name)["it"].detach() for name in layer.adapter_layer_names if "it" in getattr(layer, name)
    }
    with torch.no_grad():
        expected = layer.get_delta_weight("it")
    got = delta_of(tmp_path, base, tensors | {"alpha": torch.tensor(float(r))})
    assert relative_error(got, expected) < LIMIT
