"""Adapters on a GPU: factors from the CPU, float16 weights beside the model's own."""

import pytest
import tiny_lora
import torch

from latentgen.bundled import bundled_model
from latentgen.pipelines.text2image import Text2ImagePipeline

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]

CALL = {
    "prompt": "a red circle <thing>",
    "seed": 7,
    "num_inference_steps": 4,
    "output_type": "pt",
    "show_progress": False,
}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_lora_and_an_embedding_change_pictures_and_leave_no_trace(tmp_path, dtype):
    pipe = Text2ImagePipeline.from_pretrained(bundled_model(), dtype=dtype)
    host = Text2ImagePipeline.from_pretrained(bundled_model(), dtype="float32", device="cpu")
    layers = [name for name, _ in host.unet.named_modules() if name.endswith(("attn2.to_k", "attn1.to_out.0", "conv1"))]
    factors = {layer: (down, 0.1 * up) for layer, (down, up) in tiny_lora.factors(host.unet, layers).items()}
    lora = tiny_lora.write(tmp_path / "one.safetensors", tiny_lora.peft(factors))
    width = host.text_encoder.config.hidden_size
    word = tiny_lora.write(tmp_path / "thing.safetensors", {"<thing>": tiny_lora.noise(2, width, seed=3)})
    plain = pipe(**CALL).images
    for one in (pipe, host):
        one.load_lora(lora, 0.5)
        one.load_textual_inversion(word)
    drawn = pipe(**CALL).images
    assert (drawn - plain).abs().max() > 0.01
    assert torch.equal(pipe(**CALL).images, drawn)
    on_gpu, on_host = (p.adapted()().unet.get_submodule(layers[0]).weight for p in (pipe, host))
    assert torch.allclose(on_gpu.float().cpu(), on_host, rtol=1e-3, atol=1e-3)
    pipe.unload_lora()
    pipe.unload_textual_inversion()
    assert torch.equal(pipe(**CALL).images, plain)
