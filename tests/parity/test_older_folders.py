"""Folders whose configs are older than some keys: what is left out means what it means in diffusers' pipeline.

diffusers corrects configs when a pipeline is built: `steps_offset` becomes 1, `clip_sample` false, and the size of an old UNet
64. Here that is so for what the file leaves out; what it says is kept, with a warning (the second part of this file).
"""

import json
import shutil
import warnings

import diffusers
import pytest
import torch
from tiny_sd import SCHEDULER, SD2_V, make_model_folder, their_pipeline

from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.schedulers import SCHEDULERS, DDIMScheduler

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # theirs, with NumPy 2
    pytest.mark.filterwarnings("ignore:The configuration file of:FutureWarning"),  # what it corrects
]
LIMIT = 1e-5  # relative, of the latents
KEYS = ["steps_offset", "clip_sample"]
LEFT_OUT = [["steps_offset"], ["clip_sample"], KEYS]


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    return make_model_folder(
        tmp_path_factory.mktemp("old") / "model", unet=SD2_V, scheduler={"prediction_type": "v_prediction"}
    )


@pytest.fixture
def folder(whole_folder, tmp_path):
    return shutil.copytree(whole_folder, tmp_path / "model")


def write_scheduler(folder, name, *, without=(), **settings):
    """Give the folder another scheduler, with latents' settings less the keys `without`."""
    config = {"_class_name": name, "prediction_type": "v_prediction", **SCHEDULER, **settings}
    config = {key: value for key, value in config.items() if key not in without}
    if name == "LCMScheduler":  # the only one of theirs that does not know the others' fields
        config.pop("skip_prk_steps")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", name]
    (folder / "model_index.json").write_text(json.dumps(index))


def load(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return load_with_warnings(folder)


def load_with_warnings(folder):
    return Text2ImagePipeline.from_pretrained(folder, device="cpu", dtype="float32")


def difference(ours, theirs, **options):
    call = {"num_inference_steps": 4, "output_type": "latent", "guidance_scale": 1.0}
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    expected = theirs("a cat", latents=start.clone(), generator=generator, **call).images
    got = ours("a cat", latents=start, show_progress=False, **call, **options).images
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("without", LEFT_OUT, ids="-".join)
@pytest.mark.parametrize("name", [n for n in SCHEDULERS if n[:4] not in ("DDPM", "LCMS") and "Ancestral" not in n])
def test_what_the_file_leaves_out_takes_the_latent_models_value(folder, name, without):
    """For every deterministic class; the draws of the others differ. "leading" spacing, where the offset has an effect."""
    write_scheduler(folder, name, without=without, timestep_spacing="leading")
    assert difference(load(folder), their_pipeline(folder)) <= LIMIT


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_class_has_the_value_that_diffusers_gives_it(folder, name):
    write_scheduler(folder, name, without=KEYS)
    ours, theirs = load(folder).scheduler, their_pipeline(folder).scheduler
    for key in KEYS:
        if hasattr(ours, key):
            assert getattr(ours, key) == theirs.config[key], key


def test_null_and_diffusers_own_mark_say_nothing_either(folder):
    write_scheduler(folder, "DDIMScheduler", clip_sample=None, steps_offset=None)
    assert load(folder).scheduler == DDIMScheduler.from_config({**SCHEDULER, "prediction_type": "v_prediction"})
    write_scheduler(folder, "DDIMScheduler", clip_sample=True, _use_default_values=["clip_sample"])
    assert load(folder).scheduler.clip_sample is False


def test_another_scheduler_made_from_the_config_does_not_clip_either(folder):
    """diffusers' own swap would, with an offset of 0: it corrects what the folder's class has, and PNDM does not clip."""
    write_scheduler(folder, "PNDMScheduler", without=KEYS)
    ours, theirs = load(folder), their_pipeline(folder)
    config = theirs.scheduler.config
    theirs.scheduler = diffusers.DDIMScheduler.from_config(config, clip_sample=False, steps_offset=1)
    assert difference(ours, theirs, scheduler="ddim") <= LIMIT
    theirs.scheduler = diffusers.DDIMScheduler.from_config(config)
    assert (theirs.scheduler.config.clip_sample, theirs.scheduler.config.steps_offset) == (True, 0)
    assert difference(ours, theirs, scheduler="ddim") > 0.01


# What the file says.


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"clip_sample": True}, ["clip_sample"]),
        ({"steps_offset": 0, "timestep_spacing": "leading"}, ["steps_offset"]),
        ({"steps_offset": 0, "clip_sample": True}, ["steps_offset", "clip_sample"]),
    ],
)
@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler"])
def test_what_the_file_says_is_kept_with_one_warning(folder, name, settings, named):
    write_scheduler(folder, name, **settings)
    with pytest.warns(UserWarning, match="scheduler_config.json says") as caught:
        pipe = load_with_warnings(folder)
    assert len(caught) == 1
    message = str(caught[0].message)
    for key in KEYS:
        assert (f"{key}={settings.get(key)!r}" in message) == (key in named)
        assert pipe.scheduler.config[key] == {**SCHEDULER, **settings}[key]

    # What the message says to do makes it diffusers' picture.
    remedy = message[message.index("pipe.scheduler = ") :].rstrip(".")
    exec(remedy, {"pipe": pipe})
    assert {key: pipe.scheduler.config[key] for key in KEYS} == {"steps_offset": 1, "clip_sample": False}
    assert difference(pipe, their_pipeline(folder)) <= LIMIT


def test_an_offset_without_effect_is_no_reason_to_warn(folder):
    write_scheduler(folder, "DDIMScheduler", steps_offset=0, timestep_spacing="trailing")
    assert load(folder).scheduler.steps_offset == 0


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_that_was_built_comes_back_from_the_folder(folder, tmp_path, name):
    """Its defaults are not those of a latent model's folder, so they are written there."""
    pipe = load(folder)
    pipe.scheduler = SCHEDULERS[name](timestep_spacing="trailing")
    pipe.save_pretrained(tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it clips: tested above
        assert load_with_warnings(tmp_path / "saved").scheduler == pipe.scheduler
    assert getattr(diffusers, name).from_pretrained(tmp_path / "saved" / "scheduler").config.steps_offset == 0


# The size.


@pytest.mark.parametrize(
    ("version", "size", "becomes"),
    [
        ("0.6.0", 8, 64),
        ("0.8.1.dev0", 63, 64),
        ("0.6.0", 96, 96),
        ("0.6.0", [8, 8], (8, 8)),
        ("0.6.0", None, None),
        ("0.9.0.dev0", 8, 8),
        ("0.10.0", 8, 8),
        ("1.0", 8, 8),
        (None, 8, 8),
    ],
)
def test_an_old_unets_size(folder, version, size, becomes):
    path = folder / "unet" / "config.json"
    config = {**json.loads(path.read_text()), "_diffusers_version": version, "sample_size": size}
    if version is None:
        del config["_diffusers_version"]
    path.write_text(json.dumps(config))
    theirs = their_pipeline(folder).unet.config.sample_size
    assert (tuple(theirs) if isinstance(theirs, list) else theirs) == becomes
    assert load(folder).unet.config.sample_size == becomes
