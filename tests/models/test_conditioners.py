"""Conditions from first principles, and the tensors that the published ones have."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from latentgen.models import ClassEmbedder, LDMBertModel, SpatialRescaler

CHECKPOINTS = Path(__file__).resolve().parents[3] / "shared" / "reference" / "checkpoints"


def bert(params):
    width = params["n_embed"]
    return LDMBertModel, {"d_model": width, "encoder_layers": params["n_layer"], "encoder_ffn_dim": 4 * width,
                          "vocab_size": params.get("vocab_size", 30522),
                          "max_position_embeddings": params.get("max_seq_len", 77)}  # fmt: skip


IN_OUR_WORDS = {
    "BERTEmbedder": bert,
    "ClassEmbedder": lambda p: (ClassEmbedder, {"num_classes": p.get("n_classes", 1000), "embed_dim": p["embed_dim"]}),
    "SpatialRescaler": lambda p: (SpatialRescaler, p),
}
NAMES = ["cin256", "cin256-v2", "layout2img-openimages256", "semantic_synthesis256", "semantic_synthesis512", "text2img256",
         "txt2img-1p4B-eval"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_published_conditioner(name):
    path = CHECKPOINTS / f"ldm-{name}.json"
    if not path.is_file():
        pytest.skip("shared/reference/checkpoints, with the tensors of published models, is not beside this checkout")
    published = json.loads(path.read_text())
    settings = published["model"]["params"]["cond_stage_config"]
    cls, words = IN_OUR_WORDS[settings["target"].rsplit(".", 1)[1]](settings["params"])
    with torch.device("meta"):
        model = cls.from_config(words)
    theirs = Counter(
        tuple(shape) for full, shape in published["tensors"].items() if full.startswith("cond_stage_model.")
    )
    assert Counter(tuple(tensor.shape) for tensor in model.state_dict().values()) == theirs


def test_a_class_is_a_context_of_one_token():
    embedder = ClassEmbedder.from_config({"num_classes": 5, "embed_dim": 3})
    context = embedder(torch.tensor([4, 1]))
    assert context.shape == (2, 1, 3)
    assert torch.equal(context[0, 0], embedder.embedding.weight[-1])
    assert torch.equal(context[1, 0], embedder.embedding.weight[1])


def test_a_map_of_labels_is_halved_by_means_and_mapped():
    rescaler = SpatialRescaler.from_config({"n_stages": 2, "in_channels": 4, "out_channels": 3})
    labels = torch.randint(4, (2, 8, 12))
    marks = torch.nn.functional.one_hot(labels, 4).permute(0, 3, 1, 2).float()
    means = marks.unflatten(2, (2, 4)).unflatten(4, (3, 4)).mean(dim=(3, 5))
    expected = torch.einsum("oc,bchw->bohw", rescaler.channel_mapper.weight[:, :, 0, 0], means)
    assert torch.allclose(rescaler(labels), expected, atol=1e-6)


def test_files_round_trip(tmp_path):
    for k, model in enumerate((ClassEmbedder.from_config({}), SpatialRescaler.from_config({}))):
        model.save_pretrained(tmp_path / str(k))
        again = type(model).from_pretrained(tmp_path / str(k), device="cpu", dtype="float32")
        assert again.config == model.config
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
