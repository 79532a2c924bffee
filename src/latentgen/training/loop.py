"""The one training loop. A stage says what is optimised; this file does the rest."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from latentgen.runtime.device import cpu_has_native_bfloat16
from latentgen.training.checkpoint import RunState, checkpoints, restore, save
from latentgen.training.config import RunConfig
from latentgen.training.ema import EMA

if TYPE_CHECKING:
    from accelerate import Accelerator

Batch = dict[str, Tensor]


class Stage(Protocol):
    """What is optimised.

    Attributes:
        module: all weights that are trained; its `forward` is what `loss` calls.
    """

    module: nn.Module

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


def learning_rate(config: RunConfig, step: int) -> float:
    """Linear rise, plateau, linear fall over the last `decay_steps`."""
    rise = min(1.0, (step + 1) / max(1, config.warmup_steps))
    fall = min(1.0, (config.steps - step) / max(1, config.decay_steps)) if config.decay_steps else 1.0
    return config.learning_rate * rise * fall


def train(make_stage: Callable[[Accelerator], Stage], config: RunConfig, *, resume: bool = False) -> Path:
    """Run a stage to its end and return the folder of the finished model.

    Args:
        make_stage: builds the stage once devices are known.
        config: the run.
        resume: go on from the newest whole checkpoint in `config.output` (from the start, if there is none).

    Raises:
        ValueError: if the output folder holds a run and `resume` is off, or the loss is not finite.
    """
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    found = checkpoints(config.output / "checkpoints")
    if found and not resume:
        raise ValueError(f"{config.output} holds a run of {found[-1][0]} steps: resume it, or choose another output.")
    accelerator = Accelerator(mixed_precision=config.precision or _native_precision())
    set_seed(config.seed)
    stage = make_stage(accelerator)
    stage.module.train()
    plain = stage.module.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        plain.parameters(), config.learning_rate, (config.beta1, config.beta2), weight_decay=config.weight_decay
    )
    ema = None if config.ema_decay is None else EMA(plain, config.ema_decay)
    state = RunState(plain, optimizer, ema, accelerator.scaler)
    start = restore(found[-1][1], state) if found else 0
    module, optimizer = accelerator.prepare(plain, optimizer)
    log = _Log(config, start, accelerator)

    def fetch(index: int) -> Batch:
        return stage.batch(index, accelerator.process_index, accelerator.num_processes)

    with ThreadPoolExecutor(1) as ahead:  # the next batch is read while this one is computed
        batch_number = start * config.accumulate
        pending = ahead.submit(fetch, batch_number)
        for step in range(start, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            totals: dict[str, Tensor] = {}
            for micro in range(config.accumulate):
                batch = {k: v.to(accelerator.device, non_blocking=True) for k, v in pending.result().items()}
                batch_number += 1
                pending = ahead.submit(fetch, batch_number)
                with accelerator.accumulate(module) if micro == config.accumulate - 1 else accelerator.no_sync(module):
                    parts = stage.loss(module, batch)
                    accelerator.backward(sum(parts.values()) / config.accumulate)
                for name, part in parts.items():
                    totals[name] = totals.get(name, 0.0) + part.detach() / config.accumulate
            accelerator.clip_grad_norm_(module.parameters(), config.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if ema is not None:
                ema.update(plain)
            log.step(step + 1, totals)
            if accelerator.is_main_process:
                if config.sample_every and (step + 1) % config.sample_every == 0:
                    _with_average(ema, plain, lambda: stage.draw(config.output / "samples" / f"{step + 1:08d}.png"))  # noqa: B023
                if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                    save(config.output / "checkpoints", step + 1, state, keep=config.keep_checkpoints)
        pending.cancel()
    log.close()
    if accelerator.is_main_process:
        _with_average(ema, plain, lambda: stage.export(config.output / "model"))
    accelerator.wait_for_everyone()
    return config.output / "model"


def _native_precision() -> str:
    bf16 = torch.cuda.is_bf16_supported(False) if torch.cuda.is_available() else cpu_has_native_bfloat16()
    return "bf16" if bf16 else "no"


def _with_average(ema: EMA | None, module: nn.Module, act: Callable[[], None]) -> None:
    """Call `act` while the module is in eval mode and holds its averaged weights."""
    module.eval()
    with torch.no_grad():
        if ema is None:
            act()
        else:
            with ema.applied(module):
                act()
    module.train()


class _Log:
    """Progress bar and `metrics.jsonl`; looks at the loss only every `log_every` steps, because looking waits."""

    def __init__(self, config: RunConfig, start: int, accelerator: Accelerator) -> None:
        self.config = config
        self.main = accelerator.is_main_process
        self.images = config.batch_size * config.accumulate * accelerator.num_processes
        self.path = config.output / "metrics.jsonl"
        self.sums: dict[str, Tensor] = {}
        self.since, self.time = start, time.perf_counter()
        self.bar = tqdm(total=config.steps, initial=start, disable=not self.main, unit="step")
        if self.main:
            config.output.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_text().splitlines() if start and self.path.exists() else []
            kept = [line for line in lines if json.loads(line)["step"] <= start]
            self.path.write_text("".join(f"{line}\n" for line in kept))

    def step(self, step: int, parts: dict[str, Tensor]) -> None:
        self.bar.update()
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if step % self.config.log_every and step != self.config.steps:
            return
        count, seconds = step - self.since, time.perf_counter() - self.time
        means = {name: float(total) / count for name, total in self.sums.items()}
        loss = sum(means.values())
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} between steps {self.since} and {step}: lower learning_rate, lengthen warmup_steps, "
                "or set precision = 'no'; then resume."
            )
        speed = self.images * count / seconds
        self.bar.set_postfix_str(f"loss {loss:.4f}, {speed:.1f} images/s")
        if self.main:
            entry = {"step": step, "loss": loss, **means, "images_per_second": round(speed, 1),
                     "learning_rate": learning_rate(self.config, step - 1)}  # fmt: skip
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        self.sums, self.since, self.time = {}, step, time.perf_counter()

    def close(self) -> None:
        self.bar.close()
