"""Adapters and embeddings with tensors of other names, shapes and kinds: none is loaded in part, none leaves anything behind."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fuzz.bent import bend
from fuzz.outcome import Tally
from fuzz.tiny import HOW, make_model
from latentgen import Text2ImagePipeline
from latentgen.pipelines.describe import describe
from latentgen.weights.errors import WeightsError
from latentgen.weights.safetensors_io import write_tensors

ZEROS = ("untyped", "slow", "left_behind", "half_loaded")
NAMES = ("x", ".", "lora_unet_", "lora_unet_x.lora_down.weight", "unet.", "a.alpha", "lora_te_x.alpha",
         "text_model.x.lora_A.weight",
         "lora_unet_input_blocks_0_0.alpha", "lora_unet_conv_in.diff", "lora_unet_conv_in.diff_b", "lora_unet_conv_in.on_input",
         "lora_unet_conv_norm_out.w_norm", "*", "emb_params",
         "string_to_param", "base_model.model.x.lora_B.weight", "lora_unet_conv_in.dora_scale",
         "lora_unet_conv_in.alpha", "lora_unet_conv_in.lora_mid.weight", "unet.conv_in.lora_A.weight")  # fmt: skip
METADATA = ("", "{", "[1]", "{}", '{"r": null}', '{"unet.r": -1, "unet.lora_alpha": "x"}', '{"unet.alpha_pattern": [1]}',
            '{"unet.rank_pattern": {"(": 1}}', "[" * 5000, '{"unet.lora_alpha": 1e999}',
            json.dumps({"unet.lora_alpha": 1, "unet.alpha_pattern": {f"{'a' * 240}{k}": 1 for k in range(4000)}}),
            json.dumps({"unet.lora_alpha": 1, "unet.alpha_pattern": {f"{'a' * 2000}{k}": 1 for k in range(4000)}}))  # fmt: skip


def good_files(pipe: Text2ImagePipeline) -> dict[str, dict[str, Tensor]]:
    """An adapter of every kind, and embeddings in two spellings, that fit a pipeline."""
    layers = [(n, m) for n, m in pipe.unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    made: dict[str, dict[str, Tensor]] = {
        kind: {} for kind in ("kohya", "dora", "loha", "lokr", "peft", "full", "ia3", "original")
    }
    for layer, module in layers[:12]:
        name, weight = f"lora_unet_{layer.replace('.', '_')}", module.weight
        out, size, kernel = weight.shape[0], weight[0].numel(), weight.shape[2:]
        plain = {
            f"{name}.lora_down.weight": torch.randn(2, weight.shape[1], *kernel),
            f"{name}.lora_up.weight": torch.randn(out, 2, *(1 for _ in kernel)),
            f"{name}.alpha": torch.tensor(2.0),
        }
        made["kohya"] |= plain
        made["dora"] |= plain | {f"{name}.dora_scale": torch.rand(out, *(1 for _ in weight.shape[1:])) + 0.5}
        made["loha"] |= {
            f"{name}.hada_{part}": torch.randn(*shape)
            for part, shape in (("w1_a", (out, 2)), ("w1_b", (2, size)), ("w2_a", (out, 2)), ("w2_b", (2, size)))
        } | {f"{name}.alpha": torch.tensor(1.0)}
        made["full"] |= {f"{name}.diff": torch.randn_like(weight)}
        if module.bias is not None:
            made["full"] |= {f"{name}.diff_b": torch.randn_like(module.bias)}
        made["ia3"] |= {f"{name}.weight": torch.randn(out), f"{name}.on_input": torch.tensor(0)}
        if weight.ndim == 2:
            made["lokr"] |= {f"{name}.lokr_w1": torch.randn(2, 2), f"{name}.lokr_w2": torch.randn(out // 2, size // 2)}
            made["peft"] |= {
                f"unet.{layer}.lora_A.weight": torch.randn(2, size),
                f"unet.{layer}.lora_B.weight": torch.randn(out, 2),
            }
    norms = [(n, m) for n, m in pipe.unet.named_modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)]
    for layer, module in norms[:4]:
        name = f"lora_unet_{layer.replace('.', '_')}"
        made["full"] |= {
            f"{name}.w_norm": torch.randn_like(module.weight),
            f"{name}.b_norm": torch.randn_like(module.bias),
        }
    factors = [tensor for name, tensor in made["kohya"].items() if name.startswith("lora_unet_conv_in.lora_")]
    made["original"] = dict(
        zip((f"lora_unet_input_blocks_0_0.lora_{x}.weight" for x in ("down", "up")), factors, strict=True)
    )
    width = pipe.text_encoder.config.hidden_size
    return made | {
        "embedding": {"emb_params": torch.randn(2, width)},
        "embedding by name": {"<cat>": torch.randn(width)},
    }


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Load and unload `count` adapters and embeddings that were bent."""
    r, tally = random.Random(seed), Tally()
    torch.manual_seed(seed)
    pipe = Text2ImagePipeline.from_pretrained(make_model(folder / "model"), **HOW)
    before = {name: tensor.clone() for name, tensor in weights(pipe).items()}
    words = len(pipe.tokenizer)
    path, made = folder / "bent.safetensors", good_files(pipe)
    for kind, tensors in made.items():
        write_tensors(path, tensors)
        load(pipe, path, kind)
        unload(pipe, kind)
    for number in range(count):
        kind = r.choice(list(made))
        key = r.choice(["lora_adapter_metadata", "ss_network_args", "ss_network_module", "format"])
        write_tensors(path, bend(r, made[kind], NAMES), {key: r.choice(METADATA)} if r.random() < 0.3 else None)
        os.utime(path, (1, 1))
        case = f"{kind}, number {number} of seed {seed}"
        start = time.perf_counter()
        if tally.load(case, lambda kind=kind: load(pipe, path, kind)):
            if r.random() < 0.5:
                draw(pipe, case, tally)
            unload(pipe, kind)
            if pipe.lora_scales or len(pipe.tokenizer) != words:
                tally.blame("left_behind", case)
        elif pipe.lora_scales or len(pipe.tokenizer) != words:
            tally.blame("half_loaded", case)
        tally.counts["cases"] -= 1  # both are of one
        tally.load(f"info, {case}", lambda: describe(path))
        tally.timed(case, start)
        if not all(torch.equal(tensor, before[name]) for name, tensor in weights(pipe).items()):
            tally.blame("left_behind", case)
    return tally.result(*ZEROS)


def weights(pipe: Text2ImagePipeline) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor
        for part in ("unet", "text_encoder")
        for name, tensor in getattr(pipe, part).state_dict().items()
    }


def draw(pipe: Text2ImagePipeline, case: str, tally: Tally) -> None:
    """Draw with what is loaded: a picture, or an error that says that it overflows."""
    try:
        pipe("a red circle", num_inference_steps=1, height=16, width=16, seed=0, show_progress=False)
    except FloatingPointError:  # which names the component
        tally.counts["overflowed"] += 1
    except BaseException as error:
        tally.blame("untyped", f"drawing, {case}: {error!r:.200}")


def load(pipe: Text2ImagePipeline, path: Path, kind: str) -> None:
    if not kind.startswith("embedding"):
        pipe.load_lora(path, name="bent")
        return
    try:
        pipe.load_textual_inversion(path, token=None if "name" in kind else "<new>")
    except ValueError as error:  # a word that is taken is an argument's mistake
        if "token=" not in str(error):
            raise
        raise WeightsError(str(error)) from error


def unload(pipe: Text2ImagePipeline, kind: str) -> None:
    if kind.startswith("embedding"):
        pipe.unload_textual_inversion()
    else:
        pipe.unload_lora("bent")
