"""What a run says of itself: a progress bar, and a line of `metrics.jsonl` from time to time."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor
from tqdm import tqdm

from latentgen.training.config import RunConfig
from latentgen.weights.atomic import write_text

if TYPE_CHECKING:
    from accelerate import Accelerator


class Log:
    """Looks at the loss every `log_every` steps, because looking waits for the device, and before every checkpoint.

    A context manager: leaving it closes the progress bar, however the run ends.
    """

    def __init__(self, config: RunConfig, start: int, accelerator: Accelerator, *, show_progress: bool = True) -> None:
        """`start` is the step that the run goes on from: what the file says of later ones is dropped."""
        self.config = config
        self.main = accelerator.is_main_process
        self.scaled = accelerator.scaler is not None
        self.images = config.batch_size * config.accumulate * accelerator.num_processes
        self.path = config.output / "metrics.jsonl"
        self.sums: dict[str, Tensor] = {}
        self.since, self.time = start, time.perf_counter()
        self.bar = tqdm(total=config.steps, initial=start, disable=not (self.main and show_progress), unit="step")
        if self.main:
            write_text(self.path, "".join(line + "\n" for line in self._lines() if _step(line) <= start))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()

    def _lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in the block is not training's: speed is counted without it."""
        begin = time.perf_counter()
        yield
        self.time += time.perf_counter() - begin

    def step(self, step: int, parts: dict[str, Tensor], grad_norm: Tensor, *, look: bool = False) -> None:
        """Take note of step number `step`, counted from 1.

        Args:
            step: just done.
            parts: named scalars whose sum is the loss.
            grad_norm: length of the gradient, before clipping.
            look: now, whatever the step: a checkpoint is to be written.

        Raises:
            ValueError: if the loss or its gradient is not finite.
        """
        self.bar.update()
        for name, value in {**parts, "grad_norm": grad_norm}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        if look or any(step % n == 0 for n in (self.config.log_every, self.config.checkpoint_every, self.config.steps)):
            self._look(step)

    def _look(self, step: int) -> None:
        count, seconds = step - self.since, time.perf_counter() - self.time
        means = {name: float(total) / count for name, total in self.sums.items()}
        grad_norm = means.pop("grad_norm")
        loss = sum(means.values())
        # Under float16's loss scaling a gradient may overflow: that step is then skipped.
        if not math.isfinite(loss) or not (self.scaled or math.isfinite(grad_norm)):
            raise ValueError(
                f"the loss is {loss} and its gradient {grad_norm} between steps {self.since} and {step}: lower "
                "learning_rate, lengthen warmup_steps, or set precision = 'no'; then resume."
            )
        speed = round(self.images * count / seconds, 1)
        self.bar.set_postfix_str(f"loss {loss:.4f}, {speed} images/s")
        if self.main:
            self._write({"step": step, "loss": loss, **means,
                         "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
                         "images_per_second": speed, "learning_rate": self.config.learning_rate_at(step - 1)})  # fmt: skip
        self.sums, self.since, self.time = {}, step, time.perf_counter()

    def _write(self, entry: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _step(line: str) -> float:
    """The step of a line; infinite for one that a kill cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
