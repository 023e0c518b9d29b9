"""What data must be, and short words on what it is, for messages."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from vitkit.errors import VitkitError
from vitkit.terminal import printable

COUNTED = re.compile(r"(.*?)(\d{2,7})(\.[a-z]+)")
NUMBERED = re.compile(r"(.*-)(\d{3,7})-of-(\d{3,7})(\..*)")
MOST_SHARDS = 1_000_000  # a name may claim any number


class DataError(VitkitError):
    """The data is not as it must be; the message says what was found and what was expected."""


def reason_of(error: Exception) -> str:
    """What is wrong with an image, without the path that an OSError repeats."""
    return getattr(error, "strerror", None) or str(error)


@dataclass
class BadImages:
    """Images that could not be decoded while training: counted, named, and limited."""

    limit: int
    reasons: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, error: Exception) -> None:
        with self.lock:
            self.reasons[name] = reason_of(error)
            if len(self.reasons) <= self.limit:
                return
        shown = "; ".join(f"{name}: {why}" for name, why in list(self.reasons.items())[:3])
        raise DataError(
            f"{len(self.reasons)} images cannot be used, more than the {self.limit} tolerated: "
            f"{shown}; remove or repair them, or leave them out by a list of `vitkit data check` "
            "and --data.quarantine"
        )


def checked_labels(values: Iterable[int], class_names: Sequence[str], title: str) -> np.ndarray:
    labels = np.asarray(values, dtype=np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(wrong):
        raise DataError(
            f"{title}: {len(wrong)} labels are out of range, the first is {labels[wrong[0]]} in "
            f"row {wrong[0]}; expected 0 to {len(class_names) - 1} for {len(class_names)} classes"
        )
    return labels


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names, in one line whatever they hold."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(str(name)) for name in names[:most]) + more


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def digest(parts: Iterable[str | bytes | memoryview]) -> str:
    """SHA-256 over parts, each with its length, in hexadecimal."""
    total = hashlib.sha256()
    for part in parts:
        # A folder's name need not be UTF-8; surrogates stand for its odd bytes.
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def missing_shards(names: Iterable[str]) -> list[str]:
    """The absent files of numbered sets: of "train-00000-of-00002.parquet" alone the second."""
    sets: dict[tuple[str, str, str], set[int]] = {}
    for name in names:
        if found := NUMBERED.fullmatch(name):
            start, number, total, end = found.groups()
            sets.setdefault((start, total, end), set()).add(int(number))
    return [
        f"{start}{number:0{len(total)}}-of-{total}{end}"
        for (start, total, end), present in sets.items()
        for number in range(min(int(total), MOST_SHARDS))
        if number not in present
    ]


def gaps(names: Iterable[str]) -> list[str]:
    """The numbers that lack between others: of "a-000.tar" and "a-002.tar" "a-001.tar"."""
    sets: dict[tuple[str, str, int], set[int]] = {}
    for name in names:
        if found := COUNTED.fullmatch(name):
            start, number, end = found.groups()
            sets.setdefault((start, end, len(number)), set()).add(int(number))
    return [
        f"{start}{number:0{width}}{end}"
        for (start, end, width), present in sets.items()
        if max(present) - min(present) < min(MOST_SHARDS, 10 * len(present))
        for number in range(min(present), max(present))
        if number not in present
    ]


def require_all_shards(names: Sequence[str], folder: str) -> None:
    """DataError where files of a numbered set are absent."""
    missing = missing_shards(names)
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} files of a numbered set are missing: {some(missing)}; fetch "
            "them, or give the files that are there one by one"
        )
