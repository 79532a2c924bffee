import math

import pytest
import torch

from latentgen.diffusion import target, to_prediction
from latentgen.diffusion.prediction import PREDICTION_TYPES

KNOTS = [0.05, 0.3, 1 / math.sqrt(2), 0.9, 0.999]  # alpha


def latents():
    return torch.randn(2, 2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("alpha", KNOTS)
def test_a_perfect_network_knows_the_clean_latents_and_the_noise(kind, alpha):
    x0, eps = latents()
    sigma = math.sqrt(1 - alpha**2)
    output = target(kind, x0, eps, alpha, sigma)
    prediction = to_prediction(kind, output, alpha * x0 + sigma * eps, alpha, sigma)
    assert torch.allclose(prediction.x0, x0, rtol=0, atol=1e-12)
    assert torch.allclose(prediction.eps, eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_every_image_of_a_batch_may_have_its_own_knot(kind):
    x0, eps = latents()
    alpha = torch.tensor([0.3, 0.8], dtype=torch.float64).view(-1, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    prediction = to_prediction(kind, target(kind, x0, eps, alpha, sigma), alpha * x0 + sigma * eps, alpha, sigma)
    assert torch.allclose(prediction.x0, x0, rtol=0, atol=1e-12)


def test_v_is_the_velocity_of_salimans_and_ho():
    x0, eps = latents()
    assert torch.equal(target("v_prediction", x0, eps, 0.6, 0.8), 0.6 * eps - 0.8 * x0)


def test_epsilon_says_nothing_of_x0_where_there_is_no_signal():
    x = latents()[0]
    with pytest.raises(ValueError, match="prediction_type='epsilon' cannot start from pure noise"):
        to_prediction("epsilon", x, x, 0.0, 1.0)


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_the_other_kinds_can_start_from_pure_noise(kind):
    x0, eps = latents()
    prediction = to_prediction(kind, target(kind, x0, eps, 0.0, 1.0), eps, 0.0, 1.0)
    assert torch.equal(prediction.x0, x0)
    assert torch.equal(prediction.eps, eps)


def test_an_unknown_kind_is_named():
    x = latents()[0]
    for call in (lambda: target("flow", x, x, 0.6, 0.8), lambda: to_prediction("flow", x, x, 0.6, 0.8)):
        with pytest.raises(ValueError, match="prediction_type='flow' is not known; use one of epsilon"):
            call()
