"""`Text2ImagePipeline` against diffusers' `StableDiffusionPipeline`: the same folder, the same latents, 20 steps, float32.

The networks are tiny and random; tokenizers and scheduler settings are the published ones.
"""

import copy
import json

import diffusers
import numpy as np
import pytest
import torch
from tiny_sd import SCHEDULER, SD1, SD2, SD2_V, make_model_folder, their_pipeline

from latentgen.pipelines.text2image import Text2ImagePipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, with NumPy 2

LIMIT = 1e-4  # a tenth of what is asked for, and forty times what is measured
PROMPTS = ["a photo of an astronaut riding a horse on mars", "Zwei Katzen, 4K!!! (watercolour)"]
NEGATIVE = "blurry, low quality"
SCHEDULERS = {
    "PNDM": (diffusers.PNDMScheduler, "pndm"),
    "DDIM": (diffusers.DDIMScheduler, "ddim"),
    "Euler": (diffusers.EulerDiscreteScheduler, "euler"),
    "DPM-Solver++": (diffusers.DPMSolverMultistepScheduler, "dpm++"),
}
OPEN_CLIP = {"hidden_act": "gelu"}
FAMILIES = {
    "SD1.5": ("stable-diffusion-v1-5", {"unet": SD1, "encoder": {"hidden_act": "quick_gelu"}}),
    "SD2.1": ("stable-diffusion-2-1-base", {"unet": SD2, "encoder": OPEN_CLIP}),
    "SD2.1 v": (
        "stable-diffusion-2-1-base",
        {"unet": SD2_V, "encoder": OPEN_CLIP, "scheduler": {"prediction_type": "v_prediction"}},
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, reference, tmp_path_factory):
    """A folder, our pipeline and theirs."""
    model, settings = FAMILIES[request.param]
    published = json.loads((reference / model / "scheduler" / "scheduler_config.json").read_text())
    assert published.items() >= {**SCHEDULER, "_class_name": "PNDMScheduler"}.items()  # what tiny folders have
    folder = tmp_path_factory.mktemp("family") / "model"
    make_model_folder(folder, tokenizer=reference / model / "tokenizer", **settings)
    return folder, load(folder), their_pipeline(folder)


def load(folder, **options):
    pipe = Text2ImagePipeline.from_pretrained(folder, device="cpu", dtype="float32", **options)
    pipe.show_progress = False
    return pipe


def latents(count, height=8, width=8):
    return torch.randn(count, 4, height, width, generator=torch.Generator().manual_seed(0))


def both(ours, theirs, prompts=PROMPTS, scheduler=None, **options):
    """Pictures of both pipelines, (N, H, W, 3) in [0, 1]."""
    options = {"num_inference_steps": 20, "negative_prompt": [NEGATIVE] * len(prompts), **options}
    start = options.pop("latents", None)
    if start is None:
        start = latents(len(prompts))
    expected = theirs(prompts, latents=start.clone(), output_type="np", **options).images
    return ours(prompts, latents=start, output_type="np", scheduler=scheduler, **options).images, expected


def difference(*arguments, **options):
    got, expected = both(*arguments, **options)
    assert got.shape == expected.shape
    assert expected.std() > 0.02  # a picture, not a plain area
    return float(np.abs(got - expected).max())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_picture_is_that_of_diffusers(family, record, request, name):
    _, ours, theirs = family
    cls, short = SCHEDULERS[name]
    theirs.scheduler = cls.from_config(theirs.scheduler.config)
    largest = difference(ours, theirs, scheduler=short)
    record(f"picture, {request.node.callspec.id}", largest)
    assert largest <= LIMIT


def test_padding_of_the_tokenizer_matters(family):
    """Otherwise the test above would not see a pad token of the other family."""
    _, ours, _ = family
    start = latents(1)
    call = {"latents": start, "num_inference_steps": 2, "output_type": "np"}
    tokenizer = copy.deepcopy(ours.tokenizer)
    tokenizer.pad_token = "!" if tokenizer.pad_token != "!" else "<|endoftext|>"
    other = Text2ImagePipeline(**{**ours.components, "tokenizer": tokenizer})
    other.show_progress = False
    assert np.abs(ours(PROMPTS[0], **call).images - other(PROMPTS[0], **call).images).max() > LIMIT


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.0, "negative_prompt": None},
        {"guidance_scale": 3.0, "guidance_rescale": 0.7},
        {"height": 24, "width": 40, "latents": latents(2, 6, 10)},
        {"num_images_per_prompt": 2, "latents": latents(4)},
    ],
    ids=["no guidance", "rescaled", "not square", "two each"],
)
def test_options_mean_what_they_mean_in_diffusers(family, options):
    _, ours, theirs = family
    theirs.scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    assert difference(ours, theirs, scheduler="ddim", **{"num_inference_steps": 4, **options}) <= LIMIT


def test_clip_skip_leaves_out_the_layers_that_diffusers_leaves_out(family, monkeypatch):
    """Without guidance: under it, diffusers leaves nothing out for the negative prompt, and here both are treated alike."""
    _, ours, theirs = family
    if not hasattr(theirs.text_encoder, "text_model"):  # diffusers looks for a level that transformers gave up
        monkeypatch.setitem(theirs.text_encoder.__dict__, "text_model", theirs.text_encoder)
    theirs.scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    call = {"num_inference_steps": 4, "guidance_scale": 1.0, "negative_prompt": None}
    assert difference(ours, theirs, scheduler="ddim", clip_skip=1, **call) <= LIMIT
    assert (
        np.abs(both(ours, theirs, scheduler="ddim", **call)[0] - both(ours, theirs, clip_skip=1, **call)[1]).max()
        > LIMIT
    )


def test_a_saved_folder_is_the_same_model_for_diffusers(family, tmp_path):
    _, ours, theirs = family
    ours.save_pretrained(tmp_path / "saved")
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    for part in ("unet", "vae"):
        first, second = getattr(ours, part).state_dict(), getattr(again, part).state_dict()
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    for first, second in zip(ours.text_encoder.parameters(), again.text_encoder.parameters(), strict=True):
        assert torch.equal(first, second)
    call = {"latents": latents(2), "num_inference_steps": 4, "output_type": "np", "negative_prompt": [NEGATIVE] * 2}
    theirs.scheduler = diffusers.PNDMScheduler.from_config(theirs.scheduler.config)
    assert np.array_equal(theirs(PROMPTS, **call).images, again(PROMPTS, **call).images)
    assert np.abs(load(tmp_path / "saved")(PROMPTS, **call).images - again(PROMPTS, **call).images).max() <= LIMIT


def test_a_folder_that_diffusers_saved_is_read(family, tmp_path):
    _, ours, theirs = family
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="100KB", variant="fp16")
    again = load(tmp_path / "theirs", variant="fp16")
    call = {"latents": latents(2), "num_inference_steps": 4, "output_type": "pt", "scheduler": "ddim"}
    assert torch.equal(again(PROMPTS, **call).images, ours(PROMPTS, **call).images)
