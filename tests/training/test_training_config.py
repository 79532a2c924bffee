"""TOML files: strict, and every error names the file and the key."""

from pathlib import Path

import pytest
from tiny_runs import AUTOENCODER, DIFFUSION

import latentgen.training
from latentgen.training import AutoencoderTraining, DiffusionTraining, load_config
from latentgen.training.config import DataConfig, RunConfig

EXAMPLES = Path(__file__).parents[2] / "examples" / "tiny_scenes"


def load(folder, text, cls=AutoencoderTraining):
    (folder / "run.toml").write_text(text)
    return load_config(cls, folder / "run.toml")


def test_the_example_files_are_good():
    assert load_config(AutoencoderTraining, EXAMPLES / "autoencoder.toml").data.size == 128
    config = load_config(DiffusionTraining, EXAMPLES / "diffusion.toml")
    assert config.samples.prompts
    assert config.make_scheduler().prediction_type == "v_prediction"


def test_paths_count_from_the_config_file(tmp_path):
    config = load(tmp_path, AUTOENCODER.replace('"pictures"', '"../pictures"').replace('"autoencoder"', '"/abs/out"'))
    assert config.data.folder == tmp_path / "../pictures"
    assert config.run.output == Path("/abs/out")
    assert load(tmp_path, DIFFUSION, DiffusionTraining).autoencoder == tmp_path / "autoencoder/model"


def test_a_whole_number_serves_as_a_number(tmp_path):
    config = load(tmp_path, AUTOENCODER.replace("learning_rate = 1e-2", "learning_rate = 1"))
    assert type(config.run.learning_rate) is float


def test_paths_may_be_texts():
    run = RunConfig(output="runs/x", steps=10, batch_size=1, learning_rate=1e-3, init_from="model")
    assert (run.output, run.init_from) == (Path("runs/x"), Path("model"))
    assert DataConfig(folder="pictures", size=8).folder == Path("pictures")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 60", 'steps = "many"', r"\[run\] steps='many' must be a whole number"),
        ("steps = 60", "steps = 60.0", r"\[run\] steps=60.0 must be a whole number"),
        ("steps = 60", "steps = true", r"\[run\] steps=True must be a whole number"),
        ("steps = 60", "steps = 0", r"\[run\] steps=0 must be at least 1"),
        ("steps = 60", "", r"\[run\] lacks steps"),
        ("steps = 60", "steps = 60\nstpes = 3", r"\[run\] does not know stpes. Known: output, steps"),
        ("1e-2", "-1e-2", r"\[run\] learning_rate=-0.01 must be above 0"),
        ("1e-2", "nan", r"\[run\] learning_rate=nan must be a finite number"),
        ("1e-2", '"fast"', r"\[run\] learning_rate='fast' must be a finite number"),
        ("ema_decay = 0.9", "ema_decay = 1.0", r"\[run\] ema_decay=1.0 must be in \[0, 1\)"),
        ("ema_decay = 0.9", "ema_decay = true", r"\[run\] ema_decay=True must be a finite number"),
        (
            "warmup_steps = 5",
            "warmup_steps = 41",
            r"\[run\] warmup_steps=41 and decay_steps=20 do not fit into steps=60",
        ),
        ("decay_steps = 20", "decay_steps = 70", r"\[run\] warmup_steps=5 and decay_steps=70 do not fit into steps=60"),
        ("ema_decay = 0.9", "seed = -1", r"\[run\] seed=-1 must be in"),
        ("ema_decay = 0.9", "clip_norm = 0", r"\[run\] clip_norm=0.0 must be above 0"),
        ("warmup_steps = 5", "warmup_steps = -5", r"\[run\] warmup_steps=-5 must be at least 0"),
        ("ema_decay = 0.9", "beta2 = 1.5", r"\[run\] beta2=1.5 must be in"),
        ("ema_decay = 0.9", "accumulate = 0", r"\[run\] accumulate=0 must be at least 1"),
        ('precision = "no"', 'precision = "fp8"', r"\[run\] precision='fp8' must be bf16, fp16 or no"),
        ('folder = "pictures"', "folder = 3", r"\[data\] folder=3 must be a path"),
        ("size = 16", "size = 0", r"\[data\] size=0 must be at least 1"),
        ("size = 16", "size = 16\ncrop = 32", r"\[data\] crop=32 must be at most size=16"),
        ("size = 16", "size = 16\nskip_broken = 1", r"\[data\] skip_broken=1 must be true or false"),
        ("kl_weight = 1e-4", "kl_weight = -1", r"\[loss\] kl_weight=-1.0 must be at least 0"),
        ("[loss]", "[losses]", "the file: does not know losses"),
        ("norm_num_groups = 4", "norm_groups = 4", r"\[model\] AutoencoderConfig does not know norm_groups"),
        ("norm_num_groups = 4", "norm_num_groups = 3", r"\[model\] block_out_channels holds"),
        ("norm_num_groups = 4", 'layers_per_block = "two"', r"\[model\] "),
        ("[data]", "[data", "is not valid TOML"),
    ],
)
def test_errors_name_file_and_key(tmp_path, old, new, message):
    assert old in AUTOENCODER
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, AUTOENCODER.replace(old, new))
    assert str(tmp_path / "run.toml") in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("condition_dropout = 0.25", "condition_dropout = 1.5", r"condition_dropout=1.5 must be in \[0, 1\]"),
        ("condition_dropout = 0.25", "timestep_shift = 0.0", r"timestep_shift=0.0 must be above 0"),
        ("condition_dropout = 0.25", "timestep_shift = inf", r"timestep_shift=inf must be a finite number"),
        ('autoencoder = "autoencoder/model"', "", "lacks autoencoder"),
        ("vocab_size = 530", "vocab_size = 100", r"\[text\] vocab_size=100 must be at least 514"),
        ("hidden_size = 16", "hidden_size = 17", r"\[text\] hidden_size=17 must be a multiple"),
        ("layers_per_block = 1", "layers = 1", r"\[unet\] UNetConfig does not know layers"),
        ("attention_head_dim = 2", "attention_head_dim = 3", r"\[unet\] block_out_channels"),
        ("clip_sample = false", "clip_smaple = false", r"\[scheduler\] .*clip_smaple"),
        ('"DDIMScheduler"', '"MagicScheduler"', r"\[scheduler\] _class_name='MagicScheduler' is not known"),
        ('"v_prediction"', '"epsilon"', r"\[scheduler\] rescale_betas_zero_snr"),
        ('"v_prediction"', '"nonsense"', r"\[scheduler\] .*prediction_type"),
        ("num_inference_steps = 2", "num_inference_steps = 2000", "num_inference_steps=2000"),
        ("num_inference_steps = 2", "guidance_scale = -1", r"\[samples\] guidance_scale=-1.0 must be at least 0"),
        ('["a red square", "a blue square on black"]', '"one"', r"\[samples\] prompts='one' must be a list of texts"),
        ('["a red square", "a blue square on black"]', "[1]", r"\[samples\] prompts=\[1\] must be a list of texts"),
    ],
)
def test_errors_of_the_second_stage(tmp_path, old, new, message):
    assert old in DIFFUSION
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, DIFFUSION.replace(old, new), DiffusionTraining)
    assert str(tmp_path / "run.toml") in str(error.value)


