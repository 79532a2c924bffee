"""The one training loop. A stage says what is optimised; this file does the rest."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from latentgen.runtime.device import cpu_has_native_bfloat16
from latentgen.training.checkpoint import RunState, checkpoints, restore, save
from latentgen.training.config import RunConfig
from latentgen.training.ema import EMA
from latentgen.training.folders import replacing_folder
from latentgen.training.interrupt import stop_asked, what_is_kept
from latentgen.training.log import Log
from latentgen.training.muon import Muon
from latentgen.training.record import new_record, resumed_record
from latentgen.weights.config_files import write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

Batch = dict[str, Tensor]


class Stage(Protocol):
    """What is optimised.

    Attributes:
        module: all weights that are trained; its `forward` is what `loss` calls.
        settings: what the stage was made with, by name: see `record`.
    """

    module: nn.Module
    settings: dict[str, Any]

    def prepare(self) -> None:
        """Do the long work on the data: called once, when all that is quick to check has been found to fit."""
        ...

    def batch(self, index: int, process: int, processes: int) -> Batch:
        """Batch number `index` of a process, noise included: a pure function, so that runs can be resumed exactly."""
        ...

    def loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The named parts of the loss; their sum is minimised. `module` is `self.module`, wrapped for its devices."""
        ...

    def draw(self, path: Path) -> None:
        """Draw a PNG at `path` that shows how far `self.module` has come."""
        ...

    def export(self, folder: Path) -> None:
        """Write `self.module` as a folder that the package loads."""
        ...


def train(
    make_stage: Callable[[Accelerator], Stage], config: RunConfig, *, resume: bool = False, show_progress: bool = True
) -> Path:
    """Run a stage to its end and return the folder of the finished model.

    Args:
        make_stage: builds the stage, once devices are known.
        config: the run.
        resume: go on from the newest whole checkpoint in `config.output` (from the start, if there is none).
        show_progress: draw a progress bar.

    Raises:
        ValueError: if the output folder holds a run and `resume` is off, a longer one, or one with other settings; if the
            loss is not finite.
        KeyboardInterrupt: saying what is kept. Ctrl-C ends the run after the step in hand, with a checkpoint.
    """
    step, newest = max(checkpoints(config.output / "checkpoints"), default=(0, None))
    if newest is not None and not resume:
        raise ValueError(f"{config.output} holds a run of {step} steps: resume it, or choose another output.")
    if step > config.steps:
        raise ValueError(f"{config.output} holds a run of {step} steps, more than steps={config.steps}: raise it.")
    if newest is None and (config.output / "model").exists():
        raise ValueError(f"{config.output / 'model'} holds a finished run without checkpoints: choose another output.")
    try:
        with _accelerator(config.precision) as accelerator:
            torch.manual_seed(config.seed)
            return _run(make_stage(accelerator), config, accelerator, newest, show_progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(what_is_kept(config.output)) from None


def _run(stage: Stage, config: RunConfig, accelerator: Accelerator, newest: Path | None, show_progress: bool) -> Path:
    record = new_record(stage.settings | {"processes": accelerator.num_processes})
    if newest is not None:
        record = resumed_record(newest, record, warn=accelerator.is_main_process)
    plain = stage.module.train().to(accelerator.device)
    plain_optimizer = _optimizer(plain, config)
    ema = None if config.ema_decay is None or config.ema_decay is False else EMA(plain, config.ema_decay)
    state = RunState(plain, plain_optimizer, ema, accelerator.scaler, record)
    module, optimizer = accelerator.prepare(plain, plain_optimizer)
    start = 0 if newest is None else restore(newest, state)
    if accelerator.is_main_process:
        write_json(config.output / "config.json", record)
    stage.prepare()

    with (
        closing(_batches(stage, accelerator, start * config.accumulate)) as batches,
        Log(config, start, accelerator, show_progress=show_progress) as log,
        stop_asked(alone=accelerator.num_processes == 1) as stop,
    ):
        for step in range(start + 1, config.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(step - 1)
            parts: dict[str, Tensor] = {}
            for left in reversed(range(config.accumulate)):  # processes exchange gradients in the last round only
                with accelerator.no_sync(module) if left else nullcontext():
                    losses = stage.loss(module, next(batches))
                    accelerator.backward(sum(losses.values()) / config.accumulate)
                for name, loss in losses.items():
                    parts[name] = parts.get(name, 0.0) + loss.detach() / config.accumulate
            grad_norm = accelerator.clip_grad_norm_(module.parameters(), config.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            if ema is not None and not accelerator.optimizer_step_was_skipped:
                ema.update(plain)
            stopping = stop()
            log.step(step, parts, grad_norm, look=stopping)
            if accelerator.is_main_process:
                with log.paused():
                    if step % config.checkpoint_every == 0 or step == config.steps or stopping:
                        save(config.output / "checkpoints", step, state, keep=config.keep_checkpoints)
                    if config.sample_every and step % config.sample_every == 0 and not stopping:
                        _draw(stage, plain, ema, config.output / "samples" / f"{step:08d}.png")
            if stopping:
                raise KeyboardInterrupt

    if accelerator.is_main_process:
        with _averaged(plain, ema), replacing_folder(config.output / "model") as folder:
            stage.export(folder)
    accelerator.wait_for_everyone()
    return config.output / "model"


def _draw(stage: Stage, plain: nn.Module, ema: EMA | None, path: Path) -> None:
    """Draw a sample; one that cannot be drawn is no reason to end the run."""
    try:
        with _averaged(plain, ema):
            stage.draw(path)
    except Exception as error:
        warnings.warn(f"{path} could not be drawn ({type(error).__name__}: {error}); training goes on.", stacklevel=2)


def _optimizer(module: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    rate, betas, decay = config.learning_rate, (config.beta1, config.beta2), config.weight_decay
    if config.optimizer == "muon":
        return Muon(module, rate, betas, weight_decay=decay)
    return torch.optim.AdamW(module.parameters(), rate, betas, weight_decay=decay)


@contextmanager
def _accelerator(precision: str | None) -> Iterator[Accelerator]:
    """The devices of this process, for one run.

    accelerate keeps its settings for the whole process. They are taken back, so that a later run may have others.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin

    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("[run] precision='fp16' needs a GPU; use 'bf16' or 'no'.")
    ours = not AcceleratorState._shared_state
    try:
        whole = GradientAccumulationPlugin(num_steps=1)  # the loop accumulates, whatever a launcher's settings say
        yield Accelerator(mixed_precision=precision or _native_precision(), gradient_accumulation_plugin=whole)
    finally:
        if ours:
            AcceleratorState._reset_state()


def _native_precision() -> str:
    bf16 = torch.cuda.is_bf16_supported(False) if torch.cuda.is_available() else cpu_has_native_bfloat16()
    return "bf16" if bf16 else "no"


def _batches(stage: Stage, accelerator: Accelerator, first: int) -> Generator[Batch, None, None]:
    """Batches from number `first` on; the next one is read while this one is computed."""

    def fetch(index: int) -> Batch:
        return stage.batch(index, accelerator.process_index, accelerator.num_processes)

    with ThreadPoolExecutor(1) as ahead:
        pending = ahead.submit(fetch, first)
        for index in count(first + 1):
            batch = pending.result()
            pending = ahead.submit(fetch, index)
            yield {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}


@contextmanager
def _averaged(module: nn.Module, ema: EMA | None) -> Iterator[None]:
    """Within the block the module is in eval mode, without gradients, and holds its averaged weights."""
    module.eval()
    try:
        with torch.no_grad(), nullcontext() if ema is None else ema.applied(module):
            yield
    finally:
        module.train()
