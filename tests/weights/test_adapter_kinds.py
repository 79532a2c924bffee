"""What is said of an adapter's file from its names and shapes."""

import pytest

from latentgen.weights.adapters import adapter_title, embedding_title

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
FLAT = f"lora_unet_{ATTENTION.replace('.', '_')}"

ADAPTERS = {
    "PEFT": ({f"unet.{ATTENTION}.to_k.lora_A.weight": (4, 768), f"unet.{ATTENTION}.to_k.lora_B.weight": (320, 4)},
             "an adapter (LoRA) for Stable Diffusion 1: UNet, rank 4"),
    "diffusers": ({f"unet.{ATTENTION}.to_k.lora.down.weight": (8, 1024)},
                  "an adapter (LoRA) for Stable Diffusion 2: UNet, rank 8"),
    "the first diffusers": ({f"{ATTENTION}.processor.to_k_lora.down.weight": (4, 768)},
                            "an adapter (LoRA) for Stable Diffusion 1: UNet, rank 4"),
    "a text encoder": ({"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight": (4, 768)},
                       "an adapter (LoRA): text encoder, rank 4"),
    "kohya": ({f"{FLAT}_to_k.lora_down.weight": (16, 2048),
               "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (16, 768)},
              "an adapter (LoRA) for Stable Diffusion XL: UNet and text encoder, rank 16"),
    "LoHa": ({f"{FLAT}_to_k.hada_w1_a": (320, 4), f"{FLAT}_to_k.alpha": ()}, "an adapter (LoHa): UNet"),
    "LoKr": ({f"{FLAT}_to_k.lokr_w1": (4, 4)}, "an adapter (LoKr): UNet"),
    "DoRA": ({f"{FLAT}_to_k.lora_down.weight": (4, 768), f"{FLAT}_to_k.dora_scale": (320, 1)},
             "an adapter (DoRA) for Stable Diffusion 1: UNet, rank 4"),
    "IA3": ({f"{FLAT}_to_k.weight": (320,), f"{FLAT}_to_k.on_input": ()}, "an adapter (IA3): UNet"),
    "full": ({f"{FLAT}_to_k.diff": (320, 768)}, "an adapter (full differences): UNet"),
    "a model": ({"down_blocks.0.attentions.0.norm.weight": (320,)}, None),
    "nothing": ({}, None),
}  # fmt: skip

EMBEDDINGS = {
    "A1111": ({"emb_params": (4, 1024)}, "an embedding (textual inversion) for Stable Diffusion 2, vectors: 4"),
    "diffusers": ({"<my-cat>": (768,)}, "an embedding (textual inversion) for Stable Diffusion 1, vectors: 1"),
    "XL": ({"clip_g": (4, 1280), "clip_l": (4, 768)},
           "an embedding for a model with several text encoders, as Stable Diffusion XL"),
    "a model": ({"conv_in.weight": (320, 4, 3, 3)}, None),
    "nothing": ({}, None),
}  # fmt: skip


@pytest.mark.parametrize(("shapes", "title"), ADAPTERS.values(), ids=ADAPTERS)
def test_adapters(shapes, title):
    assert adapter_title(shapes) == title
    assert embedding_title(shapes) is None


@pytest.mark.parametrize(("shapes", "title"), EMBEDDINGS.values(), ids=EMBEDDINGS)
def test_embeddings(shapes, title):
    assert embedding_title(shapes) == title
    assert adapter_title(shapes) is None
