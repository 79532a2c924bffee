"""`init_from` and `autoencoder`: what fits is taken, what does not is named."""

import shutil
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny_runs import changed

from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.training.autoencoder import AutoencoderStage
from latentgen.training.config import TextConfig
from latentgen.training.diffusion import DiffusionStage


@pytest.fixture(scope="module")
def accelerator():
    yield Accelerator(mixed_precision="no")
    AcceleratorState._reset_state()


@pytest.fixture
def config(diffusion_config, trained_diffusion, tmp_path):
    """Stage 2, to go on with the model that is there."""
    return changed(diffusion_config, run={"output": tmp_path / "run", "init_from": trained_diffusion})


def test_what_agrees_needs_no_word(config, accelerator, recwarn):
    DiffusionStage(config, accelerator)
    DiffusionStage(replace(config, text=None), accelerator)  # whatever the folder has
    assert not [w for w in recwarn if w.category is UserWarning]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"max_length": 77}, r"\[text\] max_length=77 does not agree with init_from: .* has 12"),
        ({"hidden_size": 64}, r"\[text\] hidden_size=64 does not agree .*text_encoder has 16"),
        ({"num_hidden_layers": 2}, r"\[text\] num_hidden_layers=2 does not agree"),
        ({"num_attention_heads": 4}, r"\[text\] num_attention_heads=4 does not agree"),
        ({"vocab_size": 514}, r"\[text\] vocab_size=514 does not agree .*tokenizer has 5\d\d entries"),
    ],
)
def test_text_must_agree(config, accelerator, text, message):
    with pytest.raises(ValueError, match=message):
        DiffusionStage(replace(config, text=replace(config.text, **text)), accelerator)


def test_text_section_left_out_from_scratch_is_the_default(diffusion_config, accelerator, tmp_path):
    config = changed(diffusion_config, run={"output": tmp_path / "run"})
    stage = DiffusionStage(replace(config, text=None), accelerator)
    assert stage.task.text_encoder.config.hidden_size == TextConfig().hidden_size


def test_a_models_size_is_that_of_the_pictures_it_learns_from_now(config, accelerator, tmp_path):
    config = changed(config, data={"size": 8})
    config = replace(config, unet=config.unet | {"sample_size": 4})
    stage = DiffusionStage(config, accelerator)
    assert stage.task.unet.config.sample_size == 8 // stage.autoencoder.config.factor
    stage.export(tmp_path / "exported")
    picture = Text2ImagePipeline.from_pretrained(tmp_path / "exported", device="cpu", dtype="float32")(
        "a red square", num_inference_steps=1, show_progress=False
    ).images[0]
    assert picture.size == (8, 8)


def test_weights_of_a_single_variant_are_read(config, accelerator, trained_diffusion, tmp_path):
    pipe = Text2ImagePipeline.from_pretrained(trained_diffusion, device="cpu", dtype="float32")
    pipe.to(dtype="float16").save_pretrained(tmp_path / "half", variant="fp16")
    stage = DiffusionStage(
        replace(changed(config, run={"init_from": tmp_path / "half"}), autoencoder=tmp_path / "half"), accelerator
    )
    assert stage.task.unet.dtype == torch.float32
    for name, parameter in stage.task.unet.named_parameters():
        assert torch.equal(parameter, pipe.unet.get_parameter(name).float())


@pytest.mark.parametrize("given", ["stabilityai/sd-vae-ft-mse", "no-such-folder"])
def test_a_first_stage_that_is_no_folder_here_is_named_with_a_way_to_get_one(config, accelerator, tmp_path, given):
    with pytest.raises(ValueError, match=rf"there is no folder .*{given}.*hf download OWNER/NAME --local-dir"):
        DiffusionStage(replace(config, autoencoder=tmp_path / given), accelerator)


