"""A folder whose scheduler is not implemented: what is said, and that it helps."""

import json

import pytest

from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.schedulers import SCHEDULERS, DPMSolverMultistepScheduler
from latentgen.weights.errors import WeightsError


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "LMSDiscreteScheduler", "AutoencoderKLWan"])
def test_an_unsupported_scheduler_is_refused_with_a_remedy_that_works(folder_copy, name):
    index, config = folder_copy / "model_index.json", folder_copy / "scheduler" / "scheduler_config.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "scheduler": ["diffusers", name]}))
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": name}))
    with pytest.raises(WeightsError) as caught:
        Text2ImagePipeline.from_pretrained(folder_copy, device="cpu", dtype="float32")
    message = str(caught.value)
    assert f"names diffusers.{name} as scheduler, which is not supported" in message
    listed = message.split("supported are ")[1].split(".")[0].split(", ")
    assert sorted(listed) == sorted(SCHEDULERS)

    remedy = message[message.rindex("scheduler=") + len("scheduler=") :].rstrip(".")
    scheduler = eval(remedy, {"DPMSolverMultistepScheduler": DPMSolverMultistepScheduler})
    pipe = Text2ImagePipeline.from_pretrained(folder_copy, device="cpu", dtype="float32", scheduler=scheduler)
    assert pipe.scheduler.beta_schedule == "scaled_linear"
    assert pipe("a cat", num_inference_steps=2, output_type="latent", show_progress=False).images.isfinite().all()


def test_another_components_list_has_no_schedulers(folder_copy):
    index = folder_copy / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "unet": ["diffusers", "UNet3DModel"]}))
    with pytest.raises(WeightsError, match=r"supported are AutoencoderKL, .*UNet2DConditionModel") as caught:
        Text2ImagePipeline.from_pretrained(folder_copy, device="cpu", dtype="float32")
    assert "Scheduler" not in str(caught.value)
    assert "pass unet=..." in str(caught.value)
