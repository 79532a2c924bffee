"""What a process does while it loads something: modules imported, code run, files opened, connections made."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import latentgen

NEVER = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "socket.bind",
         "ctypes.dlopen", "shutil.move", "urllib.Request", "webbrowser.open", "pty.spawn")  # fmt: skip
OWN = tuple({sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
            | {str(Path(latentgen.__file__).parent)})  # fmt: skip
SYSTEM = (
    "/proc/self",
    "/sys",
    "/dev/null",
    "/dev/urandom",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/proc/cpuinfo",
    "/proc/meminfo",
)


class Seen:
    """What happened: names of modules that were not there before, files outside, code that was run, events that must never be.

    Code is run without a stranger's too, as when a library makes a dataclass: `usual` holds what was compiled while nothing
    hostile was there, and only other code counts.
    """

    def __init__(self, usual: frozenset[str] = frozenset()) -> None:
        self.usual = usual
        self.imports: list[str] = []
        self.opened: list[str] = []
        self.executed: list[str] = []
        self.compiled: list[str] = []


_watching: list[tuple[Seen, str]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    seen, folder = _watching[-1]
    if event == "import":
        seen.imports.append(str(arguments[0]))
    elif event == "compile":
        source = str(arguments[0])
        seen.compiled.append(source)
        if source not in seen.usual:
            seen.executed.append(f"compiled {source[:100]} of {arguments[1]}")
    elif event == "exec":
        place = str(getattr(arguments[0], "co_filename", ""))
        if not place.startswith(("<", *OWN)):  # texts in brackets were compiled, and are looked at there
            seen.executed.append(f"code of {place}")
    elif event in NEVER:
        seen.executed.append(f"{event} {str(arguments)[:200]}")
    elif event == "open" and isinstance(arguments[0], str | bytes):
        given = os.fsdecode(arguments[0])
        path = os.path.realpath(given)
        inside = path.startswith((folder + os.sep, *OWN)) or path == folder or given.startswith(SYSTEM)
        if not inside:
            seen.opened.append(given)


sys.addaudithook(_hook)


@contextmanager
def watching(folder: Path, usual: frozenset[str] = frozenset()) -> Iterator[Seen]:
    """Note what is done in this block; files in `folder`, and Python's own, may be opened, and `usual` code run."""
    seen = Seen(usual)
    _watching.append((seen, os.path.realpath(folder)))
    try:
        yield seen
    finally:
        _watching.pop()
