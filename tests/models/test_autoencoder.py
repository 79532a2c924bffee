import pytest
import torch
from tiny_sd import VAE

from latentgen.models.autoencoder_kl import AutoencoderConfig, AutoencoderKL, Posterior


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_the_factor_is_what_encoder_and_decoder_do():
    vae = AutoencoderKL(AutoencoderConfig(**VAE)).requires_grad_(False)
    assert vae.config.factor == 4
    pictures, posterior = vae(draw(2, 3, 16, 24), draw(2, 4, 4, 6))
    assert pictures.shape == (2, 3, 16, 24)
    assert posterior.mean.shape == (2, 4, 4, 6)


def test_the_posterior_is_a_gaussian():
    posterior = Posterior(
        torch.cat([torch.full((1, 4, 64, 64), 3.0), torch.full((1, 4, 64, 64), 2 * 0.6931472)], dim=1)
    )
    samples = posterior.sample(draw(1, 4, 64, 64))
    assert samples.mean().item() == pytest.approx(3, abs=0.05)
    assert samples.std().item() == pytest.approx(2, abs=0.05)
    assert torch.equal(posterior.mode(), posterior.mean)


def test_the_divergence_is_zero_for_a_standard_normal_and_the_known_formula_else():
    assert Posterior(torch.zeros(2, 8, 3, 3)).kl().tolist() == [0, 0]
    mean, logvar = draw(2, 2, 4, 3, 3)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (logvar / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    got = Posterior(torch.cat([mean, logvar], dim=1)).kl()
    assert torch.allclose(got, expected.sum(dim=(1, 2, 3)), rtol=1e-5)


def test_log_variances_are_clamped():
    moments = torch.cat([torch.zeros(1, 1, 1, 2), torch.tensor([-1000.0, 1000.0]).view(1, 1, 1, 2)], dim=1)
    assert Posterior(moments).logvar.flatten().tolist() == [-30, 20]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"down_block_types": ("DownEncoderBlock2D",) * 2},
            "down_block_types=.* has 2 entries; the network has 3 levels",
        ),
        ({"up_block_types": ("UpDecoderBlock2D",)}, "up_block_types=.* has 1 entries; the network has 3 levels"),
        ({"down_block_types": ("KDownEncoderBlock2D",) * 3}, "down_block_types holds KDownEncoderBlock2D"),
        ({"scaling_factor": 0}, "scaling_factor=0 does not fit; it must be a finite number above 0"),
        ({"scaling_factor": -0.18}, "scaling_factor=-0.18 does not fit; it must be a finite number above 0"),
        (
            {"sample_size": (8, 8, 8)},
            r"sample_size=\(8, 8, 8\) does not fit; it must be .* or a list of 2, each a whole number",
        ),
        ({"norm_num_groups": 32}, r"block_out_channels holds \[8, 16, 16\], which norm_num_groups=32 must divide"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig(**{**VAE, **settings})
