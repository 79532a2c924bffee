"""PyTorch's defaults belong to the whole process; other code sets them, and nothing here may turn out otherwise for it."""

import pytest
import torch
from tiny_sd import SD1, UNET

from latentgen.diffusion import NoiseSchedule, NoiseStream
from latentgen.models.unet import UNet2DConditionModel, UNetConfig
from latentgen.nn.embeddings import timestep_embedding
from latentgen.schedulers import SCHEDULERS

SETTINGS = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": tuple(0.001 + 0.00001 * k for k in range(1000))},
]


@pytest.fixture(params=[torch.float64, torch.bfloat16, "meta"], ids=str)
def other_defaults(request):
    """A function that sets another default dtype or device for the rest of the test."""

    def change():
        if isinstance(request.param, torch.dtype):
            torch.set_default_dtype(request.param)
        else:
            torch.set_default_device(request.param)

    yield change
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def same(got, expected):
    return (got.dtype, got.device) == (torch.float32, torch.device("cpu")) and torch.equal(got, expected)


@pytest.mark.parametrize("seed", [7, 7 + 2**32])
def test_noise(other_defaults, seed):
    expected = NoiseStream([seed], (4, 6, 5))
    start, fresh = expected.draw(), expected(0)
    other_defaults()
    got = NoiseStream([seed], (4, 6, 5))
    assert same(got.draw(), start)
    assert same(got(0), fresh)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_and_plans(other_defaults, name):
    config = [{**settings, "skip_prk_steps": True} for settings in SETTINGS]
    first = [SCHEDULERS[name].from_config(c) for c in config]
    expected = [(s.schedule.alphas_cumprod, s.plan(7)) for s in first]
    other_defaults()
    for (table, plan), scheduler in zip(expected, [SCHEDULERS[name].from_config(c) for c in config], strict=True):
        assert same(scheduler.schedule.alphas_cumprod, table)
        assert scheduler.plan(7) == plan


def test_betas_given_as_a_tensor(other_defaults):
    betas = torch.linspace(0.001, 0.02, 50)
    expected = NoiseSchedule.from_betas(betas).alphas_cumprod
    other_defaults()
    assert same(NoiseSchedule.from_betas(betas).alphas_cumprod, expected)


def test_what_tells_the_network_the_timestep(other_defaults):
    timesteps = torch.tensor([0.0, 500.25, 999.0])
    expected = timestep_embedding(timesteps, 16)
    other_defaults()
    assert same(timestep_embedding(timesteps, 16), expected)


def test_a_network_told_a_fractional_timestep(other_defaults):
    unet = UNet2DConditionModel(UNetConfig(**{**UNET, **SD1})).requires_grad_(False)
    x, context = torch.ones(1, 4, 8, 8), torch.ones(1, 7, 32)
    expected = unet(x, 998.7, context)
    other_defaults()
    assert same(unet(x, 998.7, context), expected)
