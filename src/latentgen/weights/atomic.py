"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

written: ContextVar[list[Path] | None] = ContextVar("written", default=None)
"""Where the files that are written are noted: see `checksums.recording`."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a fresh name beside `path` to write to; when the block ends well, that file becomes `path` in one step.

    A process that is killed leaves the old file, and a block that raises leaves nothing new. The folder is made if it
    is missing. The file gets the permissions that the umask allows. A link stays a link: the file that it leads to is replaced.
    """
    given, path = path, Path(os.path.realpath(path)) if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = _beside(path)
    fresh.touch(exist_ok=False)
    try:
        yield fresh
        with open(fresh, "rb+") as file:  # the data first, then the name: a power cut must not leave an empty file
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    paths = written.get()
    if paths is not None:
        paths.append(given)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 in one step."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8", newline="\n")


def check_writable(path: Path) -> None:
    """Raise now, before the work, if `path` could not be written after it; its folder is made if it is missing.

    Raises:
        OSError: naming the path and the reason.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder: give the name of a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.lstat()  # a name that is too long is refused here
        fresh = _beside(path)
        fresh.touch(exist_ok=False)
        fresh.unlink()
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror}): give a file in a folder that you may write to."
        ) from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable, where the system can do that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse; the rename has happened all the same
        pass
    finally:
        os.close(handle)
