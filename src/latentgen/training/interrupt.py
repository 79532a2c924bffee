"""Ctrl-C during training: the step is finished and kept."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from latentgen.training.checkpoint import checkpoints

NOTICE = b"\nstopping after this step; press Ctrl-C again to stop at once\n"


@contextmanager
def stop_asked(*, alone: bool) -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C is only taken note of, and the second interrupts.

    A step that is cut off leaves weights that no step gives; between two steps a checkpoint is exact. Where another
    thread or a signal handler of someone else's is in charge, and where processes would stop at different steps, Ctrl-C
    interrupts as ever.

    Args:
        alone: is this the run's only process?

    Yields:
        A function: was Ctrl-C pressed?
    """
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if pressed:
            signal.default_int_handler(number, frame)
        pressed.append(number)
        os.write(2, NOTICE)  # not through sys.stderr, in the midst of whose writing this may be

    main = threading.current_thread() is threading.main_thread()
    if not (alone and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield lambda: False
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def what_is_kept(output: Path) -> str:
    """What to say of a run that was interrupted."""
    found = checkpoints(output / "checkpoints")
    if not found:
        return f"stopped before the first checkpoint of {output}: there is nothing to resume."
    return f"stopped; --resume goes on from step {found[-1][0]} of {output}."
