"""Tensors out of pickles: by the weights-only reader, and nothing else."""

import argparse
import collections
import os
import pathlib
import pickle
import sys
import types

import numpy as np
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


def test_the_first_embeddings(tmp_path):
    """As the code of the paper on textual inversion saves them: in a ParameterDict."""
    vectors = torch.nn.Parameter(torch.randn(2, 8))
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": torch.nn.ParameterDict({"*": vectors})},
               tmp_path / "a.pt")  # fmt: skip
    assert same(read_pickle(tmp_path / "a.pt"), {"emb_params": vectors.detach()})


def test_what_other_trainings_leave_beside_the_weights(tmp_path, weights):
    counts = collections.defaultdict(list, {"loss": [0.5]})
    left = {"global_step": np.int64(5), "losses": np.arange(3.0), "args": argparse.Namespace(lr=np.float32(0.1)),
            "out": pathlib.PurePosixPath("/tmp/x"), "counts": counts}  # fmt: skip
    torch.save({"state_dict": weights, **left}, tmp_path / "a.ckpt")
    assert same(read_pickle(tmp_path / "a.ckpt"), weights)
    torch.save(collections.defaultdict(dict, weights), tmp_path / "b.ckpt")
    assert same(read_pickle(tmp_path / "b.ckpt"), weights)


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.eye(3).to_sparse(), "sparse or quantised"),
        (torch.zeros(1).expand(10**10), r"is \(10000000000,\) and repeats fewer numbers"),
    ],
    ids=["sparse", "repeated"],
)
def test_tensors_that_are_no_weights(tmp_path, tensor, why):
    torch.save({"x": tensor}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=f"a\\.pt: 'x' is {why}" if why[0] == "s" else why):
        read_pickle(tmp_path / "a.pt")


def test_what_else_is_named_is_told_in_our_words(tmp_path):
    torch.save({"x": Trap("y")}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"weights \(it names 'posix.mkdir', which are no weights\)") as caught:
        read_pickle(tmp_path / "a.pt")
    assert "can still be loaded" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


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
