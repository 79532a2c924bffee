"""Embeddings as diffusers loads them: prompts with the new words give the same states, and so the same pictures."""

import pytest
import tiny_lora as tiny
import torch
from tiny_sd import SD1, make_model_folder, relative_error, their_pipeline

from latentgen.pipelines.text2image import Text2ImagePipeline
from latentgen.text import encode_prompts

pytestmark = pytest.mark.filterwarnings("ignore")

PROMPTS = ["a photo of <my-cat>", "<my-cat>, <style> <my-cat>!", "a photo of a cat", "<style>", "x<my-cat>y"]


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    tokenizer = reference / "stable-diffusion-v1-5" / "tokenizer"
    return make_model_folder(tmp_path_factory.mktemp("model") / "model", unet=SD1, tokenizer=tokenizer)


def states(pipe, prompts):
    """What our call embeds."""
    parts = pipe.adapted()()
    return encode_prompts(parts.tokenizer, parts.text_encoder, prompts, runs=parts.runs)


@pytest.mark.parametrize("spelling", ["one vector", "three vectors", "emb_params"])
def test_states_and_pictures(folder, tmp_path, spelling):
    ours = Text2ImagePipeline.from_pretrained(folder, device="cpu", dtype="float32")
    ours.show_progress = False
    theirs = their_pipeline(folder)
    cat = tiny.noise(*((32,) if spelling == "one vector" else (3, 32)), seed=1)
    style = tiny.noise(2, 32, seed=2)
    name = "emb_params" if spelling == "emb_params" else "<my-cat>"
    paths = [
        tiny.write(tmp_path / "cat.safetensors", {name: cat}),
        tiny.write(tmp_path / "s.safetensors", {"<style>": style}),
    ]
    token = "<my-cat>" if spelling == "emb_params" else None
    before = states(ours, ["a photo of a cat"])
    assert ours.load_textual_inversion(paths[0], token) == "<my-cat>"
    assert ours.load_textual_inversion(paths[1]) == "<style>"
    theirs.load_textual_inversion(paths[0], token=token)
    theirs.load_textual_inversion(paths[1])
    got = states(ours, PROMPTS)
    with torch.no_grad():
        expected, _ = theirs.encode_prompt(PROMPTS, "cpu", 1, False)
    assert relative_error(got, expected) < 1e-6
    assert torch.equal(got[2:3], before)  # other prompts are as they were
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 5, "latents": latents, "negative_prompt": "<style>"}
    picture = ours("<my-cat>", output_type="np", **options).images
    assert abs(picture - theirs("<my-cat>", output_type="np", **options).images).max() < 1e-4
