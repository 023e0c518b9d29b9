"""Sources of images that are files of their own: in class folders, or named in a list."""

from __future__ import annotations

import os
import warnings
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vitkit.data.checks import digest, some
from vitkit.data.formats.folders import images_below, scanned, subfolders
from vitkit.data.formats.layouts import wrong_layout
from vitkit.data.source import Source, label_bytes

HASHED = 16 * 1024  # bytes at each end of a file


class Names(Sequence[str]):
    """Many texts in one piece of memory: of a million short paths 40 MB rather than 100."""

    def __init__(self, names: Iterable[str]) -> None:
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name.encode("utf-8", "surrogateescape")
            ends.append(len(text))
        self.text, self.ends = bytes(text), np.frombuffer(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.text[self.ends[index] : self.ends[index + 1]].decode("utf-8", "surrogateescape")


class FileSource(Source):
    """Image files below a folder: their paths within it, with slashes, and their labels."""

    def __init__(
        self, root: Path, names: Iterable[str], labels: Any, class_names: Sequence[str]
    ) -> None:
        self.root, self.names = root, names if isinstance(names, Names) else Names(names)
        self.labels, self.class_names = labels, list(class_names)

    def encoded(self, index: int) -> bytes:
        with open(self.name(index), "rb") as file:
            return file.read()

    def key(self, index: int) -> str:
        return self.names[index]

    def name(self, index: int) -> str:
        return os.path.join(self.root, self.names[index])

    def file(self, index: int) -> str:
        return self.name(index)

    def fingerprint(self) -> str:
        return digest([*self.class_names, label_bytes(self.labels), self.content])

    @cached_property
    def content(self) -> str:
        """A hash of all files, kept because both halves of a split ask for it."""
        pairs = ((name, ends_of(os.path.join(self.root, name))) for name in self.names)
        return digest(part for pair in pairs for part in pair)


class FolderSource(FileSource):
    """Class folders in the folder `below` of `root`, or in `root` itself.

    Images at any depth below a class folder are of that class; its folders are no classes of their
    own. Keys begin at `root`, so that those of train/ and val/ differ.
    """

    def __init__(self, root: Path, below: str = "") -> None:
        folder = root / below if below else root
        classes = subfolders(folder)
        start = f"{below}/" if below else ""
        counts = array("q")

        def names() -> Iterator[str]:
            for name in classes:
                counts.append(0)
                for image in images_below(folder / name, f"{start}{name}/"):
                    counts[-1] += 1
                    yield image

        lost = [e.name for e in scanned(folder) if e.is_symlink() and not os.path.exists(e.path)]
        if lost:
            warnings.warn(f"{folder}: links lead nowhere: {some(sorted(lost))}", stacklevel=2)
        found = Names(names())
        if not found:
            raise wrong_layout(folder, is_split=bool(below))
        # An empty folder is still a class: train/ and val/ must agree on the numbers.
        labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
        super().__init__(root, found, labels, classes)


def ends_of(path: str | Path) -> bytes:
    """The length of a file and its first and last bytes, which tell it from others.

    Its middle is left out, so that a fingerprint of a million photographs takes a minute rather
    than an hour; its time of change too, which differs in a copy. An unreadable file is a bad
    image, which is counted when it is used.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            start = file.read(HASHED)
            file.seek(max(len(start), size - HASHED))
            return size.to_bytes(8, "little") + start + file.read()
    except OSError:
        return b""
