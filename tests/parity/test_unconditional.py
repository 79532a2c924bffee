"""`UnconditionalPipeline` against diffusers' `LDMPipeline`: the same folder and seeds, float32."""

import json
import shutil
import warnings

import diffusers
import numpy as np
import pytest
import torch
from test_unet2d import TINY
from test_vq_model import VAE
from tiny_sd import scatter

from latentgen.models import VQModel
from latentgen.pipelines.unconditional import UnconditionalPipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, with NumPy 2

LIMIT = 1e-4
SCHEDULER = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear", "clip_sample": False}


@pytest.fixture(scope="module", params=["VQ", "KL"])
def pipes(request, tmp_path_factory):
    """Ours and theirs, of one folder."""
    torch.manual_seed(0)
    if request.param == "VQ":
        vae = scatter(diffusers.VQModel(**{**VAE, "latent_channels": 3, "scaling_factor": 1.0}))
        with torch.no_grad():
            vae.quantize.embedding.weight.normal_()
    else:
        vae = scatter(diffusers.AutoencoderKL(**{**VAE, "latent_channels": 3, "scaling_factor": 0.5}))
    unet = scatter(diffusers.UNet2DModel(**TINY))
    folder = tmp_path_factory.mktemp("ldm") / "model"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the pipeline is deprecated
        theirs = diffusers.LDMPipeline(vqvae=vae, unet=unet, scheduler=diffusers.DDIMScheduler(**SCHEDULER))
    theirs.save_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    ours = UnconditionalPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    ours.show_progress = False
    return ours, theirs, folder


def test_what_published_files_leave_out(pipes, tmp_path):
    """No offset, as diffusers reads it for this pipeline; and latents of a codebook are not scaled, where diffusers is wrong."""
    *_, folder = pipes
    shutil.copytree(folder, tmp_path / "older")
    leave_out(tmp_path / "older" / "scheduler" / "scheduler_config.json", "steps_offset", "clip_sample")
    leave_out(tmp_path / "older" / "vqvae" / "config.json", "scaling_factor")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = UnconditionalPipeline.from_pretrained(tmp_path / "older", device="cpu", dtype="float32")
    assert (pipe.scheduler.steps_offset, pipe.scheduler.clip_sample) == (0, False)
    assert pipe.vqvae.config.scaling_factor == (1.0 if isinstance(pipe.vqvae, VQModel) else 0.18215)


def leave_out(path, *keys):
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in keys}))


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_a_picture_is_that_of_diffusers(pipes, name):
    ours, theirs, folder = pipes
    cls = {"ddim": diffusers.DDIMScheduler, "euler": diffusers.EulerDiscreteScheduler}[name]
    theirs.scheduler = cls.from_pretrained(folder / "scheduler")
    theirs.scheduler.set_timesteps(
        10
    )  # theirs asks for Euler's first noise level before it says how many steps there are
    generators = [torch.Generator().manual_seed(s) for s in (11, 12)]
    expected = theirs(batch_size=2, generator=generators, num_inference_steps=10, output_type="np").images
    got = ours(num_images=2, seed=11, num_inference_steps=10, output_type="np", scheduler=name).images
    assert got.shape == expected.shape == (2, 32, 32, 3)
    assert expected.std() > 0.02
    difference = np.abs(got - expected)
    assert difference.max() <= LIMIT


def test_folders_go_both_ways(pipes, tmp_path):
    ours, theirs, _ = pipes
    ours.save_pretrained(tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = diffusers.LDMPipeline.from_pretrained(tmp_path / "saved")
    for part in ("unet", "vqvae"):
        first, second = getattr(again, part).state_dict(), getattr(theirs, part).state_dict()
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_size_seeds_and_neighbours(pipes):
    ours, *_ = pipes
    call = {"num_inference_steps": 2, "output_type": "pt"}
    three = ours(num_images=3, seed=5, height=16, width=24, **call)
    assert (three.images.shape, three.seeds) == ((3, 3, 16, 24), [5, 6, 7])
    alone = ours(seed=6, height=16, width=24, **call).images[0]
    assert torch.allclose(three.images[1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("options", "message"), [
    ({"num_images": 0}, "num_images=0 must be a whole number of at least 1"),
    ({"height": 30}, "height=30 is not a positive multiple of 4"),
    ({"latents": torch.zeros(2, 3, 8, 8)}, r"latents has shape \(2, 3, 8, 8\); it must be \(1, 3, 8, 8\)"),
])  # fmt: skip
def test_bad_input(pipes, options, message):
    with pytest.raises(ValueError, match=message):
        pipes[0](**options)


def test_other_networks_are_refused(pipes):
    ours, *_ = pipes
    for settings, message in (
        ({"in_channels": 6}, "the UNet takes 6 channels"),
        ({"num_class_embeds": 5}, "class labels"),
    ):
        other = type(ours.unet).from_config({**TINY, **settings})
        with pytest.raises(ValueError, match=message):
            UnconditionalPipeline.from_pipe(ours, unet=other)
