"""The members of one tar shard, by its headers alone; hostile ones cost no memory."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from vitkit.data.checks import DataError, some

MOST_HEADER_BYTES = 1 << 20  # of one member: a header may say that a gigabyte of header follows
LARGEST_MEMBER = 2**32 - 1  # bytes; no image is larger
PADDING = 1 << 16  # bytes looked at behind the end, which must be zeros
PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
}


@dataclass
class Problems:
    """What must not be in a set, counted, the first of each kind named."""

    found: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def note(self, kind: str, name: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= 3:
            self.found.setdefault(kind, []).append(name)

    def check(self, title: str, fix: str) -> None:
        """DataError if anything was noted."""
        if self.counts:
            words = "; ".join(
                f"{count} {kind} ({some(self.found[kind])}{', ...' if count > 3 else ''})"
                for kind, count in self.counts.items()
            )
            raise DataError(f"{title}: found {words}; {fix}")


class Guarded:
    """An open file of which only so much can be read until `more` is called."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.left = file, MOST_HEADER_BYTES
        self.seek, self.tell = file.seek, file.tell

    def more(self) -> None:
        self.left = MOST_HEADER_BYTES

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"a header of more than {MOST_HEADER_BYTES} bytes")
        self.left -= size
        return self.file.read(size)


@dataclass(frozen=True)
class Member:
    name: str
    offset: int
    size: int


def members(path: Path, title: str, problems: Problems) -> Iterator[Member]:
    """Every file of a tar, in order; what is neither file nor folder is noted. DataError."""
    with path.open("rb") as file:
        check_plain(file.read(8), title)
        length = file.seek(0, 2)
        file.seek(0)
        guarded = Guarded(file)
        try:
            tar = tarfile.TarFile(
                fileobj=guarded,  # pyright: ignore[reportArgumentType]
                encoding="utf-8",
                errors="surrogateescape",
            )
            end = 0
            while (info := tar.next()) is not None:
                # The list that tarfile keeps would grow with every member.
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                guarded.more()
                if info.size < 0 or info.offset_data < end + tarfile.BLOCKSIZE:
                    raise tarfile.ReadError(f"a size of {info.size}")
                plain = info.isreg() and not info.issparse()
                end = info.offset_data + (info.size if plain else 0)
                if end > length:
                    raise tarfile.ReadError("it ends within a file; was it copied whole?")
                member = checked(info, title, problems)
                if member is not None:
                    yield member
            check_end(file, tar.offset, length)
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            raise DataError(
                f"{title}: a damaged tar file at byte {file.tell()} ({error}); write or copy it "
                "again"
            ) from error


def check_plain(first: bytes, title: str) -> None:
    for magic, (kind, command) in PACKED.items():
        if first.startswith(magic):
            raise DataError(
                f"{title}: is compressed with {kind}; images are read at random from plain tar "
                f"files: run `{command}` on it"
            )


def check_end(file: IO[bytes], offset: int, length: int) -> None:
    """tarfile takes a damaged header for the end, and what is behind an end for nothing."""
    file.seek(offset)
    rest = file.read(PADDING)
    if not rest:
        raise tarfile.ReadError("its end is missing; was it copied whole?")
    if any(rest):
        raise tarfile.ReadError("a header that is none, or two tar files in one")


def checked(info: tarfile.TarInfo, title: str, problems: Problems) -> Member | None:
    """A member if it is a plain file with a plain name; None for folders and what is noted."""
    name = info.name.removeprefix("./")
    parts = name.split("/")
    if info.isdir() and ".." not in parts:
        return None
    kind = None
    if info.issym() or info.islnk():
        kind = "links"
    elif info.issparse():
        kind = "sparse files"
    elif not info.isreg():
        kind = "devices or other special files"
    elif info.name.startswith("/") or ".." in parts or "\0" in name or not parts[-1]:
        kind = "names that lead out of the tar file"
    elif info.size > LARGEST_MEMBER:
        kind = "files larger than 4 GB"
    if kind is not None:
        problems.note(kind, f"{title} {name}")
        return None
    return Member(name, info.offset_data, info.size)
