"""The single-file layout's tables: on every published file, against diffusers, and against the original attention."""

import json
import math
import random

import pytest
import torch
from published import AUTOENCODERS, CHECKPOINTS, published

import latentgen.models as models
from latentgen.pipelines.folder import How
from latentgen.pipelines.single_file import make_network
from latentgen.weights import WeightsError
from latentgen.weights.compvis.families import FAMILIES, SAME_AS
from latentgen.weights.compvis.single_file import Part, averaged_name, interpret, restore
from latentgen.weights.compvis.single_file import _first_stage as first_stage
from latentgen.weights.compvis.table import Row, Table, fused, matrix
from latentgen.weights.stored import StoredTensor

WHOLE = sorted({*FAMILIES, *SAME_AS})
UNET = "model.diffusion_model."


def rows(name, shape):
    """A large tensor that takes little memory: its rows are different, and different from another tensor's."""
    if not shape:
        return torch.tensor(float(len(name)))
    column = torch.arange(shape[0], dtype=torch.float32) + 1e6 * (sum(map(ord, name)) % 97)
    return column.reshape(-1, *(1,) * (len(shape) - 1)).expand(shape)


def tensors_of(checkpoint):
    copy = "cond_stage_model.encoder.conv_in.weight" in checkpoint["tensors"]
    named = {n: n.replace("cond_stage_model", "first_stage_model") if copy else n for n in checkpoint["tensors"]}
    return {name: StoredTensor.of(rows(named[name], shape)) for name, shape in checkpoint["tensors"].items()}


def on_meta(part: Part):
    """Names and shapes of the network that a part is for."""
    if part.network == "CLIPTextModel":
        from transformers import CLIPTextConfig, CLIPTextModel

        with torch.device("meta"):
            state = CLIPTextModel(CLIPTextConfig(**part.config)).state_dict()
        state = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}
    else:
        state = getattr(models, part.network).on_meta(part.config, "test").state_dict()
    return {name: tensor.shape for name, tensor in state.items()}


def check_part(part):
    assert {name: tensor.shape for name, tensor in part.tensors.items()} == on_meta(part)


def same(given, back):
    """Bit for bit; a tensor that only has another name is the same object."""
    a, b = given.fetch(), back.fetch()
    return a is b or (a.dtype == b.dtype and torch.equal(a, b))


@pytest.mark.parametrize("name", WHOLE)
def test_a_published_file_is_mapped_whole_and_back(name):
    """Total, injective, of the network's shapes, and reversible."""
    tensors = tensors_of(published(name))
    if "scale_factor" in tensors:
        tensors["scale_factor"] = StoredTensor.of(torch.tensor(0.25))
    prediction = {"sd-v2-base": "epsilon", "sd-v2-768-v": "v_prediction"}.get(name)
    found = interpret(tensors, {}, prediction_type=prediction)
    assert found.name == SAME_AS.get(name, name)
    for part in found.parts.values():
        check_part(part)
    back = restore((part.prefix, part.table, part.tensors) for part in found.parts.values())
    if found.averaged:
        names = {
            UNET + n: f"model_ema.{averaged_name(n)}" for n in (m[len(UNET) :] for m in back if m.startswith(UNET))
        }
        assert len(set(names.values())) == len(names)
        back = {names.get(name, name): tensor for name, tensor in back.items()}
    assert not back.keys() & found.rest.keys()
    back |= found.rest
    assert back.keys() == tensors.keys()
    assert all(same(tensors[n], back[n]) for n in tensors)


@pytest.mark.parametrize("name", AUTOENCODERS)
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_published_autoencoder_is_mapped_whole_and_back(name, prefix):
    tensors = tensors_of(published(f"autoencoder-{name}"))
    part, rest = first_stage(tensors, prefix, None, {})
    check_part(part)
    back = restore([("", part.table, part.tensors)]) | {n.removeprefix(prefix): t for n, t in rest.items()}
    assert back.keys() == tensors.keys()
    assert all(same(tensors[n], back[n]) for n in tensors)


def settings_of(checkpoint):
    return checkpoint["model"]["params"]