def test_network_must_agree(config, accelerator):
    with pytest.raises(ValueError, match=r"\[unet\] attention_head_dim=4 does not agree with init_from: .*unet has 2"):
        DiffusionStage(replace(config, unet=config.unet | {"attention_head_dim": 4}), accelerator)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"prediction_type": "sample"},
            r"\[scheduler\] prediction_type='sample', but init_from has 'v_prediction' in ",
        ),
        ({"beta_end": 0.02}, r"\[scheduler\] beta_end=0.02, but init_from has 0.012"),
    ],
)
def test_another_scheduler_is_told(config, accelerator, setting, message):
    with pytest.warns(UserWarning, match=message) as caught:
        DiffusionStage(replace(config, scheduler=config.scheduler | setting), accelerator)
    assert len(caught) == 1


def test_another_first_stage_is_told(config, accelerator, tmp_path, recwarn):
    vae = AutoencoderKL.from_pretrained(config.autoencoder, device="cpu", dtype="float32")
    with torch.no_grad():
        vae.decoder.conv_out.bias.add_(1)
    vae.save_pretrained(tmp_path / "decoder")
    DiffusionStage(replace(config, autoencoder=tmp_path / "decoder"), accelerator)  # the latents are the same
    assert not [w for w in recwarn if w.category is UserWarning]
    with torch.no_grad():
        vae.encoder.conv_in.bias.add_(1)
    vae.save_pretrained(tmp_path / "encoder")
    with pytest.warns(UserWarning, match=r"is not the first stage that init_from learnt with \(encoder of "):
        DiffusionStage(replace(config, autoencoder=tmp_path / "encoder"), accelerator)


def test_first_stage_is_found_in_a_whole_model(config, autoencoder_config, accelerator, trained_diffusion):
    stage = DiffusionStage(replace(config, autoencoder=trained_diffusion), accelerator)
    first = AutoencoderStage(changed(autoencoder_config, run={"init_from": trained_diffusion}), accelerator)
    wanted = AutoencoderKL.from_pretrained(trained_diffusion / "vae", device="cpu", dtype="float32").state_dict()
    for name, tensor in wanted.items():
        assert torch.equal(tensor, stage.autoencoder.state_dict()[name])
        assert torch.equal(tensor, first.autoencoder.state_dict()[name])


def test_second_stage_needs_a_whole_model(config, accelerator, trained_autoencoder):
    with pytest.raises(ValueError, match=r"init_from: .* has no unet/, text_encoder/, tokenizer/; stage 2 starts from"):
        DiffusionStage(changed(config, run={"init_from": trained_autoencoder}), accelerator)


@pytest.mark.parametrize("channels", [{"in_channels": 1}, {"out_channels": 1}])
def test_pictures_have_three_channels(autoencoder_config, config, accelerator, tmp_path, channels):
    model = autoencoder_config.model | channels
    with pytest.raises(ValueError, match=r"\[model\] has in_channels=.*leave both at 3"):
        AutoencoderStage(replace(autoencoder_config, model=model), accelerator)
    AutoencoderKL.from_config(model).save_pretrained(tmp_path / "vae")
    started = changed(autoencoder_config, run={"init_from": tmp_path / "vae"}, model={})
    with pytest.raises(ValueError, match=r"vae has in_channels=.*leave both at 3"):
        AutoencoderStage(started, accelerator)
    with pytest.raises(ValueError, match=r"vae has in_channels=.*leave both at 3"):
        DiffusionStage(replace(config, autoencoder=tmp_path / "vae"), accelerator)


def test_another_tokenizer_is_seen(config, accelerator, trained_diffusion, tmp_path):
    """Without `init_from` another is learnt: the record has a name for it, and the run is not resumed with it."""
    began = DiffusionStage(config, accelerator).settings["tokenizer"]
    shutil.copytree(trained_diffusion.parent / "checkpoints", tmp_path / "run" / "checkpoints")
    assert DiffusionStage(config, accelerator).settings["tokenizer"] == began
    scratch = replace(changed(config, run={"init_from": None}), text=replace(config.text, vocab_size=514))
    assert DiffusionStage(scratch, accelerator).settings["tokenizer"] != began
