"""Autoencoders of single files: what the shapes say of the network, and its tensors' names in both spellings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from latentgen.weights.compvis.table import Row, Shapes, Table, layers, matrix
from latentgen.weights.errors import WeightsError

T = TypeVar("T")

RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}
MATRICES = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
ENDS = {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}
LATER_NAMES = re.compile(r"(.+\.attn(?:_1|\.\d+)\.)(?:to_([qkv])|to_out\.0)\.(weight|bias)")
"""Attention in files that were converted from folders of diffusers 0.18 and later, by programs that did not know its names."""

MOST = 64
"""Levels, and residual blocks in one, of a file that is believed."""


def first_stage_config(shapes: Shapes) -> tuple[str, dict[str, Any]]:
    """The autoencoder that has tensors of these shapes: its class, and its settings in the words of `config.json`.

    Raises:
        WeightsError: if the shapes are not those of an autoencoder of LDM's.
    """
    try:
        levels = _count(shapes, r"encoder\.down\.(\d+)\.")
        resnets = _count(shapes, r"encoder\.down\.0\.block\.(\d+)\.")
        attends = [f"encoder.down.{level}.attn.0.q.weight" in shapes for level in range(levels)]
        config: dict[str, Any] = {
            "in_channels": shapes["encoder.conv_in.weight"][1],
            "out_channels": shapes["decoder.conv_out.weight"][0],
            "block_out_channels": [shapes[f"encoder.down.{n}.block.0.conv1.weight"][0] for n in range(levels)],
            "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends],
            "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
            "layers_per_block": resnets,
            "latent_channels": shapes["decoder.conv_in.weight"][1],
            "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in shapes,
        }
        if "quantize.embedding.weight" not in shapes:
            used = {f"use_{name}": f"{name}.weight" in shapes for name in ("quant_conv", "post_quant_conv")}
            return "AutoencoderKL", config | used
        entries, channels = shapes["quantize.embedding.weight"]
        return "VQModel", config | {"num_vq_embeddings": entries, "vq_embed_dim": channels}
    except WeightsError:
        raise
    except (LookupError, ArithmeticError, ValueError, TypeError) as error:
        looked = f" (it lacks {error.args[0]})" if isinstance(error, KeyError) else ""
        raise WeightsError(f"its autoencoder is of an unknown form{looked}: only LDM's are read.") from error


def with_first_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """An autoencoder's tensors, those of its attention under the layout's own names."""

    def first(name: str) -> str:
        match = LATER_NAMES.fullmatch(name)
        return f"{match[1]}{match[2] or 'proj_out'}.{match[3]}" if match else name

    renamed = {first(name): tensor for name, tensor in tensors.items()}
    return renamed if len(renamed) == len(tensors) else dict(tensors)


def _count(shapes: Shapes, pattern: str) -> int:
    count = 1 + max(int(match[1]) for name in shapes if (match := re.match(pattern, name)))
    if count > MOST:
        raise WeightsError(f"its autoencoder has {count} levels or blocks; at most {MOST} are read.")
    return count


def first_stage_table(config: Mapping[str, Any]) -> Table:
    """The names of an autoencoder with these settings."""
    return Table(_rows(len(config["block_out_channels"]), config["layers_per_block"]))


def _rows(levels: int, resnets: int) -> Iterator[Row]:
    yield from layers("", "", {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"})
    yield Row("quantize.embedding.weight", ("quantize.embedding.weight",))
    for half in ("encoder", "decoder"):
        yield from layers(half, half, ENDS)
        yield from layers(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0", RESNET)
        yield from _attention(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0")
        yield from layers(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1", RESNET)
    for level in range(levels):
        down, here = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        yield from layers(down, here, {"downsample.conv": "downsamplers.0.conv"})
        yield from _level(down, here, resnets)
        up, here = f"decoder.up.{levels - 1 - level}", f"decoder.up_blocks.{level}"
        yield from layers(up, here, {"upsample.conv": "upsamplers.0.conv"})
        yield from _level(up, here, resnets + 1)


def _level(theirs: str, ours: str, resnets: int) -> Iterator[Row]:
    for n in range(resnets):
        yield from layers(f"{theirs}.block.{n}", f"{ours}.resnets.{n}", RESNET)
        yield from _attention(f"{theirs}.attn.{n}", f"{ours}.attentions.{n}")


def _attention(theirs: str, ours: str) -> Iterator[Row]:
    yield from layers(theirs, ours, {"norm": "group_norm"})
    for there, here in MATRICES.items():
        yield Row(f"{theirs}.{there}.weight", (f"{ours}.{here}.weight",), matrix(2))
        yield Row(f"{theirs}.{there}.bias", (f"{ours}.{here}.bias",))
