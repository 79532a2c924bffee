"""UNets of single files: what the shapes say of the network, and its tensors' names in both spellings.

There every block of input, middle and output is numbered through; here blocks are grouped by resolution.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from latentgen.weights.compvis.table import Row, Shapes, Table, fused, layers, matrix
from latentgen.weights.errors import WeightsError

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
AROUND = {name: name for name in ("norm", "proj_in", "proj_out")}
TRANSFORMER = {
    name: name
    for name in (
        "norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2",
        *(f"attn{n}.{layer}" for n in (1, 2) for layer in ("to_q", "to_k", "to_v", "to_out.0")),
    )
}  # fmt: skip
MOST_BLOCKS = 256
"""Of a file that is believed; Stable Diffusion's have 12."""


def unet_config(shapes: Shapes, *, heads: int | None, head_channels: int | None) -> tuple[str, dict[str, Any]]:
    """The network that has tensors of these shapes.

    Args:
        shapes: names as in the file, after its prefix.
        heads: of attention, at every level; None if their width is the same instead.
        head_channels: their width; shapes do not tell it.

    Returns:
        The class, and its settings in the words of `config.json`.

    Raises:
        WeightsError: if the shapes are not those of such a network.
    """
    try:
        return _read(shapes, heads, head_channels)
    except WeightsError:
        raise
    except (LookupError, ArithmeticError, ValueError, TypeError) as error:
        looked = f" (it lacks {error.args[0]})" if isinstance(error, KeyError) else ""
        raise WeightsError(
            f"its UNet is of an unknown form{looked}: only UNets of LDM and Stable Diffusion 1 and 2 are read."
        ) from error


