"""Networks and model folders of Stable Diffusion's form, small enough for tests, made with diffusers."""

import json
import shutil
from pathlib import Path

import diffusers
import torch
from tiny_clip import make_encoder, make_tokenizer_folder

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference" / "folders"

LEVELS = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
UNET = {"block_out_channels": (16, 32, 32), "norm_num_groups": 8, "cross_attention_dim": 32, "sample_size": 8, **LEVELS}
VAE = {
    "block_out_channels": (8, 16, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "sample_size": 32,
}
SD1 = {"attention_head_dim": 4}
SD2 = {"attention_head_dim": (2, 4, 4), "use_linear_projection": True}
SD2_V = {**SD2, "upcast_attention": True}
X4_UPSCALER = {
    **SD2,
    "in_channels": 7,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "only_cross_attention": (True, True, False),
    "num_class_embeds": 10,
}

SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}


def scatter(module, seed=0):
    """Move every parameter off its initial value: norms of 1 and biases of 0 would hide a mix-up."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def their_unet(**settings):
    """A tiny UNet of diffusers."""
    torch.manual_seed(0)
    return scatter(diffusers.UNet2DConditionModel(**{**UNET, **settings}))


def their_vae(**settings):
    """A tiny autoencoder of diffusers."""
    torch.manual_seed(0)
    return scatter(diffusers.AutoencoderKL(**{**VAE, **settings}))


def adopt(cls, theirs, device="cpu"):
    """Our network of class `cls` with the config and the very tensors of a network of diffusers."""
    with torch.device("meta"):
        ours = cls.from_config(dict(theirs.config))
    ours.load_state_dict(theirs.state_dict(), assign=True)
    return ours.to(device).requires_grad_(False).eval()


def relative_error(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


def make_model_folder(folder, *, unet=SD1, vae=None, encoder=None, scheduler=None, tokenizer=None):
    """Write a model folder in the form in which Stable Diffusion is published.

    Args:
        unet, vae, encoder, scheduler: settings over those above.
        tokenizer: a published tokenizer's folder; None makes a tiny one.
    """
    their_unet(**unet).save_pretrained(folder / "unet")
    their_vae(**(vae or {})).save_pretrained(folder / "vae")
    words = {} if tokenizer is None else {"vocab_size": 49408}
    make_encoder(**{**words, **(encoder or {})}).save_pretrained(folder / "text_encoder")
    if tokenizer is None:
        make_tokenizer_folder(folder / "tokenizer")
    else:
        shutil.copytree(tokenizer, folder / "tokenizer", copy_function=shutil.copyfile)
    (folder / "scheduler").mkdir()
    config = {"_class_name": "PNDMScheduler", **SCHEDULER, **(scheduler or {})}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def make_upscaler_folder(folder):
    """Write a model folder of the form of Stable Diffusion's x4 upscaler."""
    their_unet(**X4_UPSCALER).save_pretrained(folder / "unet")
    their_vae(scaling_factor=0.08333).save_pretrained(folder / "vae")
    make_encoder().save_pretrained(folder / "text_encoder")
    make_tokenizer_folder(folder / "tokenizer")
    schedulers = {
        "scheduler": {"_class_name": "DDIMScheduler", **SCHEDULER, "prediction_type": "v_prediction"},
        "low_res_scheduler": {"_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.0001,
                              "beta_end": 0.02, "clip_sample": True, "variance_type": "fixed_small"},
    }  # fmt: skip
    for name, config in schedulers.items():
        (folder / name).mkdir()
        (folder / name / "scheduler_config.json").write_text(json.dumps(config))
    index = {
        "_class_name": "StableDiffusionUpscalePipeline",
        "_diffusers_version": "0.18.0",
        "low_res_scheduler": ["diffusers", "DDPMScheduler"],
        "max_noise_level": 350,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "watermarker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def their_pipeline(folder):
    """The same folder as a pipeline of diffusers, in float32."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, feature_extractor=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe
