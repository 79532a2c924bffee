from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

CALLS = [
    {"prompt": f"number {k}, " + "very " * (9 * k) + "long", "seed": k, "output_type": "pt", **options}
    for k, options in enumerate(
        [
            {"num_inference_steps": 3},
            {"num_inference_steps": 7, "scheduler": "euler_a"},
            {"num_inference_steps": 4, "guidance_scale": 1.0},
            {"num_inference_steps": 5, "height": 16, "width": 48},
            {"num_inference_steps": 6, "scheduler": "dpm++_karras", "guidance_scale": 2.0},
            {"num_inference_steps": 4, "scheduler": "ddim", "eta": 1.0, "num_images_per_prompt": 2},
            {"num_inference_steps": 3, "scheduler": "heun", "guidance_rescale": 0.7},
            {"num_inference_steps": 8, "clip_skip": 1, "negative_prompt": "blurred"},
        ]
    )
]


@pytest.mark.filterwarnings("ignore:The prompt has .* tokens:UserWarning")
def test_eight_threads_at_once_draw_what_they_draw_one_after_another(pipe):
    serial = [pipe(**call).images for call in CALLS]
    start = Barrier(len(CALLS))

    def run(call):
        start.wait()
        return pipe(**call).images

    with ThreadPoolExecutor(len(CALLS)) as pool:
        parallel = list(pool.map(run, CALLS))
    assert all(torch.equal(one, other) for one, other in zip(serial, parallel, strict=True))
