import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from latentgen.diffusion import guide


def outputs():
    return torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_scale_0_and_1_are_the_two_outputs():
    u, c = outputs()
    assert torch.equal(guide(u, c, 0.0), u)
    assert torch.allclose(guide(u, c, 1.0), c, rtol=0, atol=1e-6)


def test_a_larger_scale_goes_on_along_the_line():
    u, c = outputs()
    assert torch.allclose(guide(u, c, 7.5) - u, 7.5 * (c - u), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rescale", [0.0, 0.3, 0.7, 1.0])
def test_rescaling_is_that_of_diffusers(rescale):
    u, c = outputs()
    theirs = rescale_noise_cfg(u + 7.5 * (c - u), c, guidance_rescale=rescale)
    assert torch.allclose(guide(u, c, 7.5, rescale), theirs, rtol=1e-6, atol=1e-6)


def test_full_rescaling_gives_each_image_the_standard_deviation_of_its_conditional_output():
    u, c = outputs()
    c = c * torch.tensor([1.0, 2.0, 5.0]).view(-1, 1, 1, 1)
    assert torch.allclose(guide(u, c, 7.5, 1.0).std(dim=(1, 2, 3)), c.std(dim=(1, 2, 3)))
