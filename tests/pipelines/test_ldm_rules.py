"""The rules of the original scripts, written out from ldm/models/diffusion/ddim.py's formulas, and what follows them."""

import numpy as np
import pytest
import torch
from PIL import Image

from latentgen import DDIMScheduler, Img2ImgPipeline
from latentgen.diffusion.noise import NoiseStream


def theirs(alphas_cumprod, n):
    """`make_ddim_timesteps("uniform")` and `make_ddim_sampling_parameters`: timesteps, alphas and previous alphas, rising."""
    trained = len(alphas_cumprod)
    timesteps = np.asarray(list(range(0, trained, trained // n))) + 1
    alphas = alphas_cumprod[timesteps]
    return timesteps, alphas, np.asarray([alphas_cumprod[0], *alphas_cumprod[timesteps[:-1]].tolist()])


@pytest.mark.parametrize("n", [1, 5, 20, 50, 125, 250, 500])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_steps_are_those_of_the_scripts(n, eta):
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, eta=eta).as_in_ldm()
    timesteps, alphas, before = theirs(scheduler.schedule.alphas_cumprod.double().numpy(), n)
    plan = scheduler.plan(n)
    assert plan.timesteps == tuple(timesteps[::-1].astype(float))
    generator = torch.Generator().manual_seed(0)
    x, eps, noise = (torch.randn(1, 1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    for i in range(n):
        a, a_prev = alphas[n - 1 - i], before[n - 1 - i]
        sigma = eta * np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
        predicted = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        expected = np.sqrt(a_prev) * predicted + np.sqrt(1 - a_prev - sigma**2) * eps + sigma * noise
        reached, _ = scheduler.step(lambda *_, p=predicted: (p, eps), x, i, plan, None, lambda i: noise)
        assert torch.allclose(reached, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n", "use"), [(30, 25), (1000, 500), (999, 500)])
def test_numbers_of_steps_that_the_scripts_do_not_take(n, use):
    """Of 30 they make 31, and of more than 500 they ask for timestep 1000 of 0 to 999."""
    with pytest.raises(ValueError, match=f"num_inference_steps={n}: the original scripts step by .*; use {use}, or"):
        DDIMScheduler(clip_sample=False).as_in_ldm().plan(n)
    assert len(DDIMScheduler(clip_sample=False).as_in_ldm().plan(use)) == use


@torch.no_grad()
def test_image_to_image_starts_one_knot_noisier(pipe):
    """`stochastic_encode` to index t_enc, `decode` from t_enc - 1."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config).as_in_ldm()
    timesteps, alphas, before = theirs(scheduler.schedule.alphas_cumprod.double().numpy(), 10)
    ours = Img2ImgPipeline.from_pipe(pipe)
    call = {"num_inference_steps": 10, "guidance_scale": 1, "seed": 3, "output_type": "latent", "show_progress": False}
    drawn = ours("a cat", image, strength=0.45, scheduler=scheduler, **call).images

    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    noise = NoiseStream([3], tuple(drawn.shape[1:]))
    x0 = pipe.vae.scale(pipe.vae.encode(pixels).sample(noise.draw()))
    t_enc = int(0.45 * 10)
    x = np.sqrt(alphas[t_enc]) * x0 + np.sqrt(1 - alphas[t_enc]) * noise.draw()
    ids = pipe.tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids
    context = pipe.text_encoder(ids).last_hidden_state
    for index in reversed(range(t_enc)):
        eps = pipe.unet(x.float(), float(timesteps[index]), context)
        predicted = (x - np.sqrt(1 - alphas[index]) * eps) / np.sqrt(alphas[index])
        x = np.sqrt(before[index]) * predicted + np.sqrt(1 - before[index]) * eps
    assert torch.allclose(drawn, x.float(), rtol=0, atol=1e-3)
    assert (ours("a cat", image, strength=0.45, scheduler="ddim", **call).images - drawn).abs().max() > 1e-2
    with pytest.raises(ValueError, match="strength=1 runs every step, and under the original scripts' rules"):
        ours("a cat", image, strength=1, scheduler=scheduler, **call)


def test_the_rules_are_no_part_of_the_config():
    assert "ldm" not in DDIMScheduler().as_in_ldm().config
