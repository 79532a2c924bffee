"""docs/training.md: its table is that of the config classes, and its files run."""

import re
import tomllib
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
from tiny_runs import changed, make_pictures

from latentgen.pipelines.superres import SuperResPipeline
from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.training import AutoencoderTraining, DiffusionTraining, load_config, train_autoencoder, train_diffusion

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
FILES = re.findall(r"^```toml\n(.*?)^```", PAGE, re.M | re.S)


def default(field):
    """What the page says of a field's default, as a TOML value."""
    if field.default is MISSING and field.default_factory is MISSING:
        return "required"
    value = field.default if field.default is not MISSING else field.default_factory()
    return "none" if value is None else list(value) if isinstance(value, tuple) else value


def keys_of_the_classes():
    found = {}
    for training in (AutoencoderTraining, DiffusionTraining):
        hints = get_type_hints(training)
        for field in fields(training):
            section = next((k for k in (hints[field.name], *get_args(hints[field.name])) if is_dataclass(k)), None)
            if section is not None:
                found |= {(f"[{field.name}]", inner.name): default(inner) for inner in fields(section)}
            elif {Path, float, str} & {hints[field.name], *get_args(hints[field.name])} and get_origin(
                hints[field.name]
            ) is not dict:
                found["", field.name] = default(field)
    return found


def keys_of_the_page():
    found = {}
    for section, keys, defaults in re.findall(r"^\|(.*?)\| (`.*?`) \| (.*?) \|", PAGE, re.M):
        names = [name.strip("`") for name in keys.split(", ")]
        for name, text in zip(names, defaults.split(", "), strict=True):
            value = tomllib.loads(f"value = {text.strip('`')}")["value"] if text.startswith("`") else text
            found[section.strip(" `"), name] = value
    return found


def test_every_key_and_default_stands_in_the_table():
    assert keys_of_the_page() == keys_of_the_classes()


@pytest.fixture
def files(tmp_path):
    make_pictures(tmp_path / "pictures", 2)
    for name, text in zip(("autoencoder", "diffusion", "superres"), FILES, strict=True):
        (tmp_path / f"{name}.toml").write_text(text)
    superres, rest = FILES[2], FILES[1].partition("[run]")[2]
    both = (
        "[run]"
        + rest.partition("[text]")[0]
        + "[scheduler]"
        + rest.partition("[scheduler]")[2].partition("[samples]")[0]
    )
    (tmp_path / "superres.toml").write_text(superres + both)
    return tmp_path


def test_both_stages_run_as_they_stand_there(files):
    """In small: two pictures, one step, narrower networks."""
    run = {"steps": 1, "batch_size": 1, "decay_steps": 0, "sample_every": 0}
    first = load_config(AutoencoderTraining, files / "autoencoder.toml")
    model = first.model | {"block_out_channels": [c // 2 for c in first.model["block_out_channels"]]}
    train_autoencoder(changed(first, run=run, data={"size": 64, "crop": 32}, model=model))
    second = load_config(DiffusionTraining, files / "diffusion.toml")
    unet = second.unet | {"block_out_channels": [c // 4 for c in second.unet["block_out_channels"]]}
    folder = train_diffusion(changed(second, run=run, data={"size": 64}, unet=unet))
    assert folder == files / "diffusion" / "model"
    pipe = Text2ImagePipeline.from_pretrained(folder, device="cpu", dtype="float32")
    assert pipe.unet.config.sample_size == 8


def test_super_resolution_runs_as_it_stands_there(files):
    """In small; what the page leaves out is as in the file for stage 2."""
    run = {"steps": 1, "batch_size": 1, "decay_steps": 0, "sample_every": 0}
    first = load_config(AutoencoderTraining, files / "autoencoder.toml")
    model = {name: value[:3] for name, value in first.model.items()}  # a factor of 4
    model |= {"block_out_channels": [c // 2 for c in model["block_out_channels"]]}
    train_autoencoder(changed(first, run=run, data={"size": 64, "crop": 32}, model=model))
    second = load_config(DiffusionTraining, files / "superres.toml")
    unet = second.unet | {"block_out_channels": [c // 4 for c in second.unet["block_out_channels"]]}
    folder = train_diffusion(changed(second, run=run, data={"size": 64, "crop": 32}, unet=unet))
    pipe = SuperResPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    assert pipe.vae.config.factor == 4
