"""Values that are not finite: an error that names step and component, or the decoder again in float32. No black picture."""

import copy

import pytest
import torch
from tiny_clip import final_layer_norm

from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.models.unet import UNet2DConditionModel
from latentgen.nn.autoencoder_blocks import Decoder
from latentgen.pipelines.text2image import Text2ImagePipeline

CALL = {"num_inference_steps": 6, "seed": 0, "output_type": "pt", "scheduler": "ddim"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_network_that_breaks_is_named_with_its_step_at_once(pipe, monkeypatch, bad):
    calls = []
    real = UNet2DConditionModel.denoise

    def denoise(self, *arguments):
        calls.append(1)
        output = real(self, *arguments)
        if len(calls) == 4:
            output[0, 0, 0, 0] = bad
        return output

    monkeypatch.setattr(UNet2DConditionModel, "denoise", denoise)
    message = r"the UNet \(unet\) gave values that are not finite at step 3, counted from 0, of 6 \(timestep 333\)"
    with pytest.raises(FloatingPointError, match=message):
        pipe("a cat", **CALL)
    assert len(calls) == 4
    assert torch.isfinite(pipe("a cat", **CALL).images).all()


def test_a_text_encoder_that_breaks_is_named(pipe):
    for spoil in (lambda w: w.fill_(float("nan")), lambda w: w.mul_(float("inf"))):
        encoder = copy.deepcopy(pipe.text_encoder)
        with torch.no_grad():
            spoil(final_layer_norm(encoder).weight)
        broken = Text2ImagePipeline(**{**pipe.components, "text_encoder": encoder})
        with pytest.raises(
            FloatingPointError, match=r"the text encoder \(text_encoder\) gave values that are not finite"
        ):
            broken("a cat", **CALL)


def test_guidance_beyond_all_measure_is_named(pipe):
    with pytest.raises(FloatingPointError, match=r"the latents .* grown to .*e\+\d\d.*; lower guidance_scale=1e\+30"):
        pipe("a cat", guidance_scale=1e30, **CALL)
    with pytest.raises(FloatingPointError, match=r"the latents .* were not finite; lower guidance_scale=1e\+300"):
        pipe("a cat", guidance_scale=1e300, **CALL)


def test_latents_that_a_callback_broke_are_not_the_unets_fault(pipe):
    def callback(pipe, step, timestep, values):
        return {"latents": values["latents"] * float("nan")} if step == 2 else None

    message = "at step 3, .*: the latents that it was given were not finite; .*check the scheduler and the callback"
    with pytest.raises(FloatingPointError, match=message):
        pipe("a cat", callback_on_step_end=callback, **CALL)


def test_latents_that_break_behind_the_network_are_an_error_too(pipe):
    def callback(pipe, step, timestep, values):
        return {"latents": values["latents"] * float("nan")} if step == 5 else None

    for output_type in ("pt", "latent"):
        with pytest.raises(
            FloatingPointError, match="the latents after the last step are not finite: check the callback"
        ):
            pipe("a cat", callback_on_step_end=callback, **{**CALL, "output_type": output_type})


@pytest.fixture
def overflowing(monkeypatch):
    """A decoder that overflows for the second picture of a batch unless its weights are float32; its batches."""
    batches = []
    real = Decoder.forward

    def forward(self, z):
        batches.append((z.dtype, len(z)))
        pixels = real(self, z)
        if self.conv_in.weight.dtype != torch.float32:
            pixels[-1:, :, 0, 0] = float("inf")
        return pixels

    monkeypatch.setattr(Decoder, "forward", forward)
    return batches


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_decoder_that_overflows_is_run_again_in_float32(pipe, overflowing, dtype):
    vae = copy.deepcopy(pipe.vae).to(dtype)
    half = Text2ImagePipeline(**{**pipe.components, "vae": vae})
    before = {name: t.clone() for name, t in vae.state_dict().items()}
    with pytest.warns(UserWarning, match=rf"the decoder \(vae\) overflowed in {dtype} and is run again in float32"):
        result = half("a cat", num_images_per_prompt=2, show_progress=False, **CALL)
    assert result.decoded_in_float32
    assert overflowing == [(dtype, 2), (torch.float32, 1)]  # only the picture that needs it
    assert torch.isfinite(result.images).all()
    assert result.images[1].std() > 0.01
    full = pipe("a cat", num_images_per_prompt=2, **CALL)
    assert not full.decoded_in_float32
    assert torch.allclose(result.images[1], full.images[1], rtol=0, atol=0.02)
    assert vae.dtype == dtype
    assert all(torch.equal(before[name], t) for name, t in vae.state_dict().items())


def test_the_component_stays_as_it_is_while_the_decoder_runs_again(pipe, monkeypatch):
    """Another thread may be using it at that moment."""
    vae = copy.deepcopy(pipe.vae).bfloat16()
    half = Text2ImagePipeline(**{**pipe.components, "vae": vae})
    seen = []
    real = Decoder.forward

    def forward(self, z):
        seen.append({t.dtype for t in vae.state_dict().values()})
        return real(self, z) * (1 if z.dtype == torch.float32 else float("nan"))

    monkeypatch.setattr(Decoder, "forward", forward)
    with pytest.warns(UserWarning, match="is run again in float32"):
        half("a cat", show_progress=False, **CALL)
    assert seen == [{torch.bfloat16}] * 2


@pytest.mark.filterwarnings("ignore:the decoder .* is run again in float32:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_that_breaks_in_float32_too_is_an_error(pipe, monkeypatch, dtype):
    vae = copy.deepcopy(pipe.vae).to(dtype)
    broken = Text2ImagePipeline(**{**pipe.components, "vae": vae})
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, z: z.repeat(1, 3, 1, 1) * float("nan"))
    with pytest.raises(FloatingPointError, match=r"the decoder \(vae\) gave values that are not finite for image 0"):
        broken("a cat", show_progress=False, **CALL)


def test_pixels_beyond_the_range_are_clamped_and_no_error(pipe, monkeypatch):
    real = AutoencoderKL.decode
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, z: real(self, z) * 1e6)
    images = pipe("a cat", **CALL).images
    assert images.min() == 0
    assert images.max() == 1