@pytest.mark.parametrize("name", WHOLE)
def test_what_a_file_does_not_say_is_as_published(name):
    """Schedule, prediction, scale, attention heads: against the settings that come with the files."""
    checkpoint = published(name)
    settings = settings_of(checkpoint)
    family = FAMILIES[SAME_AS.get(name, name)]
    assert family.betas == (settings["linear_start"], settings["linear_end"])
    assert family.prediction == ("v_prediction" if settings.get("parameterization") == "v" else "epsilon")
    assert family.scale == settings.get("scale_factor", 1.0)
    unet = settings["unet_config"]["params"]
    tensors = tensors_of(checkpoint)
    if "scale_factor" in tensors:
        tensors["scale_factor"] = StoredTensor.of(torch.tensor(0.25))
    found = interpret(tensors, {}, prediction_type=family.prediction)
    config = found.parts["unet"].config
    widths = [unet["model_channels"] * m for m in unet["channel_mult"]]
    heads = [w // unet["num_head_channels"] if "num_head_channels" in unet else unet["num_heads"] for w in widths]
    sizes = [w // h for w, h in zip(widths, heads, strict=True)]
    transformer = found.parts["unet"].network == "UNet2DConditionModel"
    assert list(config["attention_head_dim"]) == (heads if transformer else sizes)
    if "disable_self_attentions" in unet:
        attends = ["Attn" in kind for kind in config["down_block_types"]]
        pairs = zip(config["only_cross_attention"], unet["disable_self_attentions"], attends, strict=True)
        assert all(ours == theirs for ours, theirs, there in pairs if there)
    scale = found.parts["vae"].config["scaling_factor"]
    assert scale == (0.25 if settings.get("scale_by_std") else settings.get("scale_factor", 1.0))
    if SAME_AS.get(name, name) == name:
        assert config["sample_size"] == settings["image_size"] or name == "sd-v2-768-v"


DIFFUSERS = {"sd-v1": "v1", "sd-v1-inpainting": "inpainting", "sd-v2-base": "v2", "sd-x4-upscaler": "upscale"}


@pytest.mark.parametrize("name", DIFFUSERS)
def test_names_are_those_of_diffusers(name):
    """diffusers' converters of the same tensors give the same names, and the same rows under each."""
    import diffusers.loaders.single_file_utils as theirs

    tensors = tensors_of(published(name))
    found = interpret(tensors, {}, prediction_type=FAMILIES[name].prediction)
    checkpoint = {n: t.fetch() for n, t in tensors.items()}
    unet = theirs.convert_ldm_unet_checkpoint(
        dict(checkpoint), {**found.parts["unet"].config, "class_embed_type": None}
    )
    vae = theirs.convert_ldm_vae_checkpoint(dict(checkpoint), found.parts["vae"].config)
    if found.family.looks.conditioner == "clip":
        text = theirs.convert_ldm_clip_checkpoint(dict(checkpoint))
        text.pop("text_model.embeddings.position_ids")
    else:
        model = type("M", (), {"config": type("C", (), {"hidden_size": 1024, "num_hidden_layers": 23})()})()
        text = theirs.convert_open_clip_checkpoint(model, dict(checkpoint), prefix="cond_stage_model.model.")
    for part, converted in (("unet", unet), ("vae", vae), ("conditioner", text)):
        ours = found.parts[part].tensors
        if part == "unet" and "class_embedding.weight" in ours:  # these go by another of its settings
            converted["class_embedding.weight"] = checkpoint[UNET + "label_emb.weight"]
        skipped = {n for n in converted if n.startswith("text_model.encoder.layers.23.")} | {"text_projection.weight"}
        assert ours.keys() == converted.keys() - skipped
        for n, tensor in ours.items():
            a, b = tensor.fetch(), converted[n]
            assert a is b or (a.shape == b.shape and torch.equal(a, b)), n


def test_the_original_attention_with_one_projection():
    """LDM's own rule (QKVAttentionLegacy): each head's queries, keys and values follow one another."""
    torch.manual_seed(0)
    heads, channels, places = 4, 32, 10
    weight, bias = torch.randn(3 * channels, channels, 1), torch.randn(3 * channels)
    x = torch.randn(2, channels, places)
    qkv = torch.nn.functional.conv1d(x, weight, bias).reshape(2 * heads, 3 * channels // heads, places)
    q, k, v = qkv.split(channels // heads, dim=1)
    weights = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(channels // heads), dim=-1)
    theirs = torch.einsum("bts,bcs->bct", weights, v).reshape(2, channels, places)
    parts = [[part(t) for t in (weight, bias)] for part in fused(heads, 3).split]
    ours = [
        torch.nn.functional.linear(x.transpose(1, 2), w, b).unflatten(-1, (heads, -1)).transpose(1, 2) for w, b in parts
    ]
    ours = torch.nn.functional.scaled_dot_product_attention(*ours).transpose(1, 2).flatten(2).transpose(1, 2)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "without", [(), ("text_projection",), ("resblocks.23.",), ("text_projection", "resblocks.23.")]
)
def test_stable_diffusion_2_reads_23_layers_of_its_text_encoder(without):
    """Whatever a file was pruned of: the states before the last of 24 layers are those that the UNet attends to."""
    tensors = {n: t for n, t in tensors_of(published("sd-v2-base")).items() if not any(part in n for part in without)}
    assert interpret(tensors, {}, prediction_type="epsilon").parts["conditioner"].config["num_hidden_layers"] == 23


@pytest.mark.parametrize(
    ("name", "family"), [("sd-v1", "sd-v2-base"), ("sd-v2-base", "sd-v1"), ("ldm-celeba256", "ldm-bsr_sr")]
)
def test_a_family_that_a_published_file_does_not_look_like(name, family):
    with pytest.raises(WeightsError, match=rf"not of the family {family}: it looks like .*{name}.*Leave family= out"):
        interpret(tensors_of(published(name)), {}, family=family)


def test_a_table_with_a_name_twice_is_refused():
    with pytest.raises(ValueError, match="b stands in the table twice"):
        Table([Row("a", ("b",)), Row("c", ("b",))])
    with pytest.raises(ValueError, match="a stands in the table twice"):
        Table([Row("a", ("b",)), Row("a", ("c",))])


def test_a_part_of_three_is_not_enough_to_go_back():
    table = Table([Row("qkv", ("q", "k", "v"), fused(2, 2)), Row("m", ("n",), matrix(2))])
    whole = {"qkv": StoredTensor.of(torch.randn(12, 4)), "m": StoredTensor.of(torch.randn(3, 5, 1, 1))}
    ours, rest = table.apply(whole)
    assert not rest
    assert [tuple(t.shape) for t in ours.values()] == [(4, 4)] * 3 + [(3, 5)]
    back, rest = table.revert(ours)
    assert not rest
    assert all(torch.equal(back[n].fetch(), whole[n].fetch()) for n in whole)
    del ours["k"]
    back, rest = table.revert(ours)
    assert back.keys() == {"m"}
    assert rest.keys() == {"q", "v"}


@pytest.mark.parametrize("name", ["sd-v1", "sd-v2-base", "ldm-celeba256", "ldm-txt2img-1p4B-eval"])
def test_shapes_of_nobodys_model(name):
    """Tensors taken away, or of shapes that nothing has: said of the file, whatever is looked at first."""
    whole = tensors_of(published(name))
    generator = random.Random(name)
    strange = [(), (0,), (3,), (1, 1), (2**40, 0), (0, 0, 0, 0), (7, 7, 7, 7)]
    refused = 0
    for _ in range(20):
        tensors = dict(whole)
        for gone in generator.sample(sorted(tensors), generator.choice([1, 5, 200])):
            tensors.pop(gone)
        for bent in generator.sample(sorted(tensors), generator.choice([0, 1, 20, 300])):
            tensors[bent] = StoredTensor.of(torch.empty(generator.choice(strange), device="meta"))
        try:
            found = interpret(tensors, {}, family=generator.choice([None, name]), prediction_type="epsilon")
            for part in found.parts.values():
                make_network(part, How(torch.device("meta"), None), "the file", "what it looks like")
        except WeightsError:
            refused += 1
    assert refused > 15


def test_every_published_file_has_a_family():
    if not CHECKPOINTS.is_dir():
        pytest.skip("shared/reference/checkpoints, with the tensors of published models, is not beside this checkout")
    files = {path.stem for path in CHECKPOINTS.glob("*.json")}
    assert files == {*WHOLE, *(f"autoencoder-{name}" for name in AUTOENCODERS)}
    assert all("tensors" in json.loads(path.read_text()) for path in CHECKPOINTS.glob("*.json"))
