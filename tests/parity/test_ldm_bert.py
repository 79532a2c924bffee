"""`LDMBertModel` against diffusers', with the same weights: float32, largest difference over largest value."""

import warnings

import pytest
import torch
from tiny_sd import relative_error, scatter

from latentgen.models import LDMBertModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that the pipeline beside it is deprecated
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel as TheirModel

TINY = {"vocab_size": 100, "max_position_embeddings": 12, "d_model": 32, "encoder_layers": 3, "encoder_ffn_dim": 64,
        "encoder_attention_heads": 2, "head_dim": 8}  # fmt: skip
IDS = torch.tensor([[1, 5, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0], [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]])


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    return scatter(TheirModel(LDMBertConfig(**TINY)))


def test_contexts_are_those_of_diffusers(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "bert")
    ours = LDMBertModel.from_pretrained(tmp_path / "bert", device="cpu", dtype="float32")
    with torch.no_grad():
        for ids in (IDS, IDS[:, :5]):
            assert relative_error(ours(ids), theirs(ids)[0]) <= 1e-5


def test_a_sequence_that_is_too_long_is_named():
    with pytest.raises(ValueError, match="there are 13 tokens; this network reads at most 12"):
        LDMBertModel.from_config(TINY)(torch.zeros(1, 13, dtype=torch.int64))


def test_a_saved_folder_is_read_by_diffusers(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    LDMBertModel.from_pretrained(tmp_path / "theirs", device="cpu", dtype="float32").save_pretrained(tmp_path / "ours")
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == ["SHA256SUMS", "config.json", "model.safetensors"]
    again = TheirModel.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(("key", "value"), [("activation_function", "relu"), ("scale_embedding", True)])
def test_what_is_not_implemented_is_refused(key, value):
    with pytest.raises(ValueError, match=f"{key}={value!r} is not supported"):
        LDMBertModel.from_config({**TINY, key: value})