def _read(shapes: Shapes, heads: int | None, head_channels: int | None) -> tuple[str, dict[str, Any]]:
    inputs = _count(shapes, r"input_blocks\.(\d+)\.")
    ups = sum(bool(re.fullmatch(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.0)\.weight", name)) for name in shapes)
    levels, each = ups + 1, inputs // (ups + 1)
    firsts = [1 + level * each for level in range(levels)]
    widths = [shapes[f"input_blocks.{n}.0.out_layers.3.weight"][0] for n in firsts]
    attends = [any(name.startswith(f"input_blocks.{n}.1.") for name in shapes) for n in firsts]
    text = any(".transformer_blocks." in name for name in shapes)
    residual = levels > 1 and f"input_blocks.{each}.0.op.weight" not in shapes
    config: dict[str, Any] = {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": each - 1,
        "num_class_embeds": shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None,
    }
    if text:
        middle = "middle_block.1.transformer_blocks"
        context = shapes[f"{middle}.0.attn2.to_k.weight"][1]
        down, up, plain = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D", ("DownBlock2D", "UpBlock2D")
        config |= {
            "cross_attention_dim": context,
            "transformer_layers_per_block": _count(shapes, rf"{re.escape(middle)}\.(\d+)\."),
            "use_linear_projection": len(shapes["middle_block.1.proj_in.weight"]) == 2,
            "attention_head_dim": [width // head_channels if head_channels else heads for width in widths],
            "only_cross_attention": [_only_context(shapes, n, context) for n in firsts],
        }
    else:
        down, up = "AttnDownBlock2D", "AttnUpBlock2D"
        plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if residual else ("DownBlock2D", "UpBlock2D")
        shifts = shapes["input_blocks.1.0.emb_layers.1.weight"][0]
        config |= {
            "attention_head_dim": [head_channels or width // (heads or 1) for width in widths],
            "downsample_type": "resnet" if residual else "conv",
            "upsample_type": "resnet" if residual else "conv",
            "resnet_time_scale_shift": "scale_shift" if shifts == 2 * widths[0] else "default",
        }
    if min(config["attention_head_dim"]) < 1:
        raise ValueError("a level without channels, or heads without")
    config["down_block_types"] = [down if a else plain[0] for a in attends]
    config["up_block_types"] = [up if a else plain[1] for a in reversed(attends)]
    return "UNet2DConditionModel" if text else "UNet2DModel", config


def _only_context(shapes: Shapes, block: int, context: int) -> bool:
    """Whether a level's first attention looks at the context too. (Where that is as wide as the level, it does not.)"""
    keys = shapes.get(f"input_blocks.{block}.1.transformer_blocks.0.attn1.to_k.weight")
    return keys is not None and keys[1] == context != keys[0]


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the highest number that the pattern finds at the beginning of a name."""
    count = 1 + max(int(match[1]) for name in shapes if (match := re.match(pattern, name)))
    if count > MOST_BLOCKS:
        raise WeightsError(f"its UNet has blocks up to {count}; at most {MOST_BLOCKS} are read.")
    return count


def unet_table(config: Mapping[str, Any]) -> Table:
    """The names of a network with these settings."""
    return Table(_rows(config))


def original_layers(config: Mapping[str, Any]) -> dict[str, str]:
    """What the original code calls the layers of a `UNet2DConditionModel` with these settings, and their names here."""
    table = unet_table({**config, "attention_head_dim": (1,) * len(config["block_out_channels"])})  # says no names
    return {
        row.theirs.removesuffix(".weight"): row.ours[0].removesuffix(".weight")
        for row in table.rows.values()
        if row.theirs.endswith(".weight")
    }


def _rows(config: Mapping[str, Any]) -> Iterator[Row]:
    levels, resnets = len(config["block_out_channels"]), config["layers_per_block"]
    head_sizes = config["attention_head_dim"]
    middle_heads = config["block_out_channels"][-1] // head_sizes[-1]
    depth = config.get("transformer_layers_per_block", 0)
    residual = config.get("downsample_type") == "resnet"
    yield from layers("", "", ENDS)
    yield Row("label_emb.weight", ("class_embedding.weight",))

    def attention(theirs: str, ours: str, heads: int) -> Iterator[Row]:
        if depth:
            yield from layers(theirs, ours, AROUND)
            for n in range(depth):
                inside = f"transformer_blocks.{n}"
                yield from layers(f"{theirs}.{inside}", f"{ours}.{inside}", TRANSFORMER)
            return
        yield from layers(theirs, ours, {"norm": "group_norm"})
        yield from _one_for_three(theirs, ours, heads)

    def resampling(theirs: str, ours: str, convolution: str) -> Iterator[Row]:
        yield from layers(theirs, ours, RESNET) if residual else layers(theirs, ours, {convolution: "conv"})

    for level, kind in enumerate(config["down_block_types"]):
        for n in range(resnets):
            block, here = f"input_blocks.{1 + level * (resnets + 1) + n}", f"down_blocks.{level}"
            yield from layers(f"{block}.0", f"{here}.resnets.{n}", RESNET)
            if "Attn" in kind:
                heads = config["block_out_channels"][level] // head_sizes[level]
                yield from attention(f"{block}.1", f"{here}.attentions.{n}", heads)
        if level < levels - 1:
            block = f"input_blocks.{(level + 1) * (resnets + 1)}"
            yield from resampling(f"{block}.0", f"down_blocks.{level}.downsamplers.0", "op")
    yield from layers("middle_block.0", "mid_block.resnets.0", RESNET)
    yield from attention("middle_block.1", "mid_block.attentions.0", middle_heads)
    yield from layers("middle_block.2", "mid_block.resnets.1", RESNET)
    for level, kind in enumerate(config["up_block_types"]):
        attends = "Attn" in kind
        for n in range(resnets + 1):
            block, here = f"output_blocks.{level * (resnets + 1) + n}", f"up_blocks.{level}"
            yield from layers(f"{block}.0", f"{here}.resnets.{n}", RESNET)
            if attends:
                heads = config["block_out_channels"][-1 - level] // head_sizes[-1 - level]
                yield from attention(f"{block}.1", f"{here}.attentions.{n}", heads)
        if level < levels - 1:
            yield from resampling(f"{block}.{2 if attends else 1}", f"{here}.upsamplers.0", "conv")


def _one_for_three(theirs: str, ours: str, heads: int) -> Iterator[Row]:
    for kind, dimensions in (("weight", 3), ("bias", 1)):
        parts = tuple(f"{ours}.to_{letter}.{kind}" for letter in "qkv")
        yield Row(f"{theirs}.qkv.{kind}", parts, fused(heads, dimensions))
    yield Row(f"{theirs}.proj_out.weight", (f"{ours}.to_out.0.weight",), matrix(1))
    yield Row(f"{theirs}.proj_out.bias", (f"{ours}.to_out.0.bias",))
