"""`SuperResPipeline` against diffusers' `LDMSuperResolutionPipeline`: the same folder, latents and picture, float32."""

import warnings

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from test_unet2d import TINY
from test_vq_model import VAE
from tiny_sd import scatter

from latentgen.pipelines.superres import SuperResPipeline

LIMIT = 1e-4
SCHEDULER = {"beta_start": 0.0015, "beta_end": 0.0155, "beta_schedule": "scaled_linear", "clip_sample": False}


@pytest.fixture(scope="module", params=["VQ", "VQ, default scale", "KL"])
def pipes(request, tmp_path_factory):
    """Ours and theirs, of one folder."""
    torch.manual_seed(0)
    three = {**VAE, "latent_channels": 3, "scaling_factor": 0.18215 if "default" in request.param else 1.0}
    if request.param.startswith("VQ"):
        vae = scatter(diffusers.VQModel(**three))
        with torch.no_grad():
            vae.quantize.embedding.weight.normal_()
    else:
        vae = scatter(diffusers.AutoencoderKL(**three))
    unet = scatter(diffusers.UNet2DModel(**{**TINY, "in_channels": 6}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the pipeline is deprecated
        scheduler = diffusers.DDIMScheduler(**SCHEDULER)
        theirs = diffusers.LDMSuperResolutionPipeline(vqvae=vae, unet=unet, scheduler=scheduler)
    folder = tmp_path_factory.mktemp("ldm") / "model"
    theirs.save_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    ours = SuperResPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    ours.show_progress = False
    return ours, theirs, folder


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_the_same_picture(pipes, eta, record):
    ours, theirs, _ = pipes
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8))
    start = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(1))
    call = {"num_inference_steps": 5, "eta": eta}
    noise = [torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(k)) for k in range(2, 7)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion_superresolution.randn_tensor",
                      lambda *_, **__: start)  # fmt: skip
        fresh = iter(noise)
        patch.setattr("diffusers.schedulers.scheduling_ddim.randn_tensor", lambda *_, **__: next(fresh))
        expected = theirs(small, output_type="np", **call).images
    again = iter(noise)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentgen.pipelines.superres.NoiseStream.__call__", lambda *_: next(again))
        drawn = ours(image=small, latents=start, output_type="np", **call).images
    difference = float(np.abs(drawn - expected).max())
    assert difference <= LIMIT
    if not eta:
        record(f"LDM super-resolution, {type(ours.vae).__name__}", difference)
    assert np.ptp(expected) > 0.1


def test_theirs_loads_what_ours_writes(pipes, tmp_path):
    ours, theirs, _ = pipes
    ours.save_pretrained(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = diffusers.LDMSuperResolutionPipeline.from_pretrained(tmp_path / "model")
    for name in ("vqvae", "unet"):
        mine, other = getattr(again, name).state_dict(), getattr(theirs, name).state_dict()
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)
