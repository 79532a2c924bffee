"""`UNet2DModel` against diffusers' 0.40, with the same weights: float32, largest difference over largest value."""

import diffusers
import pytest
import torch
from tiny_sd import adopt, relative_error, scatter

from latentgen.models.unet2d import UNet2DModel

LIMIT = 1e-5
TINY = {
    "block_out_channels": (16, 32, 32),
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "sample_size": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
RESNETS = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
VARIANTS = {
    "LDM": {},
    "one head": {"attention_head_dim": None},
    "no middle attention": {"add_attention": False},
    "residual resampling": RESNETS,
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    "churches": {**RESNETS, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    "concatenated condition": {"in_channels": 7},
    "classes": {"num_class_embeds": 5},
    "other groups in the middle": {"attn_norm_num_groups": 16},
    "timesteps that nothing needs": {"num_train_timesteps": 1000},
    "no attention at the levels": {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3},
    "DDPM's timestep embedding": {"flip_sin_to_cos": False, "freq_shift": 1},
    "one block a level": {"layers_per_block": 1, "norm_eps": 1e-3},
}


@pytest.fixture(params=VARIANTS)
def theirs(request):
    torch.manual_seed(0)
    return scatter(diffusers.UNet2DModel(**{**TINY, **VARIANTS[request.param]}))


@torch.no_grad()
def test_outputs_are_those_of_diffusers(theirs):
    ours = adopt(UNet2DModel, theirs)
    labels = torch.tensor([1, 4]) if theirs.config.num_class_embeds else None
    for size in ((8, 8), (12, 8)):
        x = torch.randn(2, theirs.config.in_channels, *size, generator=torch.Generator().manual_seed(1))
        for timestep in (0, torch.tensor(341.5), torch.tensor([999, 3])):  # a plain 341.5 is cut to 341 there
            expected = theirs(x, timestep, class_labels=labels).sample
            got = ours(x, timestep, labels)
            assert relative_error(got, expected) <= LIMIT
    shifts = ours.prepare_time(torch.tensor([999.0, 3.0]), labels)
    assert torch.equal(ours.denoise(x, shifts), got)


def test_files_go_both_ways(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    UNet2DModel.from_pretrained(tmp_path / "theirs", device="cpu", dtype="float32").save_pretrained(tmp_path / "ours")
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours")
    assert again.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())


def test_odd_sizes_come_back(theirs):
    """Where diffusers fails: levels halve by cutting off, and the way up comes back to what the way down had."""
    ours = adopt(UNet2DModel, theirs)
    labels = torch.tensor([1]) if theirs.config.num_class_embeds else None
    with torch.no_grad():
        assert ours(torch.randn(1, theirs.config.in_channels, 7, 9), 5, labels).shape == (1, 3, 7, 9)
