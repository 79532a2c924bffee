"""What is being measured, line by line, with the time since the run began."""

from __future__ import annotations

import sys
import time

BEGIN = time.perf_counter()


def say(what: str) -> None:
    """A line on stderr: stdout is for the result."""
    minutes, seconds = divmod(int(time.perf_counter() - BEGIN), 60)
    print(f"[{minutes:2d}:{seconds:02d}] {what}", file=sys.stderr, flush=True)
