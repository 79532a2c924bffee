import pytest
import torch

from latentgen.weights import WeightsError
from latentgen.weights.key_maps import rename_old_vae_attention
from latentgen.weights.stored import StoredTensor

OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def stored(*shape):
    return StoredTensor.of(torch.randn(shape))


def test_old_spelling_becomes_the_new_one():
    block = "decoder.mid_block.attentions.0"
    tensors = {f"{block}.{old}.{kind}": stored(4, 4) for old in OLD.values() for kind in ("weight", "bias")}
    tensors[f"{block}.group_norm.weight"] = stored(4)
    tensors["decoder.conv_in.weight"] = stored(4, 4, 1, 1)
    renamed = rename_old_vae_attention(tensors)
    for new, old in OLD.items():
        for kind in ("weight", "bias"):
            assert renamed[f"{block}.{new}.{kind}"] is tensors[f"{block}.{old}.{kind}"]
    assert renamed[f"{block}.group_norm.weight"] is tensors[f"{block}.group_norm.weight"]
    assert renamed["decoder.conv_in.weight"].shape == (4, 4, 1, 1)
    assert len(renamed) == len(tensors)


@pytest.mark.parametrize("layer", ["query", "to_q", "proj_attn", "to_out.0"])
def test_convolutions_become_matrices(layer):
    weight = stored(4, 4, 1, 1)
    (renamed,) = rename_old_vae_attention({f"encoder.mid_block.attentions.0.{layer}.weight": weight}).values()
    assert torch.equal(renamed.fetch(), weight.fetch().reshape(4, 4))


def test_new_spelling_and_other_layers_pass_unchanged():
    names = ["attentions.0.to_q.weight", "down_blocks.0.query.weight", "text.key.bias", "attentions.0.to_out.0.bias"]
    tensors = {name: stored(2) for name in names}
    renamed = rename_old_vae_attention(tensors)
    assert list(renamed) == names
    assert all(renamed[name] is tensors[name] for name in names)


def test_both_spellings_at_once():
    tensors = {f"attentions.0.{name}.weight": stored(2, 2) for name in ("key", "to_k")}
    with pytest.raises(WeightsError, match=r"attentions\.0\.to_k\.weight twice"):
        rename_old_vae_attention(tensors)
