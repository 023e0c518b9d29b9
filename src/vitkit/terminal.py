"""What is printed: tables, text that commands no terminal, values that JSON can hold."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any


def print_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> None:
    """A table in plain lines, each as long as it must be: names are there to be copied."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print(printable("  ".join(cells).rstrip()))


def print_json(words: Any, result: Any) -> None:
    """The last line of a command, where its words ask for it."""
    if words.json:
        utf8 = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
        print(json.dumps(finite(result), ensure_ascii=not utf8))


def printable(text: str) -> str:
    """Without what would command a terminal: names of files and classes come from anywhere."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def finite(value: Any) -> Any:
    """Of what becomes JSON: None in place of NaN and infinities, which JSON has not."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
