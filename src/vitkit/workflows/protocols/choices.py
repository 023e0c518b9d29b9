"""What several protocols check before they begin."""

from __future__ import annotations

from vitkit.data.checks import DataError
from vitkit.data.source import Source
from vitkit.errors import UsageError


def one_label(source: Source, protocol: str) -> None:
    """DataError where images may have several labels."""
    if source.multi_label:
        raise DataError(
            f"{protocol} takes images of one class each, and these may have several labels; use "
            "--protocol top-k"
        )


def whole_numbers(text: str, option: str, least: int, most: int) -> list[int]:
    """ "1,3,5" -> [1, 3, 5], each once and in order. Raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    # Very long ones are refused before int does it in words of its own.
    if not all(part.isdecimal() and len(part) < 10 and least <= int(part) <= most
               for part in parts):  # fmt: skip
        raise UsageError(
            f"--{option} is {text[:60]!r}; it must be whole numbers from {least} to {most} with "
            "commas between them"
        )
    return sorted({int(part) for part in parts})
