"""Muon, against PyTorch's own (which knows two-dimensional parameters only) and against AdamW."""

import pytest
import torch
from torch import nn

from latentgen.training import muon
from latentgen.training.muon import Muon, matrices_and_rest, orthogonalise

SETTINGS = {"lr": 0.02, "weight_decay": 0.1}


@pytest.fixture(params=["bfloat16", "float32"])
def native(request, monkeypatch):
    """Both kinds of CPU."""
    monkeypatch.setattr(muon, "cpu_has_native_bfloat16", lambda: request.param == "bfloat16")
    return request.param


def steps(parameters, optimizer, gradients):
    for gradient in gradients:
        for parameter in parameters:
            parameter.grad = gradient.reshape(parameter.shape)
        optimizer.step()


def with_singular_values(rows, columns, values):
    u = torch.linalg.qr(torch.randn(rows, len(values)))[0]
    v = torch.linalg.qr(torch.randn(columns, len(values)))[0]
    return u, v, u * torch.tensor(values) @ v.T


@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (24, 96), (96, 24)])
def test_orthogonal_matrix_keeps_the_singular_vectors(native, rows, columns):
    torch.manual_seed(0)
    u, v, matrix = with_singular_values(rows, columns, [10.0**-k for k in (0, 0.3, 0.6, 1)])
    result = orthogonalise(torch.stack([matrix, 1e4 * matrix]))
    assert result.dtype == getattr(torch, native)
    for one in result.float():
        turned = u.T @ one @ v  # diagonal, and about the identity
        assert (turned - torch.diag(turned.diag())).abs().max() < 0.05
        assert turned.diag().min() > 0.65
        assert turned.diag().max() < 1.25


def test_tiny_singular_values_stay_small(native):
    torch.manual_seed(0)
    u, v, matrix = with_singular_values(24, 32, [1.0, 1e-5])
    first, second = (u.T @ orthogonalise(matrix[None])[0].float() @ v).diag()
    assert 0.65 < first < 1.25
    assert abs(second) < 0.05


def test_bfloat16_on_a_card_that_only_emulates_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not muon._native_bfloat16(torch.device("cuda"))


def test_zero_gradient_moves_nothing(native):
    assert orthogonalise(torch.zeros(1, 16, 32)).abs().max() == 0


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48)])
def test_matrix_moves_as_with_torch(shape, native):
    torch.manual_seed(1)
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    layer = nn.Linear(shape[1], shape[0], bias=False)
    other = nn.Parameter(start.clone())
    layer.weight.data.copy_(start)
    steps([layer.weight], Muon(layer, **SETTINGS), gradients)
    steps([other], torch.optim.Muon([other], momentum=0.95, adjust_lr_fn="match_rms_adamw", **SETTINGS), gradients)
    moved = (other - start).norm()
    assert (layer.weight - other).norm() < {"bfloat16": 1e-3, "float32": 0.02}[native] * moved  # theirs is in bfloat16


def test_convolution_is_the_matrix_of_its_output_channels(native):
    """In either memory format, and next to others of its shape, which must not be taken for it."""
    torch.manual_seed(2)
    gradients = [torch.randn(24, 16 * 9) for _ in range(3)]
    flat = nn.Linear(16 * 9, 24, bias=False)
    convolutions = nn.ModuleList(nn.Conv2d(16, 24, 3, bias=False) for _ in range(2))
    convolutions[1].to(memory_format=torch.channels_last)
    with torch.no_grad():
        for convolution in convolutions:
            convolution.weight.copy_(flat.weight.view(24, 16, 3, 3))
    extra = nn.Conv2d(16, 24, 3, bias=False)
    extra.weight.grad = torch.randn_like(extra.weight)
    steps([flat.weight], Muon(flat, **SETTINGS), gradients)
    both = nn.ModuleList([extra, convolutions])
    steps([c.weight for c in convolutions], Muon(both, **SETTINGS), gradients)
    for convolution in convolutions:
        assert torch.allclose(convolution.weight.flatten(1), flat.weight, atol=2e-5)


def test_all_else_moves_as_with_adamw():
    torch.manual_seed(3)
    ours, theirs = nn.GroupNorm(4, 16), nn.GroupNorm(4, 16)
    gradients = [torch.randn(16) * 10.0**-k for k in range(4)]
    steps(list(ours.parameters()), Muon(ours, betas=(0.8, 0.95), **SETTINGS), gradients)
    steps(list(theirs.parameters()), torch.optim.AdamW(theirs.parameters(), betas=(0.8, 0.95), **SETTINGS), gradients)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_which_parameters_are_matrices():
    network = nn.ModuleDict(
        {
            "conv_in": nn.Conv2d(4, 32, 3),
            "hidden": nn.Conv2d(32, 32, 3),
            "linear": nn.Linear(32, 64),
            "table": nn.Embedding(50, 32),
            "norm": nn.GroupNorm(4, 32),
            "conv_out": nn.Conv2d(32, 4, 3),
            "frozen": nn.Linear(32, 32).requires_grad_(False),
        }
    )
    names = {id(p): n for n, p in network.named_parameters()}
    matrices, rest = matrices_and_rest(network)
    assert [names[id(p)] for p in matrices] == ["hidden.weight", "linear.weight"]
    assert {names[id(p)].split(".")[0] for p in rest} == {"conv_in", "hidden", "linear", "table", "norm", "conv_out"}


def test_parameters_without_a_gradient_stay():
    network = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    optimizer = Muon(network, **SETTINGS)
    network[1](torch.ones(2, 16)).square().sum().backward()
    loss = optimizer.step(lambda: torch.tensor(3.0))
    assert loss == 3.0
    assert [n for n, p in network.named_parameters() if not torch.equal(p, before[n])] == ["1.weight", "1.bias"]
