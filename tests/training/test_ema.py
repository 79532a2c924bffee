"""The moving average against its closed form."""

import pytest
import torch
from torch import nn

from latentgen.training.ema import EMA


def test_closed_form():
    """shadow_n = w_0 prod(d_k) + sum_k (1 - d_k) w_k prod_(j > k) d_j, with d_k = min(decay, (1 + k) / (10 + k))."""
    layer = nn.Linear(3, 2)
    ema = EMA(layer, 0.3)
    weights = [layer.weight.detach().clone()]
    for _ in range(20):
        with torch.no_grad():
            layer.weight.add_(torch.randn_like(layer.weight))
        ema.update(layer)
        weights.append(layer.weight.detach().clone())
    decays = [min(0.3, (1 + k) / (10 + k)) for k in range(21)]
    assert decays[1] == pytest.approx(2 / 11)
    assert decays[20] == 0.3
    expected = torch.zeros_like(weights[0]).double()
    for k, weight in enumerate(weights):
        share = 1.0 if k == 0 else 1 - decays[k]
        for j in range(k + 1, 21):
            share *= decays[j]
        expected += share * weight.double()
    assert torch.allclose(ema.shadow["weight"].double(), expected, atol=1e-5)
    assert ema.updates == 20


def test_decay_of_zero_follows_the_weights():
    layer = nn.Linear(3, 2)
    ema = EMA(layer, 0.0)
    with torch.no_grad():
        layer.weight.add_(1)
    ema.update(layer)
    assert torch.equal(ema.shadow["weight"], layer.weight)


def test_applied_brings_the_weights_back_even_after_an_error():
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    ema = EMA(layer, 0.9)
    ema.shadow["weight"].zero_()

    def fail():
        with ema.applied(layer):
            assert not layer.weight.any()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.equal(layer.weight, before)


def test_frozen_parameters_are_left_out():
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert list(EMA(layer, 0.9).shadow) == ["weight"]
