"""SHA-256 sums of a model's files: written beside them, and held to when a model is loaded with `verify`.

A folder has them in `SHA256SUMS`, a single file in `<file>.sha256`, both as `sha256sum -c` reads them; the Hub's cache keeps
large files under their sums, and small ones under the SHA-1 that Git gives them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from latentgen.weights.atomic import write_text, written
from latentgen.weights.errors import WeightsError
from latentgen.weights.regular_file import RegularFile, opened

SUMS = "SHA256SUMS"
SUM = re.compile(r"[0-9a-f]{64}")
GIT_SUM = re.compile(r"[0-9a-f]{40}")
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
                f"{path}, line {number}: {line[:80]!r} is not a sum and a name, as `sha256sum` writes them. Write "
                "the file anew, or remove it."
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
    return _kept_under(path, SUM)


def _kept_under(path: Path, kind: re.Pattern[str]) -> str | None:
    """A file of the Hub's cache is a link to one that is called by its sum; None for any other file, and another kind of sum."""
    if not path.is_symlink():
        return None
    kept = Path(os.path.realpath(path))
    return kept.name if kept.parent.name == "blobs" and kind.fullmatch(kept.name) else None


@contextmanager
def verifying(folder: Path) -> Iterator[None]:
    """Hold every file that is opened in this block to the sums in a folder, or in the Hub's cache.

    Raises:
        WeightsError: for a file that has no sum, or another one; for settings that are recorded and gone from a folder that was
            read, where their absence would mean something else.
    """
    root = next((place for place in (folder, folder.parent) if (place / SUMS).is_file()), None)
    sums = {} if root is None else read_sums(root / SUMS)
    read: set[str] = set()

    def check(file: RegularFile) -> None:
        path = Path(os.path.abspath(file.path))
        name = (
            path.relative_to(os.path.abspath(root)).as_posix()
            if root and path.is_relative_to(os.path.abspath(root))
            else None
        )
        read.add(os.path.dirname(name or ""))
        expected = sums.get(name) if name else None
        expected = expected or _kept_under(path, SUM)
        if expected is not None:
            _compare(file, expected)
        elif (blob := _kept_under(path, GIT_SUM)) is not None:
            _compare_as_git(file, blob)
        else:
            raise WeightsError(
                f"{file.path} has no recorded SHA-256: {SUMS} in {root or folder} {'lacks it' if root else 'does not exist'}. "
                f"Save the model with save_pretrained, or run `sha256sum` over its files into {SUMS} where you trust them."
            )

    token = opened.set(check)
    try:
        yield
    finally:
        opened.reset(token)
    for name in sums:
        settings = name.endswith((".json", ".txt")) and ".index." not in name and os.path.dirname(name) in read
        if root and settings and not os.path.isfile(root / name):
            raise WeightsError(
                f"{root / name} is recorded in {SUMS} and is not there, and without it the model is another one: fetch it again."
            )


@contextmanager
def verifying_file(path: Path, expected: str | Literal[True]) -> Iterator[None]:
    """Hold a single file to a sum, the one given or (True) the one recorded, if it is opened in this block.

    Raises:
        WeightsError: if it has none, or another one.
        ValueError: for a sum that is not one.
    """
    if expected is not True and not (isinstance(expected, str) and SUM.fullmatch(expected.lower())):
        raise ValueError(
            f"verify={expected!r} is no SHA-256: give 64 hexadecimal digits, or True for the recorded one."
        )
    wanted = recorded_sum(path) if expected is True else expected.lower()
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


def _compare_as_git(file: RegularFile, expected: str) -> None:
    """As `_compare`, for the name that Git gives a file: the SHA-1 of its length and its content."""
    found = hashlib.sha1(b"blob %d\0" % file.size + file.read(0, file.size), usedforsecurity=False).hexdigest()
    if found != expected:
        raise WeightsError(
            f"{file.path} is not the file that was recorded: Git would call it {found}, and the Hub's cache calls it {expected}. "
            "It is damaged or was altered: fetch it again."
        )


@contextmanager
def recording(folder: Path, *, begin: bool = True) -> Iterator[None]:
    """Write down the sums of the files that are written into a folder in this block; a block inside another leaves it to that.

    A component's folder has its sums in its model's record, where there is one. No record keeps a sum that was true
    before: a block that raises takes those of what it has written out, too.

    Args:
        folder: that is written.
        begin: write a record where there is none.

    Raises:
        WeightsError: for a record that cannot be read; nothing is written then.
    """
    if written.get() is not None:
        yield
        return
    root = Path(os.path.abspath(folder))
    records = [place for place in (root.parent, root) if _records(place, root)]
    if begin and not records:
        records = [root]
    before = {place: read_sums(place / SUMS) if (place / SUMS).is_file() else {} for place in records}
    paths: list[Path] = []
    token = written.set(paths)
    whole = False
    try:
        yield
        whole = True
    finally:
        written.reset(token)
        mine = sorted({Path(os.path.abspath(path)) for path in paths})
        for place, sums in before.items():
            _write_anew(place, sums, [path for path in mine if path.is_relative_to(place)], whole)
        for inner in {path.parent for path in mine if before and path.is_relative_to(root)} - before.keys():
            # Of a component that was saved alone: what is true stands in the model's record now.
            (inner / SUMS).unlink(missing_ok=True)


def _records(place: Path, folder: Path) -> bool:
    """Whether there is a record at `place` that speaks of the files in `folder`."""
    if not (place / SUMS).is_file():
        return False
    if place == folder:
        return True
    try:
        return any(name.startswith(f"{folder.name}/") for name in read_sums(place / SUMS))
    except WeightsError:  # of something else that lies beside the folder
        return False


def _write_anew(place: Path, before: Mapping[str, str], paths: Sequence[Path], whole: bool) -> None:
    """Write the record at `place`, with what was written there since, unless that was broken off."""
    names = {path.relative_to(place).as_posix(): path for path in paths if path.name != SUMS}
    kept = {name: value for name, value in before.items() if name not in names and os.path.isfile(place / name)}
    there = names.items() if whole else ()
    new = {name: RegularFile(path, settled=False).sha256() for name, path in there if path.is_file()}
    if kept | new or before:
        write_text(place / SUMS, _lines(kept | new))


def write_sum(path: Path, *, begin: bool = True) -> None:
    """Write the sum of a single file beside it; without `begin` only where there is one, which would be wrong now."""
    if begin or path.with_name(path.name + ".sha256").is_file():
        write_text(
            path.with_name(path.name + ".sha256"), _lines({path.name: RegularFile(path, settled=False).sha256()})
        )


def _lines(sums: Mapping[str, str]) -> str:
    return "".join(f"{value}  {name}\n" for name, value in sorted(sums.items()))
