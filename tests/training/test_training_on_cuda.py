"""Both stages on a GPU, in each precision, resumed after a stop."""

import json

import pytest
import torch
from tiny_runs import changed, metrics

from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.training import train_autoencoder, train_diffusion
from latentgen.training.checkpoint import checkpoints

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_both_stages_and_resume(autoencoder_config, diffusion_config, tmp_path, precision):
    run = {"steps": 20, "precision": precision, "checkpoint_every": 10, "sample_every": 10, "decay_steps": 5}
    longer = {**run, "steps": 40}
    stages = (
        (train_autoencoder, changed(autoencoder_config, run={"output": tmp_path / "a"})),
        (train_diffusion, changed(diffusion_config, run={"output": tmp_path / "d"}, autoencoder=tmp_path / "a/model")),
    )
    for train, config in stages:
        train(changed(config, run=run))
        folder = train(changed(config, run=longer), resume=True)
        newest = max(checkpoints(folder.parent / "checkpoints"))[1]
        assert ("scaler" in json.loads((newest / "state.json").read_text())) == (precision == "fp16")
        assert metrics(folder.parent)[-1]["step"] == 40
        assert (folder.parent / "samples" / "00000040.png").exists()
    pipe = Text2ImagePipeline.from_pretrained(tmp_path / "d" / "model")
    assert pipe("a red square", num_inference_steps=2, show_progress=False).images[0].size == (16, 16)
