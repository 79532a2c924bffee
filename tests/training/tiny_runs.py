"""A few generated pictures with captions, and runs on them that take seconds."""

import json
from dataclasses import replace

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220), "yellow": (230, 220, 50)}
SIZE = 16

AUTOENCODER = """
[data]
folder = "pictures"
size = 16

[run]
output = "autoencoder"
steps = 60
batch_size = 8
learning_rate = 1e-2
warmup_steps = 5
decay_steps = 20
ema_decay = 0.9
precision = "no"
log_every = 10
sample_every = 30
checkpoint_every = 20

[loss]
kl_weight = 1e-4

[model]
block_out_channels = [8, 16]
down_block_types = ["DownEncoderBlock2D", "DownEncoderBlock2D"]
up_block_types = ["UpDecoderBlock2D", "UpDecoderBlock2D"]
norm_num_groups = 4
mid_block_add_attention = false
"""

DIFFUSION = """
autoencoder = "autoencoder/model"
condition_dropout = 0.25

[data]
folder = "pictures"
size = 16

[run]
output = "diffusion"
steps = 60
batch_size = 8
learning_rate = 5e-3
warmup_steps = 5
ema_decay = 0.9
precision = "no"
log_every = 10
sample_every = 30
checkpoint_every = 20

[text]
max_length = 12
vocab_size = 530
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2

[unet]
block_out_channels = [8, 16]
down_block_types = ["DownBlock2D", "CrossAttnDownBlock2D"]
up_block_types = ["CrossAttnUpBlock2D", "UpBlock2D"]
layers_per_block = 1
attention_head_dim = 2
norm_num_groups = 4

[scheduler]
_class_name = "DDIMScheduler"
beta_schedule = "scaled_linear"
beta_start = 0.00085
beta_end = 0.012
rescale_betas_zero_snr = true
prediction_type = "v_prediction"
timestep_spacing = "trailing"
clip_sample = false

[samples]
num_inference_steps = 2
prompts = ["a red square", "a blue square on black"]
"""


def make_pictures(folder, count=24):
    """Squares of four colours on black or white, and metadata.jsonl."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    lines = []
    for i in range(count):
        name = list(COLOURS)[i % 4]
        ground = "white" if i % 3 else "black"
        picture = np.full((SIZE, SIZE, 3), 255 if ground == "white" else 0, np.uint8)
        y, x = random.integers(0, SIZE // 2, 2)
        picture[y : y + 8, x : x + 8] = COLOURS[name]
        Image.fromarray(picture).save(folder / f"{i:03d}.png")
        lines.append({"file_name": f"{i:03d}.png", "text": f"a {name} square on {ground}"})
    write_metadata(folder, lines)
    return folder


def write_metadata(folder, lines):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def changed(config, *, data=None, run=None, **others):
    """A run's config with some settings replaced."""
    return replace(config, data=replace(config.data, **(data or {})), run=replace(config.run, **(run or {})), **others)


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
