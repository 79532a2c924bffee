"""Tensors out of pickles: by the weights-only reader, and nothing else."""

import collections
import os
import pickle
import sys
import types

import pytest
import torch

from latentgen.weights import WeightsError
from latentgen.weights.pickles import read_pickle


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return {"model.diffusion_model.a": torch.randn(3, 4), "first_stage_model.b": torch.randn(2).half()}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.bin"])
def test_weights_alone_and_in_a_checkpoint(tmp_path, weights, name, legacy):
    how = {"_use_new_zipfile_serialization": not legacy}
    torch.save(weights, tmp_path / name, **how)
    assert same(read_pickle(tmp_path / name), weights)
    torch.save({"epoch": 3, "state_dict": weights, "optimizer_states": [{"lr": 0.1}]}, tmp_path / name, **how)
    assert same(read_pickle(tmp_path / name), weights)
    torch.save(collections.OrderedDict(weights), tmp_path / name, **how)
    assert same(read_pickle(tmp_path / name), weights)


def test_what_lightning_leaves_behind_is_an_empty_object(tmp_path, weights, monkeypatch):
    """The published checkpoints of Stable Diffusion hold such a class; the library need not be there."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    kind = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = kind
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    made = kind()
    made.best = 0.5
    torch.save({"state_dict": weights, "callbacks": {kind: {"best": 0.5}, "other": made}}, tmp_path / "a.ckpt")
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    assert same(read_pickle(tmp_path / "a.ckpt"), weights)


def test_an_embedding_of_the_web_interface(tmp_path):
    vectors = torch.nn.Parameter(torch.randn(2, 8))
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "cat"}, tmp_path / "a.pt")
    assert same(read_pickle(tmp_path / "a.pt"), {"emb_params": vectors.detach()})


class Trap:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("form", ["plain", "torch", "legacy", "inside"])
def test_nothing_is_executed(tmp_path, weights, form):
    trap, path = Trap(str(tmp_path / "sprung")), tmp_path / "a.ckpt"
    if form == "plain":
        path.write_bytes(pickle.dumps(trap))
    else:
        content = {"state_dict": weights, "x": trap} if form == "inside" else trap
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(WeightsError, match=r"a\.ckpt cannot be read as a file of weights.*was not executed"):
        read_pickle(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02", b"hello", b"\x80\x04\x95" + b"\xff" * 20])
def test_damaged_files(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.pt cannot be read"):
        read_pickle(tmp_path / "a.pt")


def test_no_tensors(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="holds no tensors by name"):
        read_pickle(tmp_path / "a.pt")
    torch.save([torch.zeros(2)], tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="holds no tensors by name"):
        read_pickle(tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="does not exist"):
        read_pickle(tmp_path / "absent.pt")
