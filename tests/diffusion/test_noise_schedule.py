import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from latentgen.diffusion import NoiseSchedule, make_betas
from latentgen.diffusion.noise_schedule import BETA_SCHEDULES, rescale_to_zero_snr


def schedule(name="scaled_linear", **options):
    return NoiseSchedule.from_betas(make_betas(name, 0.00085, 0.012, 1000), **options)


@pytest.mark.parametrize("name", BETA_SCHEDULES)
@pytest.mark.parametrize("count", [1, 10, 1000])
def test_betas_and_their_products_are_those_of_diffusers(name, count):
    theirs = diffusers.DDIMScheduler(num_train_timesteps=count, beta_start=0.00085, beta_end=0.012, beta_schedule=name)
    betas = make_betas(name, 0.00085, 0.012, count)
    assert torch.equal(betas, theirs.betas)
    assert torch.equal(NoiseSchedule.from_betas(betas).alphas_cumprod, theirs.alphas_cumprod)


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="beta_schedule='exponential' is not known; use one of linear"):
        make_betas("exponential", 0.1, 0.2, 10)


@pytest.mark.parametrize("name", BETA_SCHEDULES)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_signal_and_noise_share_one_unit_of_variance(name, zero_terminal_snr):
    alpha, sigma = schedule(name, zero_terminal_snr=zero_terminal_snr).alpha_sigma(torch.arange(1000))
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(1000), rtol=0, atol=1e-6)
    assert (alpha.diff() < 0).all()


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_zero_snr_is_the_published_algorithm(name):
    betas = make_betas(name, 0.00085, 0.012, 1000)
    ours, theirs = rescale_to_zero_snr(betas), rescale_zero_terminal_snr(betas)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_zero_snr_empties_the_last_timestep_and_keeps_the_first(name):
    plain, rescaled = schedule(name), schedule(name, zero_terminal_snr=True)
    assert rescaled.alphas_cumprod[-1] == 0
    assert (rescaled.alphas_cumprod[:-1] > 0).all()
    assert rescaled.alphas_cumprod[0].item() == pytest.approx(plain.alphas_cumprod[0].item(), rel=1e-6)


def test_noise_is_added_by_timestep():
    x0, eps = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 500, 999])
    theirs = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert torch.allclose(schedule().add_noise(x0, eps, timesteps), theirs.add_noise(x0, eps, timesteps), atol=1e-6)


@pytest.mark.parametrize("betas", [[], [0.1, 0.0], [0.1, 1.0], [0.1, float("nan")], [[0.1, 0.2]]])
def test_betas_that_are_none_are_refused(betas):
    with pytest.raises(ValueError, match="betas must be a non-empty list of numbers in"):
        NoiseSchedule.from_betas(betas)


def test_trained_betas_are_taken_as_they_are():
    assert NoiseSchedule.from_betas((0.5, 0.5)).alphas_cumprod.tolist() == [0.5, 0.25]
