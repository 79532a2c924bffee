"""Opening a file that somebody else made: it must be an ordinary file, and stay as it was while it is read."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path

from latentgen.weights.errors import WeightsError

RECENT = 0.02
"""Seconds: two writes so close together may leave the same time on a file, as far as the system keeps it."""

PATIENCE = 50  # looks at a file that is being written

READ_AT_ONCE = 2**24


opened: ContextVar[Callable[[RegularFile], None] | None] = ContextVar("opened", default=None)
"""What looks at every file that is opened, and may refuse it: see `checksums.verifying`."""


class RegularFile:
    """An open file, read at any offset by any number of threads.

    What was read is of one state of the file, or it is an error: a file that is renamed over this one is another file, and
    one that is written into, or cut, is seen by its times and size, also where a program puts back the time that it shows.

    Attributes:
        path: as it was given.
        size: in bytes.
    """

    def __init__(self, path: str | os.PathLike[str], *, settled: bool = True) -> None:
        """Open it.

        Args:
            path: of the file; links are followed.
            settled: wait until its last change is long enough ago that another one would show.

        Raises:
            WeightsError: if it is missing, no ordinary file (a folder, a pipe, a device, a link to nothing), or unreadable.
        """
        self.path = Path(path)
        self._handle = -1
        try:
            found = os.stat(path)
            if stat.S_ISREG(found.st_mode):  # opening a device can have effects by itself
                # What has become a pipe since would be waited for without O_NONBLOCK.
                self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
                found = os.fstat(self._handle)
        except FileNotFoundError as error:
            reason = "is a link to a file that does not exist" if os.path.islink(path) else "does not exist"
            raise WeightsError(f"{path} {reason}: check the name, or fetch the file again.") from error
        except ValueError as error:
            raise WeightsError(f"{str(path)!r} is not the name of a file ({error}).") from error
        except OSError as error:
            if os.path.isdir(path):
                raise _no_file(path, "folder") from error
            told = "a link that leads to itself" if error.errno == errno.ELOOP else error.strerror
            raise WeightsError(f"{path} cannot be opened ({told}): check its permissions.") from error
        if not stat.S_ISREG(found.st_mode):
            raise _no_file(path, "folder" if stat.S_ISDIR(found.st_mode) else "pipe, socket or device")
        for _ in range(PATIENCE):
            if not 0 <= time.time() - found.st_mtime < RECENT or not settled:
                break
            time.sleep(RECENT)
            found = os.fstat(self._handle)
        else:
            raise WeightsError(f"{path} is being written: load it when that has ended.")
        self.size = found.st_size
        self._state = (found.st_size, found.st_mtime_ns)
        self._changed, self._links = found.st_ctime_ns, found.st_nlink
        self._seeking = threading.Lock()
        look = opened.get()
        if look is not None:
            look(self)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back; it cannot be read afterwards."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes from `offset` on.

        Raises:
            WeightsError: if there are not so many, or the file changed since it was opened.
        """
        while len(buffer):
            try:
                count = self._read(buffer[:READ_AT_ONCE], offset)
            except OSError as error:
                raise WeightsError(f"{self.path} cannot be read ({error.strerror}): check its disk.") from error
            if not count:
                break
            buffer, offset = buffer[count:], offset + count
        now = os.fstat(self._handle)
        # The system's own time of change cannot be put back. A name that the file gains or loses moves it too.
        rewritten = now.st_ctime_ns != self._changed and now.st_nlink == self._links
        if len(buffer) or rewritten or (now.st_size, now.st_mtime_ns) != self._state:
            raise WeightsError(f"{self.path} changed while it was read: load it again when it is written.")

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset` on; raises as `read_into`."""
        data = bytearray(length)
        self.read_into(memoryview(data), offset)
        return bytes(data)

    def sha256(self) -> str:
        """The SHA-256 of the whole file, in hexadecimal; raises as `read_into`."""
        digest, buffer = hashlib.sha256(), memoryview(bytearray(READ_AT_ONCE))
        for start in range(0, self.size, READ_AT_ONCE):
            part = buffer[: min(READ_AT_ONCE, self.size - start)]
            self.read_into(part, start)
            digest.update(part)
        return digest.hexdigest()

    def _read(self, buffer: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._handle, [buffer], offset)
        with self._seeking:
            os.lseek(self._handle, offset, os.SEEK_SET)
            data = os.read(self._handle, len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _no_file(path: str | os.PathLike[str], kind: str) -> WeightsError:
    return WeightsError(f"{path} is a {kind}, and a file is expected: give the name of a file.")
