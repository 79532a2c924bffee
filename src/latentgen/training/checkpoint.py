"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentgen.training.ema import EMA
from latentgen.training.folders import replacing_folder
from latentgen.weights.config_files import read_json, write_json
from latentgen.weights.errors import WeightsError
from latentgen.weights.safetensors_io import read_tensors, write_tensors

NAME = re.compile(r"step-(\d{8})")


@dataclass
class RunState:
    """All that a run is: what `save` writes and `restore` brings back."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    scaler: Any = None  # a torch.amp.GradScaler, in float16 runs
    made_by: dict[str, Any] | None = None  # see `record`


def _parameters(state: RunState) -> dict[str, nn.Parameter]:
    return {name: p for name, p in state.module.named_parameters() if p.requires_grad}


def _optimizer_tensors(state: RunState) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.detach().cpu()
        for name, parameter in _parameters(state).items()
        for key, value in state.optimizer.state.get(parameter, {}).items()
    }


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The whole checkpoints in `folder`, as (step, path), oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := NAME.fullmatch(p.name)) and (p / "state.json").is_file()]
    return sorted(found)


def save(folder: Path, step: int, state: RunState, *, keep: int) -> Path:
    """Write the checkpoint after `step` steps, then remove all but the newest `keep`.

    It is written under another name and renamed: a kill or a full disk leaves the checkpoints before it whole. What
    a killed run left half-written is removed.

    Raises:
        OSError: if it cannot be written; nothing of it is left behind.
    """
    for half_written in folder.glob(".step-*"):
        shutil.rmtree(half_written, ignore_errors=True)
    final = folder / f"step-{step:08d}"
    with replacing_folder(final) as fresh:
        write_tensors(fresh / "model.safetensors", state.module.state_dict())
        write_tensors(fresh / "optimizer.safetensors", _optimizer_tensors(state))
        facts: dict[str, Any] = {"step": step, "optimizer": type(state.optimizer).__name__}
        if state.ema is not None:
            write_tensors(fresh / "ema.safetensors", state.ema.shadow)
            facts["ema_updates"] = state.ema.updates
        if state.scaler is not None:
            facts["scaler"] = state.scaler.state_dict()
        if state.made_by is not None:
            facts["made_by"] = state.made_by
        write_json(fresh / "state.json", facts)
    for _, old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def restore(checkpoint: Path, state: RunState) -> int:
    """Bring a run back to where `checkpoint` was written and return its step.

    Raises:
        WeightsError: if a file of the checkpoint is damaged; nothing was changed then.
        ValueError: if it is of another network or optimiser, or without the moving average that the run keeps.
    """
    facts = read_facts(checkpoint)
    weights = _tensors(checkpoint / "model.safetensors")
    optimizer = _tensors(checkpoint / "optimizer.safetensors")
    average = _tensors(checkpoint / "ema.safetensors") if state.ema is not None and "ema_updates" in facts else {}
    own = state.module.state_dict()
    if wrong := sorted(n for n in own.keys() | weights.keys() if n not in own or n not in weights
                       or own[n].shape != weights[n].shape):  # fmt: skip
        raise ValueError(
            f"{checkpoint} is of another network ({len(wrong)} tensors differ, {wrong[0]} among them): "
            "resume with the config that the run was started with, or choose another output."
        )
    if (theirs := facts.get("optimizer")) not in (None, ours := type(state.optimizer).__name__):
        raise ValueError(
            f"{checkpoint} is of a run with {theirs}, not {ours}: resume with the optimizer it was started with."
        )
    if state.ema is not None and "ema_updates" not in facts:
        raise ValueError(
            f"{checkpoint} is of a run without a moving average: set ema_decay = false, or choose another output."
        )
    state.module.load_state_dict(weights)
    _restore_optimizer(optimizer, state)
    if state.ema is not None:
        for name, tensor in average.items():
            state.ema.shadow[name].copy_(tensor)
        state.ema.updates = int(facts["ema_updates"])
    if state.scaler is not None and "scaler" in facts:
        state.scaler.load_state_dict(facts["scaler"])
    return int(facts["step"])


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """The content of a checkpoint's `state.json`."""
    return _whole(read_json, checkpoint / "state.json")


def _tensors(path: Path) -> dict[str, Tensor]:
    return _whole(read_tensors, path)


def _whole(read: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any]:
    """Read a file of a checkpoint; where that fails, say how to do without."""
    try:
        return read(path)
    except WeightsError as error:
        number = int(path.parent.name.removeprefix("step-"))
        before = [step for step, _ in checkpoints(path.parent.parent) if step < number]
        rest = f"go on from step {before[-1]}" if before else "start anew: there is none before it"
        raise WeightsError(f"{path} is damaged or missing. Remove the folder {path.parent} to {rest}.") from error


def _restore_optimizer(tensors: dict[str, Tensor], state: RunState) -> None:
    parameters = _parameters(state)
    for key, saved in tensors.items():
        name, _, field = key.rpartition(".")
        parameter = parameters[name]
        if saved.ndim == 0 and parameter.ndim > 0:
            value = saved.clone()  # a step count: it stays on the CPU, where the optimiser keeps it
        else:
            value = torch.empty_like(parameter).copy_(saved)  # with the parameter's strides, as the optimiser makes it
        state.optimizer.state[parameter][field] = value
