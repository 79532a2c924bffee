"""The commands that look at files of weights and change their form."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from latentgen.cli.interrupts import leaving_at_once
from latentgen.cli.values import printable


def info(arguments: argparse.Namespace) -> None:
    with leaving_at_once():
        from latentgen.pipelines.describe import describe
    found = describe(arguments.path, sha256=arguments.sha256)
    if arguments.json:
        print(json.dumps(asdict(found), indent=2))
    else:
        print("\n".join(map(printable, _lines(found, is_file=not arguments.path.is_dir()))))
    if found.problems:
        raise ValueError(f"{arguments.path} cannot be used as it is: {found.problems[0]}")


def _lines(found: Any, *, is_file: bool) -> list[str]:
    lines = [found.path, f"  what        {found.what}"]
    if found.use:
        lines.append(f"  loaded by   {found.use}")
    if found.size:
        lines.append(f"  size        {_bytes(found.size)}")
    if is_file:
        lines.append(f"  sha256      {found.sha256 or 'not recorded; --sha256 computes it'}")
    for part in found.components:
        dtypes = ", ".join(part.dtypes)
        count = f"{part.parameters / 1e6:10.2f} M parameters, {dtypes}" if part.parameters else ""
        lines.append(f"  {part.name:<16}  {part.kind:<22} {count}".rstrip())
    lines += [
        f"  metadata    {key}: {value if len(value) <= 100 else value[:97] + '...'}"
        for key, value in found.metadata.items()
    ]
    lines += [f"  note        {note}" for note in found.notes]
    lines += [f"  problem     {line}" for problem in found.problems for line in problem.splitlines()]
    return lines


def _bytes(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size} bytes"


def convert(arguments: argparse.Namespace) -> None:
    with leaving_at_once():
        from latentgen.pipelines.convert import convert as write
    written = write(
        arguments.source,
        arguments.target,
        dtype=arguments.dtype,
        family=arguments.family,
        prediction_type=arguments.prediction_type,
        weights=arguments.weights,
        tokenizer=arguments.tokenizer,
        loras=arguments.lora,
        variant=arguments.variant,
    )
    print(written)
