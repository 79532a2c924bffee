"""The command line: parse, build, call."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from latentgen.cli.interrupts import INTERRUPTED
from latentgen.cli.parser import make_parser
from latentgen.cli.values import printable

__all__ = ["main"]

DONE, FAILED = 0, 1  # argparse exits with 2 for wrong usage


def main(argv: Sequence[str] | None = None) -> int:
    """Run `latentgen`; returns the exit code: 0 done, 1 an error with one clear line, 2 wrong usage, 130 interrupted."""
    arguments = make_parser().parse_args(argv)
    try:
        with _warnings_in_one_line():
            arguments.run(arguments)
    except KeyboardInterrupt:
        print("latentgen: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has left
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if arguments.debug:
            raise
        print(f"latentgen: error: {printable(_one_line(error))}", file=sys.stderr)
        return FAILED
    return DONE


def _one_line(error: Exception) -> str:
    text, *more = str(error).strip().splitlines() or [type(error).__name__]
    if not isinstance(error, ValueError | OSError | FloatingPointError):
        return f"{type(error).__name__}: {text} (--debug shows where)"
    return f"{text} (--debug lists all)" if more else text


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print each of our warnings once, in our form. Those of other libraries are about their code, not about the request."""
    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        ours = os.sep + "latentgen" + os.sep in filename or category is UserWarning
        if ours and str(message) not in shown:
            shown.add(str(message))
            print(f"latentgen: warning: {printable(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield
