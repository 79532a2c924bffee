"""A run is resumed with what it was started with, or says what is different."""

import json
import shutil
import warnings
from dataclasses import replace

import pytest
from tiny_runs import changed, make_pictures

from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.training import train_diffusion
from latentgen.training.checkpoint import checkpoints
from latentgen.training.record import new_record, resumed_record, settings_of
from latentgen.weights.config_files import write_json

REFUSED = {
    "[unet] attention_head_dim": 2,
    "[model] layers_per_block": 1,
    "[text] vocab_size": 530,
    "[loss] kl_weight": 1e-4,
    "[scheduler] prediction_type": "v_prediction",
    "[run] optimizer": "adamw",
    "tokenizer": "0123",
    "first stage encoder": "4567",
}
TOLD = {
    "[unet] sample_size": 8,
    "[model] scaling_factor": 0.2,
    "[scheduler] timestep_spacing": "trailing",
    "[run] batch_size": 8,
    "[run] learning_rate": 1e-3,
    "[samples] prompts": ["a"],
    "first stage decoder": "89ab",
    "pictures": "24 with fingerprint cdef",
    "condition_dropout": 0.1,
    "timestep_shift": 1.0,
}
FREE = {
    "[run] steps": 60,
    "[run] decay_steps": 0,
    "[run] checkpoint_every": 10,
    "[data] folder": "here",
    "autoencoder": "there",
}
BEFORE = REFUSED | TOLD | FREE


def checkpoint(folder, settings, changes=()):
    record = {**new_record(settings), "changes": list(changes)}
    write_json(folder / "step-00000004" / "state.json", {"step": 4, "made_by": record})
    return folder / "step-00000004"


def test_same_settings_need_no_word(tmp_path, recwarn):
    assert resumed_record(checkpoint(tmp_path, BEFORE), new_record(BEFORE)) == new_record(BEFORE)
    assert not recwarn


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_weights_were_trained_for_cannot_change(tmp_path, name):
    path = checkpoint(tmp_path, BEFORE)
    with pytest.raises(ValueError, match="was trained with other settings") as error:
        resumed_record(path, new_record(BEFORE | {name: "other", "[run] batch_size": 4}))
    assert f"{name} was {BEFORE[name]!r}, is 'other'. Set them back to resume" in str(error.value)


def test_other_changes_are_told_in_one_warning(tmp_path):
    path = checkpoint(tmp_path, BEFORE)
    with pytest.warns(UserWarning, match="resumed with changed settings") as caught:
        resumed_record(path, new_record(BEFORE | dict.fromkeys(TOLD | FREE, "other")))
    assert len(caught) == 1
    text = str(caught[0].message)
    assert all(f"{name} was {value!r}, is 'other'" in text for name, value in TOLD.items())
    assert text.count("is 'other'") == len(TOLD)


def test_changes_that_are_free_are_kept_without_a_word(tmp_path, recwarn):
    earlier = {"step": 2, "from": {"[run] steps": 20}}
    record = resumed_record(checkpoint(tmp_path, BEFORE, [earlier]), new_record(BEFORE | dict.fromkeys(FREE, "other")))
    assert not recwarn
    assert record["changes"] == [earlier, {"step": 4, "from": FREE}]
    assert record["settings"]["[run] steps"] == "other"


def test_only_what_both_know_is_compared(tmp_path, recwarn):
    record = new_record({"[unet] new_key": 1})
    assert resumed_record(checkpoint(tmp_path, {"[unet] old_key": 1}), record) == record
    write_json(tmp_path / "old" / "state.json", {"step": 4})
    assert resumed_record(tmp_path / "old", record) == record
    assert not recwarn


def test_names_are_those_of_the_file(diffusion_config):
    settings = settings_of(diffusion_config)
    assert settings["[run] steps"] == 60
    assert settings["[unet] layers_per_block"] == 1
    assert settings["[text] max_length"] == 12
    assert settings["condition_dropout"] == 0.25
    assert str(settings["autoencoder"]).endswith("autoencoder/model")


