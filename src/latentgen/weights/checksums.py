"""SHA-256 sums of a model's files: written beside them, and held to when a model is loaded with `verify`.

A folder has them in `SHA256SUMS`, a single file in `<file>.sha256`, both as `sha256sum -c` reads them; the Hub's cache keeps
large files under their sums.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from latentgen.weights.atomic import write_text, written
from latentgen.weights.errors import WeightsError
from latentgen.weights.regular_file import RegularFile, opened

SUMS = "SHA256SUMS"
SUM = re.compile(r"[0-9a-f]{64}")
LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
MOST_BYTES = 2**20


def read_sums(path: Path) -> dict[str, str]:
    """The sums in a file by name, as `sha256sum` writes them.

    Raises:
        WeightsError: if it is missing, too large, or has a line of another form.
    """
    file = RegularFile(path, settled=False)
    if file.size > MOST_BYTES:
        raise WeightsError(f"{path} has {file.size} bytes; at most {MOST_BYTES} of sums are read.")
    sums: dict[str, str] = {}
    for number, line in enumerate(file.read(0, file.size).decode("utf-8", "replace").splitlines(), 1):
        if line and not (match := LINE.fullmatch(line)):
            raise WeightsError(
                f"{path}, line {number}: {line[:80]!r} is not a sum and a name, as `sha256sum` writes them."
            )
        if line and match:
            sums[match[2]] = match[1].lower()
    return sums


def recorded_sum(path: Path) -> str | None:
    """The sum of a single file, as it stands beside it or in the Hub's cache; None if nobody wrote it down."""
    beside = path.with_name(path.name + ".sha256")
    if beside.is_file():
        sums = read_sums(beside)
        if path.name not in sums:
            raise WeightsError(f"{beside} has no sum of {path.name}: write it anew with `sha256sum {path.name}`.")
        return sums[path.name]
    return _sum_of_the_hub(path)


def _sum_of_the_hub(path: Path) -> str | None:
    """A large file of the Hub's cache is a link to a file that is called by its sum."""
    if not path.is_symlink():
        return None
    kept = Path(os.path.realpath(path))
    return kept.name if kept.parent.name == "blobs" and SUM.fullmatch(kept.name) else None


@contextmanager
def verifying(folder: Path) -> Iterator[None]:
    """Hold every file that is opened in this block to the sums in a folder, or in the Hub's cache.

    Raises:
        WeightsError: for a file that has no sum, or another one. (What the Hub keeps of small files is no SHA-256, so settings in
            its cache are held to sums only where the repository has them.)
    """
    root = next((place for place in (folder, folder.parent) if (place / SUMS).is_file()), None)
    sums = {} if root is None else read_sums(root / SUMS)
    in_cache = root is None and folder.parent.name == "snapshots"

    def check(file: RegularFile) -> None:
        path = Path(os.path.abspath(file.path))
        name = (
            path.relative_to(os.path.abspath(root)).as_posix()
            if root and path.is_relative_to(os.path.abspath(root))
            else None
        )
        expected = sums.get(name) if name else None
        expected = expected or _sum_of_the_hub(path)
        if expected is not None:
            _compare(file, expected)
        elif not (in_cache and path.suffix != ".safetensors"):
            raise WeightsError(
                f"{file.path} has no recorded SHA-256: {SUMS} in {root or folder} {'lacks it' if root else 'does not exist'}. "
                f"Save the model with save_pretrained, or run `sha256sum` over its files into {SUMS} where you trust them."
            )

    token = opened.set(check)
    try:
        yield
    finally:
        opened.reset(token)


@contextmanager
def verifying_file(path: Path, expected: str | None) -> Iterator[None]:
    """Hold a single file to a sum, given or recorded, if it is opened in this block.

    Raises:
        WeightsError: if it has none, or another one.
        ValueError: for a sum that is not one.
    """
    if expected is not None and not SUM.fullmatch(expected.lower()):
        raise ValueError(
            f"verify={expected!r} is no SHA-256: give 64 hexadecimal digits, or True for the recorded one."
        )
    wanted = expected.lower() if expected else recorded_sum(path)
    if wanted is None:
        raise WeightsError(
            f"{path} has no recorded SHA-256: there is no {path.name}.sha256 beside it. Give the sum itself, as the publisher "
            f"says it, or run `sha256sum {path.name} > {path.name}.sha256` where you trust the file."
        )

    def check(file: RegularFile) -> None:
        if Path(os.path.abspath(file.path)) == Path(os.path.abspath(path)):
            _compare(file, wanted)

    token = opened.set(check)
    try:
        yield
    finally:
        opened.reset(token)


def _compare(file: RegularFile, expected: str) -> None:
    if (found := file.sha256()) != expected:
        raise WeightsError(
            f"{file.path} is not the file that was recorded: its SHA-256 is {found}, and {expected} was recorded. It is damaged "
            "or was altered: fetch it again."
        )


@contextmanager
def recording(folder: Path) -> Iterator[None]:
    """Write down the sums of the files that are written into a folder in this block; a block inside another leaves it to that."""
    if written.get() is not None:
        yield
        return
    paths: list[Path] = []
    token = written.set(paths)
    try:
        yield
    finally:
        written.reset(token)
    root = Path(os.path.abspath(folder))
    mine = {Path(os.path.abspath(path)) for path in paths}
    before = read_sums(folder / SUMS) if (folder / SUMS).is_file() else {}
    kept = {name: value for name, value in before.items() if (root / name).is_file()}
    new = {
        path.relative_to(root).as_posix(): RegularFile(path, settled=False).sha256()
        for path in sorted(mine)
        if path.is_relative_to(root) and path.is_file()
    }
    write_text(folder / SUMS, _lines(kept | new))


def write_sum(path: Path) -> None:
    """Write the sum of a single file beside it."""
    write_text(path.with_name(path.name + ".sha256"), _lines({path.name: RegularFile(path, settled=False).sha256()}))


def _lines(sums: Mapping[str, str]) -> str:
    return "".join(f"{value}  {name}\n" for name, value in sorted(sums.items()))
