"""LoRA files for tiny networks, in every spelling: the factors are random, the names those of published files."""

import torch
from safetensors.torch import save_file

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
ATTENTION = [f"{BLOCK}.{attn}.{layer}" for attn in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")]
LINEAR = [
    *ATTENTION,
    f"{BLOCK}.ff.net.0.proj",
    f"{BLOCK}.ff.net.2",
    "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_v",
]
CONV = [
    "down_blocks.0.attentions.0.proj_in",  # 1 x 1 in Stable Diffusion 1
    "mid_block.resnets.1.conv2",
    "down_blocks.1.downsamplers.0.conv",
    "up_blocks.0.upsamplers.0.conv",
    "up_blocks.1.resnets.0.conv_shortcut",
    "conv_in",
]
TIME = ["mid_block.resnets.0.time_emb_proj", "time_embedding.linear_1"]
TEXT = [
    f"encoder.layers.{i}.{layer}"
    for i in (0, 2)
    for layer in (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        "mlp.fc1",
        "mlp.fc2",
    )
]


def shape_of(network, layer):
    module = dict(network.named_modules())
    return tuple((module.get(layer) or module[f"text_model.{layer}"]).weight.shape)


def noise(*shape, seed):
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factors(network, layers, rank=4, seed=0):
    """Random (down, up) by layer, in the shapes that kohya and PEFT give them."""
    made = {}
    for number, layer in enumerate(layers):
        out, into, *kernel = shape_of(network, layer)
        point = [1] * len(kernel)
        made[layer] = (
            noise(rank, into, *kernel, seed=2 * number + seed),
            noise(out, rank, *point, seed=2 * number + 1 + seed),
        )
    return made


def peft(unet=None, text=None, prefix="text_model."):
    named = {f"unet.{layer}": pair for layer, pair in (unet or {}).items()}
    named |= {f"text_encoder.{prefix}{layer}": pair for layer, pair in (text or {}).items()}
    tensors = {f"{name}.lora_A.weight": down for name, (down, _) in named.items()}
    return tensors | {f"{name}.lora_B.weight": up for name, (_, up) in named.items()}


def diffusers(unet=None, text=None, prefix="text_model."):
    """As diffusers wrote before PEFT."""
    named = {f"unet.{layer}.lora": pair for layer, pair in (unet or {}).items()}
    named |= {f"text_encoder.{prefix}{layer}.lora_linear_layer": pair for layer, pair in (text or {}).items()}
    tensors = {f"{name}.down.weight": down for name, (down, _) in named.items()}
    return tensors | {f"{name}.up.weight": up for name, (_, up) in named.items()}


def processor(unet=None, text=None, start="unet.", prefix="text_model."):
    """As diffusers wrote first: attention only."""
    named = {}
    for layer, pair in (unet or {}).items():
        attention, _, projection = layer.removesuffix(".0").rpartition(".")
        named[f"{start}{attention}.processor.{projection}_lora"] = pair
    old = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
    for layer, pair in (text or {}).items():
        attention, _, projection = layer.rpartition(".")
        named[f"text_encoder.{prefix}{attention}.{old[projection]}_lora"] = pair
    tensors = {f"{name}.down.weight": down for name, (down, _) in named.items()}
    return tensors | {f"{name}.up.weight": up for name, (_, up) in named.items()}


def kohya(unet=None, text=None, alpha=None, te="lora_te_"):
    named = {"lora_unet_" + layer.replace(".", "_"): pair for layer, pair in (unet or {}).items()}
    named |= {f"{te}text_model_" + layer.replace(".", "_"): pair for layer, pair in (text or {}).items()}
    tensors = {}
    for name, (down, up) in named.items():
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
    return tensors


def write(path, tensors, **metadata):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata or None)
    return path