SHORT = {"steps": 2, "warmup_steps": 0, "sample_every": 0, "log_every": 1}


@pytest.fixture(scope="module")
def started(diffusion_config, tmp_path_factory):
    """A run of two steps."""
    output = tmp_path_factory.mktemp("started") / "run"
    config = changed(diffusion_config, run={**SHORT, "output": output})
    train_diffusion(config)
    return config


@pytest.fixture
def longer(started, tmp_path):
    """The same run, copied, that is to go on for another step."""
    shutil.copytree(started.run.output, tmp_path / "run")
    return changed(started, run={"output": tmp_path / "run", "steps": 3})


def test_result_says_what_made_it(started):
    record = json.loads((started.run.output / "config.json").read_text())
    newest = max(checkpoints(started.run.output / "checkpoints"))[1]
    assert json.loads((newest / "state.json").read_text())["made_by"] == record
    settings = record["settings"]
    assert settings["[run] steps"] == 2
    assert settings["[unet] cross_attention_dim"] == 16
    assert settings["[scheduler] num_train_timesteps"] == 1000
    assert settings["pictures"].startswith("24 with fingerprint ")
    assert "[run] output" not in settings  # a run may be moved


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        ("scheduler", {"prediction_type": "sample", "rescale_betas_zero_snr": False}),
        ("scheduler", {"beta_end": 0.02}),
        ("unet", {"attention_head_dim": 4}),
        ("text", {"vocab_size": 600}),
        ("text", {"num_attention_heads": 4}),
        ("text", {"max_length": 10}),
    ],
)
def test_another_problem_is_refused_before_the_long_work(longer, monkeypatch, section, settings):
    monkeypatch.setattr("latentgen.training.diffusion.check_pictures", lambda *_, **__: pytest.fail("too late"))
    before = getattr(longer, section)
    after = before | settings if isinstance(before, dict) else replace(before, **settings)
    with pytest.raises(ValueError, match=rf"\[{section}\] {next(iter(settings))} was .*, is "):
        train_diffusion(replace(longer, **{section: after}), resume=True)


def test_another_first_stage_is_refused(longer, tmp_path):
    vae = AutoencoderKL.from_pretrained(longer.autoencoder, device="cpu", dtype="float32")
    first = vae.config
    vae.config = replace(first, scaling_factor=3.0)
    vae.save_pretrained(tmp_path / "scaled")
    with pytest.raises(ValueError, match=r"first stage scaling_factor was .*, is 3\.0\. Set them back"):
        train_diffusion(replace(longer, autoencoder=tmp_path / "scaled"), resume=True)
    vae.config = first
    vae.encoder.conv_in.bias.data.add_(0.1)
    vae.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="first stage encoder was "):
        train_diffusion(replace(longer, autoencoder=tmp_path / "other"), resume=True)


def test_other_pictures_and_batches_are_told(longer, tmp_path):
    folder = make_pictures(tmp_path / "pictures", 8)
    config = changed(longer, data={"folder": folder}, run={"batch_size": 4})
    with pytest.warns(UserWarning, match=r"batch_size was 8, is 4; pictures was '24 with .*, is '8 with "):
        train_diffusion(config, resume=True)
    record = json.loads((config.run.output / "config.json").read_text())
    assert record["changes"][0]["step"] == 2
    assert record["changes"][0]["from"]["[run] batch_size"] == 8


def test_checkpoint_of_before_there_were_records_resumes(longer):
    state = max(checkpoints(longer.run.output / "checkpoints"))[1] / "state.json"
    facts = json.loads(state.read_text())
    del facts["made_by"]
    write_json(state, facts)
    (longer.run.output / "config.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train_diffusion(changed(longer, run={"batch_size": 4}), resume=True)
    newest = max(checkpoints(longer.run.output / "checkpoints"))[1]
    assert json.loads((newest / "state.json").read_text())["made_by"]["settings"]["[run] batch_size"] == 4
