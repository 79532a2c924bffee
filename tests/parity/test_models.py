"""Our networks against those of diffusers 0.40, with the same weights: float32, largest difference over largest value.

Every variant at tiny width; the published configs on the meta device, name by name; and, marked `slow`, at full width
with random weights.
"""

import json

import diffusers
import pytest
import torch
from tiny_sd import SD1, SD2, SD2_V, X4_UPSCALER, adopt, relative_error, their_unet, their_vae

from latentgen.models.autoencoder_kl import AutoencoderKL
from latentgen.models.unet import UNet2DConditionModel

LIMIT = 1e-5
ONE_LEVEL = {
    "block_out_channels": (16,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
UNETS = {
    "Stable Diffusion 1": SD1,
    "Stable Diffusion 2": SD2,
    "Stable Diffusion 2, v": SD2_V,
    "x4 upscaler": X4_UPSCALER,
    "inpainting": {**SD1, "in_channels": 9},
    "cross-attention only": {**SD1, "only_cross_attention": True},
    "cross-attention only at the last level": {
        **SD1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "only_cross_attention": (False, False, True),
    },
    "one residual block a level": {**SD1, "layers_per_block": 1},
    "two transformer blocks": {**SD2, "transformer_layers_per_block": 2},
    "DDPM's timestep embedding": {**SD1, "flip_sin_to_cos": False, "freq_shift": 1},
    "other norms": {**SD1, "norm_eps": 1e-3, "norm_num_groups": 4},
    "one level": {**SD1, **ONE_LEVEL},
    "null for false, and a count for each level": {**SD1, "upcast_attention": None, "layers_per_block": (2, 2, 2)},
}
VAES = {
    "plain": {},
    "no quantising convolutions": {"use_quant_conv": False, "use_post_quant_conv": False},
    "no attention": {"mid_block_add_attention": False},
    "shifted": {"shift_factor": 0.1, "scaling_factor": 0.36, "latent_channels": 16},
    "more blocks": {"layers_per_block": 2},
    "attention at a level": {
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
    },
    "one level": {
        "block_out_channels": (8,),
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
    },
}


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def faint(network):
    """Make feature maps so small that the eps of every norm shows."""
    writers = ("conv_in.", "conv2.", "conv_shortcut.", "samplers.0.conv.", "proj_out.", "to_out.")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if any(writer in name for writer in writers):
                parameter.mul_(3e-3)
    return network


def unet_errors(theirs, sizes, timesteps=(0, 999.0, 341.5), batch=2):
    ours = adopt(UNet2DConditionModel, theirs)
    config = theirs.config
    labels = torch.arange(batch) if config.num_class_embeds else None
    context = draw(batch, 77, config.cross_attention_dim)
    for (height, width), timestep in zip(sizes, timesteps, strict=True):
        x = draw(batch, config.in_channels, height, width)
        with torch.no_grad():
            expected = theirs(x, timestep, context, class_labels=labels).sample
            got = ours(x, timestep, context, None if labels is None else labels)
        yield relative_error(got, expected)


def vae_errors(theirs, height, width, dtype=torch.float32):
    """`dtype` is theirs; ours runs in float32."""
    ours = adopt(AutoencoderKL, theirs)
    theirs.to(dtype)
    levels = len(theirs.config.block_out_channels)
    pictures = draw(2, 3, height, width)
    latents = draw(2, theirs.config.latent_channels, height >> (levels - 1), width >> (levels - 1))
    with torch.no_grad():
        posterior, expected = ours.encode(pictures), theirs.encode(pictures.to(dtype)).latent_dist
        moments = torch.cat([posterior.mean, posterior.logvar], dim=1)
        yield relative_error(moments, torch.cat([expected.mean, expected.logvar], dim=1))
        yield relative_error(ours.decode(latents), theirs.decode(latents.to(dtype)).sample)


@pytest.mark.parametrize("settings", UNETS.values(), ids=UNETS.keys())
def test_unet(settings):
    errors = list(unet_errors(their_unet(**settings), [(8, 8), (13, 13), (6, 17)]))
    assert max(errors) <= LIMIT


def test_eps_of_norms():
    assert max(unet_errors(faint(their_unet(**SD1)), [(8, 8)], timesteps=(500,))) <= LIMIT
    assert max(vae_errors(faint(their_vae()), 32, 24)) <= LIMIT


def test_unet_with_a_timestep_for_each_picture():
    theirs = their_unet(**SD1)
    ours = adopt(UNet2DConditionModel, theirs)
    x, timesteps, context = draw(3, 4, 8, 8), torch.tensor([1, 500, 999]), draw(3, 7, 32)
    with torch.no_grad():
        assert relative_error(ours(x, timesteps, context), theirs(x, timesteps, context).sample) <= LIMIT


@pytest.mark.parametrize("settings", VAES.values(), ids=VAES.keys())
def test_autoencoder(settings):
    assert max(vae_errors(their_vae(**settings), 32, 24)) <= LIMIT


def test_scaling_of_latents_is_that_of_diffusers_pipelines():
    config = {"shift_factor": 0.1, "scaling_factor": 0.36}
    ours = adopt(AutoencoderKL, their_vae(**config))
    z = draw(1, 4, 8, 8)
    assert torch.allclose(ours.scale(z), (z - 0.1) * 0.36)
    assert torch.allclose(ours.unscale(ours.scale(z)), z, atol=1e-6)


PUBLISHED = [
    ("stable-diffusion-v1-5", "unet", UNet2DConditionModel, 686, 859_520_964),
    ("stable-diffusion-2-1-base", "unet", UNet2DConditionModel, 686, 865_910_724),
    ("stable-diffusion-inpainting", "unet", UNet2DConditionModel, 686, 859_535_364),
    ("stable-diffusion-v1-5", "vae", AutoencoderKL, 248, 83_653_863),
    ("stable-diffusion-2-1-base", "vae", AutoencoderKL, 248, 83_653_863),
]


@pytest.mark.parametrize(("model", "part", "cls", "tensors", "parameters"), PUBLISHED)
def test_a_published_config_makes_the_published_tensors(reference, model, part, cls, tensors, parameters):
    config = json.loads((reference / model / part / "config.json").read_text())
    with torch.device("meta"):
        ours = cls.from_config(config).state_dict()
        theirs = getattr(diffusers, cls.__name__).from_config(config).state_dict()
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert len(ours) == tensors
    assert sum(t.numel() for t in ours.values()) == parameters


@pytest.mark.slow
@pytest.mark.parametrize("model", ["stable-diffusion-v1-5", "stable-diffusion-2-1-base"])
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_full_width(reference, record, model, part):
    """Random weights of the published sizes. Both networks hold the same tensors, so a UNet takes 3.5 GB once.

    Their autoencoder runs in float64: in float32 its decoder is itself 7.5e-6 from that, and ours 1.7e-6.
    """
    config = json.loads((reference / model / part / "config.json").read_text())
    torch.manual_seed(0)
    cls = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[part]
    theirs = cls.from_config(config).eval()
    if part == "unet":
        errors = list(unet_errors(theirs, [(24, 16)], timesteps=(500,), batch=1))
    else:
        errors = list(vae_errors(theirs, 128, 64, torch.float64))
    record(f"full width, {model}, {part}", max(errors))
    assert max(errors) <= LIMIT