def test_a_value_in_the_place_of_a_table(tmp_path):
    head, _, tail = AUTOENCODER.partition("[loss]\nkl_weight = 1e-4")
    with pytest.raises(ValueError, match="the file: loss=3 must be a table"):
        load(tmp_path, "loss = 3\n" + head + tail)


def test_no_file_a_folder_and_bytes(tmp_path):
    with pytest.raises(ValueError, match="no such config file"):
        load_config(AutoencoderTraining, tmp_path / "absent.toml")
    with pytest.raises(ValueError, match="cannot be read"):
        load_config(AutoencoderTraining, tmp_path)
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not valid TOML"):
        load_config(AutoencoderTraining, tmp_path / "run.toml")


def test_public_names():
    assert sorted(latentgen.training.__all__) == sorted(
        ["AutoencoderTraining", "DiffusionTraining", "load_config", "train_autoencoder", "train_diffusion"]
    )
    assert all(callable(getattr(latentgen.training, name)) for name in latentgen.training.__all__)
    assert set(latentgen.training.__all__) <= set(dir(latentgen.training))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        latentgen.training.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.1), (4, 0.5), (9, 1.0), (49, 1.0), (80, 1.0), (90, 0.5), (99, 0.05), (100, 0.0)]
)
def test_learning_rate_rises_stays_and_falls(tmp_path, step, rate):
    text = AUTOENCODER.replace("steps = 60", "steps = 100").replace("warmup_steps = 5", "warmup_steps = 10")
    config = load(tmp_path, text.replace("learning_rate = 1e-2", "learning_rate = 1.0")).run
    assert config.learning_rate_at(step) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("steps", "decay", "warmup"), [(4, 0, 0), (60, 20, 6), (4000, 0, 400), (10**6, 0, 500), (60, 58, 2)]
)
def test_warm_up_left_out_is_a_tenth(tmp_path, steps, decay, warmup):
    text = AUTOENCODER.replace("warmup_steps = 5", "").replace("decay_steps = 20", f"decay_steps = {decay}")
    config = load(tmp_path, text.replace("steps = 60", f"steps = {steps}")).run
    assert config.warmup == warmup
    assert max(config.learning_rate_at(step) for step in range(min(steps, 600))) == config.learning_rate


def test_no_moving_average(tmp_path):
    assert load(tmp_path, AUTOENCODER.replace("ema_decay = 0.9", "ema_decay = false")).run.ema_decay is None
    assert load(tmp_path, AUTOENCODER.replace("ema_decay = 0.9", "ema_decay = 0")).run.ema_decay == 0.0


def test_learning_rate_without_warm_up_and_decay(tmp_path):
    text = AUTOENCODER.replace("warmup_steps = 5", "warmup_steps = 0").replace("decay_steps = 20", "decay_steps = 0")
    config = load(tmp_path, text).run
    assert {config.learning_rate_at(step) for step in range(config.steps)} == {config.learning_rate}
