"""A bound on memory: which tiles it gives, and that a call keeps to it."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from latentgen import AutoencoderKL, SuperResPipeline, Tiling, VQModel, bundled_model
from latentgen.pipelines.memory import LEAST, Work


@pytest.fixture(scope="module")
def pipe():
    pipe = SuperResPipeline.from_pretrained(bundled_model("super_resolution"), device="cpu", dtype="float32")
    pipe.show_progress = False
    return pipe


def work(pipe, side=256, **changes):
    return Work(
        **{"unet": pipe.unet, "vae": pipe.vae, "count": 1, "guided": False, "height": side, "width": side} | changes
    )


def least_of(job):
    with pytest.raises(
        ValueError, match=r"memory=1 bytes are too few for .* or more, or smaller or fewer pictures"
    ) as error:
        job.tiling(1)
    return int(re.search(r"they need (\d+)\. Give memory=\1 ", str(error.value))[1])


def test_the_error_names_the_least_bound(pipe):
    least = least_of(work(pipe))
    tiling = work(pipe).tiling(least)
    factor = pipe.vae.config.factor
    assert LEAST * factor in (tiling.unet, tiling.vae)
    with pytest.raises(ValueError, match=f"memory={least - 1} bytes are too few for 1 picture of 1024 x 1024"):
        work(pipe).tiling(least - 1)


def test_more_memory_gives_larger_tiles_and_then_none(pipe):
    least = least_of(work(pipe))
    found = [work(pipe).tiling(least * k) for k in (1, 2, 4, 100)]
    for name in ("unet", "vae"):
        sides = [getattr(tiling, name) or 10**9 for tiling in found]
        assert sides == sorted(sides)
        assert sides[0] < sides[-1] == 10**9
    for tiling in found:
        tiling.check(pipe.vae.config.factor)
    assert found[1].overlap >= 16


@pytest.mark.parametrize("change", [{"count": 4}, {"height": 512}])
def test_more_to_do_needs_more(pipe, change):
    assert least_of(work(pipe, **change)) > least_of(work(pipe))


def test_guidance_makes_the_unet_dearer(pipe):
    plain, guided = work(pipe), work(pipe, guided=True)
    assert guided._costs()[0] > 1.9 * plain._costs()[0]
    assert guided._costs()[1] == plain._costs()[1]


def test_a_large_codebook_takes_a_constant_and_no_smaller_tiles(pipe):
    """Its distances are computed a number at a time, however many latents there are."""
    words = {"block_out_channels": [8, 16], "down_block_types": ["DownEncoderBlock2D"] * 2, "latent_channels": 3,
             "up_block_types": ["UpDecoderBlock2D"] * 2, "norm_num_groups": 8}  # fmt: skip
    with torch.device("meta"):
        plain = work(pipe, vae=AutoencoderKL.from_config(words))
        large = work(pipe, vae=VQModel.from_config({**words, "num_vq_embeddings": 8192}))
    assert large._costs()[1] == pytest.approx(plain._costs()[1], rel=0.05)
    assert 2**26 < least_of(large) - least_of(plain) < 2**28


def test_a_small_picture_is_done_whole(pipe):
    small = work(pipe, side=8)
    assert small.tiling(least_of(small)).unet is None


def test_a_bounded_call_draws_in_those_tiles(pipe):
    image = torch.rand(3, 48, 40, generator=torch.Generator().manual_seed(0))
    job = work(pipe, height=48, width=40)
    bound = least_of(job)
    tiling = job.tiling(bound)
    assert tiling.vae is not None
    call = {"image": image, "num_inference_steps": 1, "seed": 0, "output_type": "np"}
    drawn = pipe(**call, memory=bound).images
    assert np.array_equal(drawn, pipe(**call, tiling=tiling).images)
    assert not np.array_equal(drawn, pipe(**call).images)
    assert np.array_equal(pipe(**call, memory="4GB").images, pipe(**call, tiling=Tiling(batch=1)).images)


def test_bad_bounds(pipe):
    call = {"image": torch.rand(3, 8, 8), "num_inference_steps": 1}
    with pytest.raises(ValueError, match=r"memory='much' is not a size: .* or None for no bound"):
        pipe(**call, memory="much")
    with pytest.raises(ValueError, match="give one of them"):
        pipe(**call, memory="4GB", tiling=Tiling())
    with pytest.raises(ValueError, match="memory=1000 bytes are too few for 1 picture of 32 x 32"):
        pipe(**call, memory=1000)


SCRIPT = """
import json, sys, torch
from pathlib import Path
from latentgen import SuperResPipeline, bundled_model

def resident(what):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(what))
    return int(line.split()[1]) * 1024

torch.set_num_threads(1)
pipe = SuperResPipeline.from_pretrained(bundled_model("super_resolution"), device="cpu", dtype="float32")
pipe.show_progress = False
pipe(image=torch.zeros(3, 16, 16), num_inference_steps=1, memory="4GB")
taken = []
for bound in map(int, sys.argv[2:]):
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = pipe(image=torch.zeros(int(sys.argv[1]), 3, 128, 96), num_inference_steps=1, memory=bound)
    taken.append(resident("VmHWM") - before)
    del result
print(json.dumps(taken))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("count", [1, 2])
def test_a_call_takes_no_more_than_its_bound(pipe, count):
    """Resident pages of a fresh process, at their highest, above what it had before the call."""
    job = work(pipe, height=128, width=96, count=count)
    least = least_of(job)
    bounds = [least, 2 * least, 16 * least]
    assert job.tiling(bounds[-1]).vae is None
    command = [sys.executable, "-c", SCRIPT, str(count), *map(str, bounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken = json.loads(done.stdout)
    assert all(used <= bound for used, bound in zip(taken, bounds, strict=True)), (taken, bounds)
    assert taken[-1] > taken[0]  # whole it takes more than in tiles
    assert taken[-1] > bounds[-1] / 20  # and the estimate is none of another world
