"""Reading, writing and passing on a `scheduler_config.json`."""

from __future__ import annotations

import dataclasses
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from latentgen.schedulers import (
    SCHEDULERS,
    SHORT_NAMES,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    scheduler_by_name,
)
from latentgen.schedulers.config import INERT, NEUTRAL, RULES

SD15 = {  # the file of stable-diffusion-v1-5
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers', with NumPy 2

OTHER_VALUES: dict[str, Any] = {  # one that is not the default, for every field
    "num_train_timesteps": 500,
    "beta_start": 0.001,
    "beta_end": 0.0125,
    "beta_schedule": "squaredcos_cap_v2",
    "trained_betas": tuple(0.01 + 0.00001 * k for k in range(500)),
    "prediction_type": "v_prediction",
    "steps_offset": 2,
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": None,  # the other of the two: see `changed`
    "clip_sample": None,
    "clip_sample_range": 2.5,
    "variance_type": "fixed_large",
    "skip_prk_steps": True,
    "use_karras_sigmas": True,
    "final_sigmas_type": "sigma_min",
    "solver_order": 3,
    "algorithm_type": "sde-dpmsolver++",
    "solver_type": "heun",
    "lower_order_final": False,
    "euler_at_final": True,
    "original_inference_steps": 25,
    "timestep_scaling": 5.0,
}


@pytest.fixture(autouse=True)
def _no_surprising_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def changed(cls: Any) -> Any:
    """The class with every field of the file different from its default."""
    default = {f.name: f.default for f in dataclasses.fields(cls)}
    values = {n: OTHER_VALUES[n] for n in cls._fields(runtime=False)}
    return cls(**{n: (not default[n]) if v is None else v for n, v in values.items()})


@pytest.mark.parametrize("cls", SCHEDULERS.values())
def test_round_trip_through_a_config_and_a_file(cls: Any, tmp_path: Path) -> None:
    for scheduler in (cls(), changed(cls), cls.from_config({**SD15, "_class_name": cls.__name__})):
        assert cls.from_config(scheduler.config) == scheduler
        scheduler.save_pretrained(tmp_path / "scheduler")
        loaded = cls.from_pretrained(tmp_path, subfolder="scheduler")
        assert loaded == scheduler
        assert loaded.config == json.loads(json.dumps(scheduler.config)) | {"trained_betas": scheduler.trained_betas}
        assert pickle.loads(pickle.dumps(scheduler)) == scheduler
        assert hash(loaded) == hash(scheduler)
    assert [path.name for path in (tmp_path / "scheduler").iterdir()] == ["scheduler_config.json"]


@pytest.mark.parametrize("cls", SCHEDULERS.values())
def test_diffusers_reads_our_file_and_we_read_theirs(cls: Any, tmp_path: Path) -> None:
    theirs = getattr(diffusers, cls.__name__)
    for scheduler in (cls(), changed(cls), cls.from_config(SD15)):
        scheduler.save_pretrained(tmp_path)
        there = theirs.from_pretrained(tmp_path)
        for name in set(cls._fields(runtime=False)) & set(there.config):
            ours, value = getattr(scheduler, name), there.config[name]
            assert ours == (tuple(value) if isinstance(value, list) else value), name
        there.save_pretrained(tmp_path / "theirs")
        if scheduler.rescale_betas_zero_snr and "rescale_betas_zero_snr" not in there.config:
            continue  # their PNDM and Heun do not write what they do not read
        assert cls.from_pretrained(tmp_path / "theirs") == scheduler
        assert cls.from_config(there.config) == scheduler  # their object marks what the file left out


def test_what_a_file_leaves_out_takes_the_next_classs_default() -> None:
    pndm = PNDMScheduler.from_config(SD15)
    dpm = DPMSolverMultistepScheduler.from_config(pndm.config)
    assert (pndm.timestep_spacing, dpm.timestep_spacing) == ("leading", "linspace")
    assert (dpm.beta_start, dpm.steps_offset, dpm.beta_schedule) == (0.00085, 1, "scaled_linear")
    said = DPMSolverMultistepScheduler.from_config({**SD15, "timestep_spacing": "leading"})
    assert EulerDiscreteScheduler.from_config(said.config).timestep_spacing == "leading"
    built = DDIMScheduler(timestep_spacing="trailing")
    assert DPMSolverMultistepScheduler.from_config(built.config).timestep_spacing == "trailing"


def test_what_other_classes_need_is_carried_along() -> None:
    there_and_back = PNDMScheduler.from_config(SD15)
    for cls in (DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, DDPMScheduler, PNDMScheduler):
        there_and_back = cls.from_config(there_and_back.config)
    assert there_and_back == PNDMScheduler.from_config(SD15)
    assert there_and_back.config == PNDMScheduler.from_config(SD15).config
    assert there_and_back.config["clip_sample"] is False  # PNDM has no such field; DDIM's default is True
    assert dataclasses.replace(there_and_back, steps_offset=0).config["clip_sample"] is False


def test_training_facts_go_along_even_if_they_are_defaults() -> None:
    """HeunDiscreteScheduler and LCMScheduler have other default betas; a model keeps those it was trained with."""
    trained = DDPMScheduler()
    for cls in (HeunDiscreteScheduler, LCMScheduler):
        scheduler = cls.from_config(trained.config)
        assert scheduler.schedule.alphas_cumprod.equal(trained.schedule.alphas_cumprod)


def test_eta_belongs_to_a_run() -> None:
    scheduler = dataclasses.replace(DDIMScheduler.from_config(SD15), eta=0.5)
    assert scheduler.eta == 0.5
    assert "eta" not in scheduler.config
    assert scheduler.config == DDIMScheduler.from_config(SD15).config


def test_an_unknown_key_is_named_in_a_warning_and_dropped() -> None:
    with pytest.warns(UserWarning, match="DDIMScheduler does not know 'beta_strat', 'wibble'"):
        scheduler = DDIMScheduler.from_config({**SD15, "beta_strat": 0.1, "wibble": 2})
    assert "wibble" not in scheduler.config


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (DDIMScheduler, "thresholding", True),
        (DDPMScheduler, "variance_type", "learned"),
        (DDPMScheduler, "variance_type", "learned_range"),
        (DDPMScheduler, "beta_schedule", "sigmoid"),
        (DPMSolverMultistepScheduler, "variance_type", "learned_range"),
        (DPMSolverMultistepScheduler, "use_lu_lambdas", True),
        (DPMSolverMultistepScheduler, "use_flow_sigmas", True),
        (DPMSolverMultistepScheduler, "lambda_min_clipped", -5.1),
        (DPMSolverMultistepScheduler, "algorithm_type", "dpmsolver"),
        (DPMSolverMultistepScheduler, "prediction_type", "flow_prediction"),
        (EulerDiscreteScheduler, "use_exponential_sigmas", True),
        (EulerDiscreteScheduler, "use_beta_sigmas", True),
        (EulerDiscreteScheduler, "interpolation_type", "log_linear"),
        (EulerDiscreteScheduler, "timestep_type", "continuous"),
        (EulerDiscreteScheduler, "sigma_max", 80.0),
        (HeunDiscreteScheduler, "use_beta_sigmas", True),
        (HeunDiscreteScheduler, "beta_schedule", "exp"),
        (PNDMScheduler, "skip_prk_steps", False),
    ],
)
def test_what_is_not_implemented_raises(cls: Any, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{key}={value!r}"):
        cls.from_config({**SD15, key: value})


def test_what_concerns_another_class_is_no_error() -> None:
    config = {**SD15, "thresholding": True, "use_beta_sigmas": True, "skip_prk_steps": False, "solver_order": 3}
    euler = EulerDiscreteScheduler.from_config({**config, "use_beta_sigmas": False})
    assert euler.config["thresholding"] is True
    with pytest.raises(ValueError, match="thresholding=True"):
        DDIMScheduler.from_config(euler.config)
    assert DDIMScheduler.from_config({**config, "thresholding": False}).config["use_beta_sigmas"] is True


def test_neutral_values_and_inert_keys_pass() -> None:
    for cls in SCHEDULERS.values():
        for key, (neutral, _) in NEUTRAL.items():
            for value in neutral:
                cls.from_config({**SD15, key: value})
        cls.from_config({**SD15, **dict.fromkeys(INERT, 1), "_anything": 1})


def test_a_pndm_file_without_its_start_asks_for_runge_kutta() -> None:
    file = {key: value for key, value in SD15.items() if key != "skip_prk_steps"}
    for config in (file, diffusers.PNDMScheduler().config):
        with pytest.raises(ValueError, match='Set "skip_prk_steps": true'):
            PNDMScheduler.from_config(config)
    assert PNDMScheduler.from_config({**file, "_class_name": "DDIMScheduler"}).skip_prk_steps


def test_files_of_related_solvers() -> None:
    """DEIS and UniPC files name their own solver types; diffusers' DPM-Solver reads them as midpoint, and says nothing."""

    def read(config: dict[str, Any]) -> DPMSolverMultistepScheduler:
        with pytest.warns(UserWarning, match="is of a related solver") as caught:
            scheduler = DPMSolverMultistepScheduler.from_config(config)
        assert len(caught) == 1
        message = str(caught[0].message)
        for key in {"algorithm_type", "solver_type"} & config.keys():
            assert f"{key}={config[key]!r}" in message
            assert f"{key}={getattr(scheduler, key)!r}" in message
        assert ("corrector" in message) == (config["solver_type"] == "bh2")
        assert DPMSolverMultistepScheduler.from_config(scheduler.config) == scheduler  # said once
        return scheduler

    deis = {**SD15, "_class_name": "DEISMultistepScheduler", "algorithm_type": "deis", "solver_type": "logrho"}
    assert read(deis).algorithm_type == "dpmsolver++"
    unipc = {**diffusers.UniPCMultistepScheduler().config, "_use_default_values": []}
    assert read(unipc).solver_type == "midpoint"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_train_timesteps", 0),
        ("num_train_timesteps", 2**16 + 1),
        ("num_train_timesteps", 10**9),
        ("num_train_timesteps", True),
        ("num_train_timesteps", 1000.0),
        ("beta_start", 0.0),
        ("beta_end", 1.5),
        ("beta_end", "0.02"),
        ("beta_end", float("nan")),
        ("beta_schedule", "quadratic"),
        ("trained_betas", (0.5, 1.0)),
        ("trained_betas", 0.1),
        ("prediction_type", "eps"),
        ("steps_offset", -1),
        ("timestep_spacing", "even"),
        ("rescale_betas_zero_snr", 1),
        ("set_alpha_to_one", "no"),
        ("clip_sample", 0),
        ("clip_sample_range", 0.0),
        pytest.param("clip_sample_range", 10**400, id="clip_sample_range-huge"),
        ("eta", 1.5),
        ("eta", -0.1),
        ("variance_type", "learned"),
        ("skip_prk_steps", False),
        ("use_karras_sigmas", None),
        ("final_sigmas_type", "one"),
        ("solver_order", 4),
        ("solver_order", True),
        ("algorithm_type", "deis"),
        ("solver_type", "bh2"),
        ("lower_order_final", 1),
        ("euler_at_final", 1),
        ("original_inference_steps", 0),
        ("timestep_scaling", -1),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_rule(field: str, value: Any) -> None:
    classes = [cls for cls in SCHEDULERS.values() if field in cls._fields()]
    assert classes
    for cls in classes:
        with pytest.raises(ValueError) as caught:
            cls(**{field: value})
        assert f"{cls.__name__}: {field}={value!r} does not fit; it must be {RULES[field][0]}." == str(caught.value)


def test_every_field_has_a_rule_and_every_rule_a_field() -> None:
    names = {name for cls in SCHEDULERS.values() for name in cls._fields()}
    assert names == set(RULES)
    assert not names & INERT


def test_betas_of_the_wrong_number_and_originals_above_the_trained() -> None:
    with pytest.raises(ValueError, match=r"trained_betas has 2 numbers.*num_train_timesteps=1000"):
        DDIMScheduler(trained_betas=(0.1, 0.2))
    with pytest.raises(ValueError, match=r"original_inference_steps=50 does not fit.*num_train_timesteps=40"):
        LCMScheduler(num_train_timesteps=40)
    array = DDIMScheduler(trained_betas=np.full(1000, 0.01), beta_schedule="trained")  # type: ignore[arg-type]
    assert array.trained_betas == (0.01,) * 1000


def test_schedulers_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DDIMScheduler().beta_start = 0.1  # type: ignore[misc]
    scheduler = DDIMScheduler.from_config(SD15)
    scheduler.config["beta_start"] = 0.5  # a copy
    assert scheduler.config["beta_start"] == 0.00085


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="subfolder='scheduler'"):
        DDIMScheduler.from_pretrained(tmp_path)
    (tmp_path / "scheduler_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"scheduler_config.json is not JSON"):
        DDIMScheduler.from_pretrained(tmp_path)
    (tmp_path / "scheduler_config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"scheduler_config.json holds a list, not an object"):
        DDIMScheduler.from_pretrained(tmp_path)
    (tmp_path / "scheduler_config.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ValueError, match=r"scheduler_config.json is nested too deeply"):
        DDIMScheduler.from_pretrained(tmp_path)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps(SD15), encoding="utf-8-sig")
    assert PNDMScheduler.from_pretrained(tmp_path) == PNDMScheduler.from_config(SD15)


@pytest.mark.parametrize("marked", [5, "clip_sample", [[1]], {"clip_sample": 1}])
def test_a_mark_that_is_no_list_of_names(marked: Any) -> None:
    with pytest.raises(ValueError, match=r"_use_default_values=.* does not fit; it must be a list of field names"):
        DDIMScheduler.from_config({**SD15, "_use_default_values": marked})


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """They come out as Python's, so that a config can be written and compared."""
    plain = {"num_train_timesteps": 500, "beta_end": 0.5, "steps_offset": 2, "trained_betas": (0.25,) * 500, "eta": 0.5}
    given = {
        "num_train_timesteps": np.int32(500), "beta_end": np.float32(0.5), "steps_offset": np.int64(2),
        "trained_betas": [np.float32(0.25)] * 500, "eta": np.float64(0.5),
    }  # fmt: skip
    scheduler = DDIMScheduler(**given)  # type: ignore[arg-type]
    assert scheduler == DDIMScheduler(**plain)  # type: ignore[arg-type]
    assert {type(getattr(scheduler, name)) for name in plain} == {int, float, tuple}
    assert scheduler.plan(np.int64(2)) == scheduler.plan(2)  # type: ignore[arg-type]
    scheduler.save_pretrained(tmp_path)
    assert DDIMScheduler.from_pretrained(tmp_path) == dataclasses.replace(scheduler, eta=0.0)
    assert DPMSolverMultistepScheduler(solver_order=np.int64(3)).solver_order == 3  # type: ignore[arg-type]
    for wrong in (np.bool_(True), np.float64(1000.0), np.int64(0)):
        with pytest.raises(ValueError, match=r"num_train_timesteps=.* does not fit"):
            DDIMScheduler(num_train_timesteps=wrong)


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DDIMScheduler().save_pretrained(tmp_path)
    before = (tmp_path / "scheduler_config.json").read_bytes()

    def broken(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        DDIMScheduler(steps_offset=1).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["scheduler_config.json"]
    assert (tmp_path / "scheduler_config.json").read_bytes() == before


def test_short_names() -> None:
    config = PNDMScheduler.from_config(SD15).config
    for name, (cls, _) in SHORT_NAMES.items():
        scheduler = scheduler_by_name(name, config)
        assert type(scheduler) is cls
        assert scheduler.beta_start == 0.00085
        assert type(scheduler_by_name(cls.__name__, config)) is cls
    assert {cls for cls, _ in SHORT_NAMES.values()} == set(SCHEDULERS.values())
    third = {**config, "solver_order": 3, "use_karras_sigmas": True}
    plain, karras = scheduler_by_name("dpm++", third), scheduler_by_name("dpm++_karras", third)
    assert isinstance(plain, DPMSolverMultistepScheduler)
    assert isinstance(karras, DPMSolverMultistepScheduler)
    assert (plain.solver_order, plain.use_karras_sigmas, karras.use_karras_sigmas) == (2, False, True)
    with pytest.raises(ValueError, match=r"scheduler='eular' is not known; use one of ddpm, .*lcm"):
        scheduler_by_name("eular", config)
