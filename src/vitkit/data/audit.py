"""Every image of a data set read and decoded once: what cannot be used, what is odd, what is twice.

`look_through` keeps some 60 bytes an image, whatever the images hold, and lets none of them end it.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from vitkit.data.checks import reason_of
from vitkit.data.decode import BY_TORCHCODEC, FORMATS, ImageError, decode
from vitkit.data.duplicates import thumbnail
from vitkit.data.source import Source
from vitkit.data.tars.shards import is_url
from vitkit.errors import VitkitError

AT_ONCE = 32  # images that a thread reads between two looks at the queue
TINY = 32  # pixels of the shorter side below which an image is counted as tiny
FEW_IMAGES = 10  # of a class; fewer are named
ORIENTATION = 0x0112  # the EXIF tag
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "AVIF": (".avif", ".avifs"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
MODES = {
    "1": "grey", "L": "grey", "LA": "transparency", "La": "transparency", "P": "palette",
    "PA": "palette", "RGBA": "transparency", "RGBa": "transparency", "CMYK": "CMYK",
    "YCbCr": "YCbCr", "LAB": "LAB", "HSV": "HSV", "F": "floating point", "I": "16 bits",
}  # fmt: skip
SAMPLE, SAMPLE_SECONDS = 1000, 3.0  # images whose headers are read before a run, and for how long
NOTES = (*dict.fromkeys(MODES.values()), "turned by EXIF", "animated", "tiny", "other suffix")
PROBLEMS = ("unreadable", "not an image", "too large", "corrupt")

Progress = Callable[[int, int], None]  # (done, of all)
Part = tuple[str, Source]  # the name of a split, and its images


class Look(NamedTuple):
    """What was seen of one image."""

    digest: bytes  # 16 bytes of the file's SHA-256, or of the pixels' where there is no file
    bytes: int = 0  # of the file
    height: int = 0
    width: int = 0
    format: str = ""
    notes: tuple[str, ...] = ()  # of NOTES
    problem: tuple[str, str] | None = None  # of PROBLEMS, and a sentence
    sums: np.ndarray | None = None  # float64 (2, 3): of the pixels and their squares, 0 to 255
    thumbnail: Tensor | None = None


@dataclass
class Seen:
    """What was seen of N images of several splits, one split after the other."""

    parts: list[Part]
    digests: np.ndarray  # (N, 2) uint64
    bytes: np.ndarray  # (N,) int64
    heights: np.ndarray  # (N,) int32; 0 where the image cannot be used
    widths: np.ndarray
    formats: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)  # names of the first of each note
    problems: dict[int, tuple[str, str]] = field(default_factory=dict)  # by index
    sums: np.ndarray = field(default_factory=lambda: np.zeros((2, 3)))
    pixels: int = 0

    def __post_init__(self) -> None:
        self.starts = np.cumsum([0, *(len(source) for _, source in self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def usable(self) -> np.ndarray:
        return self.heights > 0

    def split(self, index: int) -> int:
        """The number of the split that an image is of."""
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def splits(self) -> np.ndarray:
        """(N,) int8: that of every image."""
        return np.repeat(np.arange(len(self.parts), dtype=np.int8), np.diff(self.starts))

    def located(self, index: int) -> tuple[Source, int]:
        number = self.split(index)
        return self.parts[number][1], int(index - self.starts[number])

    def key(self, index: int) -> str:
        source, inner = self.located(index)
        return source.key(inner)

    def name(self, index: int) -> str:
        source, inner = self.located(index)
        return source.name(inner)

    def add(self, index: int, look: Look) -> None:
        self.digests[index] = np.frombuffer(look.digest, np.uint64)
        self.bytes[index] = look.bytes
        if look.problem:
            self.problems[index] = look.problem
            return
        self.heights[index], self.widths[index] = look.height, look.width
        self.formats[look.format] += 1
        self.notes.update(look.notes)
        for note in look.notes:
            names = self.examples.setdefault(note, [])
            if len(names) < 3:
                names.append(self.name(index))
        if look.sums is not None:
            self.sums += look.sums
            self.pixels += look.height * look.width


def look_through(
    parts: Iterable[Part],
    *,
    threads: int | None = None,
    thumbnails: np.ndarray | None = None,
    moments: bool = False,
    progress: Progress | None = None,
) -> Seen:
    """Read and decode every image, in threads.

    `thumbnails` (N, duplicates.BYTES) uint8, if given, is filled; `moments` sums up the pixels. An
    image that cannot be used is recorded, whatever is wrong with it.
    """
    parts = list(parts)
    images = sum(len(source) for _, source in parts)
    seen = Seen(
        parts, np.zeros((images, 2), np.uint64), np.zeros(images, np.int64),
        np.zeros(images, np.int32), np.zeros(images, np.int32),
    )  # fmt: skip
    done = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata, image by image
        for _, source in parts:
            for look in looks(source, threads or usual_threads(), thumbnails is not None, moments):
                seen.add(done, look)
                if thumbnails is not None and look.thumbnail is not None:
                    thumbnails[done] = look.thumbnail.numpy()
                done += 1
                if progress and (done % 64 == 0 or done == images):
                    progress(done, images)
    return seen


def usual_threads() -> int:
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)


def looks(source: Source, threads: int, small: bool, moments: bool) -> Iterator[Look]:
    """A Look at every image, in order, of which few are kept at a time."""

    def group(first: int) -> list[Look]:
        last = min(first + AT_ONCE, len(source))
        return [look_at(source, index, small, moments) for index in range(first, last)]

    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        for first in range(0, len(source), AT_ONCE):
            waiting.append(pool.submit(group, first))
            if len(waiting) > 2 * threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def look_at(source: Source, index: int, small: bool = False, moments: bool = False) -> Look:
    """One image, read and decoded."""
    try:
        data = source.encoded(index)
        image = source.image(index) if data is None else None
    except (OSError, VitkitError) as error:
        problem = ("unreadable", reason_of(error))
        return Look(digest_of(source.name(index).encode("utf-8", "surrogatepass")), problem=problem)
    if image is not None:
        return described(image, Look(digest_of(image.numpy().tobytes())), small, moments)
    assert data is not None
    look = Look(digest_of(data), len(data))
    try:
        kind, notes = header(data, source.name(index))
        look = look._replace(format=kind, notes=notes)
        return described(decode(data), look, small, moments)
    except ImageError as error:
        return look._replace(problem=(problem_kind(str(error)), str(error)))
    except Exception as error:  # an image must not end the reading of all others
        return look._replace(problem=("corrupt", f"{type(error).__name__} while it was decoded"))


def described(image: Tensor, look: Look, small: bool, moments: bool) -> Look:
    height, width = image.shape[-2:]
    if min(height, width) < TINY:
        look = look._replace(notes=(*look.notes, "tiny"))
    sums = None
    if moments:
        # Counts of the 256 values give both sums exactly, and faster than squares.
        counts = np.stack([counts_of(channel.flatten().numpy()) for channel in image])
        values = np.arange(256.0)
        sums = np.stack([counts @ values, counts @ values**2])
    return look._replace(
        height=height, width=width, sums=sums, thumbnail=thumbnail(image) if small else None
    )


def counts_of(values: np.ndarray) -> np.ndarray:
    """(256,) how often each value is there, in pieces, for numpy makes them 8 times as large."""
    pieces = range(0, len(values), 2**20)
    return np.sum([np.bincount(values[p : p + 2**20], minlength=256) for p in pieces], axis=0)


def header(data: bytes, name: str) -> tuple[str, tuple[str, ...]]:
    """The format, and what is unusual but no fault; ("", ()) where there is no image."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        kind = image.format or ""
        # A decoder looks for the frames of a GIF by reading all of it; a still says so at once.
        moving = kind not in ("JPEG", "BMP", "PPM") and getattr(image, "is_animated", False)
        turned = kind in (*BY_TORCHCODEC, "TIFF") and b"Exif" in data[:65536]
        turned = turned and image.getexif().get(ORIENTATION, 1) not in (0, 1)
        mode = "I" if image.mode.startswith("I") else image.mode
    except Exception:  # Pillow raises many kinds; `decode` says what is wrong
        return "", ()
    suffix = os.path.splitext(name)[1].lower()
    known = any(suffix in suffixes for suffixes in SUFFIXES.values())
    wrong = known and suffix not in SUFFIXES.get(kind, ())
    found = (MODES.get(mode), moving and "animated", turned and "turned by EXIF",
             wrong and "other suffix")  # fmt: skip
    return kind, tuple(note for note in found if note)


def modes_of_some(source: Source) -> dict[str, list[str]]:
    """Mode ("colour", or one of MODES) -> the names of images of it, among a sample of those that
    are files at hand; it takes some seconds at most, and whatever is wrong is met elsewhere."""
    found: dict[str, list[str]] = {}
    order = np.random.default_rng(0).permutation(min(len(source), SAMPLE))
    until = time.monotonic() + SAMPLE_SECONDS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index in (order * max(len(source), SAMPLE) // SAMPLE).tolist():
            if source.shard_lengths is not None or time.monotonic() > until:
                break
            with suppress(OSError, VitkitError):
                name = source.name(index)
                if is_url(name):
                    continue
                kind, notes = header(source.encoded(index) or b"", name)
                mode = next((note for note in notes if note in MODES.values()), "colour")
                if kind:
                    found.setdefault(mode, []).append(name)
    return found


def problem_kind(sentence: str) -> str:
    for start, kind in (("too large", "too large"), ("a corrupt", "corrupt")):
        if sentence.startswith(start):
            return kind
    return "not an image"


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]


def same_bytes(seen: Seen) -> list[np.ndarray]:
    """Groups of usable images whose files are the same byte for byte: sorted indices."""
    places = np.flatnonzero(seen.usable)
    order = places[np.lexsort((seen.digests[places, 1], seen.digests[places, 0]))]
    differ = (seen.digests[order[1:]] != seen.digests[order[:-1]]).any(axis=1)
    groups = np.split(order, np.flatnonzero(differ) + 1) if len(order) else []
    return [np.sort(group) for group in groups if len(group) > 1]


def labels_of(seen: Seen) -> np.ndarray:
    """(N,) integers that are equal where labels are; of several labels each, a hash."""
    found = [np.empty(0, np.int64)]
    for _, source in seen.parts:
        labels = source.labels
        if not source.multi_label:
            found.append(np.asarray(labels, dtype=np.int64))
            continue
        rows = zip(labels.indptr[:-1], labels.indptr[1:], strict=True)
        hashes = [digest_of(np.sort(labels.indices[a:b]).tobytes())[:8] for a, b in rows]
        found.append(np.frombuffer(b"".join(hashes), np.int64))
    return np.concatenate(found)


def best_first(seen: Seen, group: np.ndarray) -> np.ndarray:
    """A group of duplicates, the one to keep first.

    What is evaluated on stays, so that training is rid of it: test before val before train; then
    the image with most pixels, with most bytes, and the first.
    """
    splits = np.array([seen.split(int(index)) for index in group])
    pixels = seen.heights[group].astype(np.int64) * seen.widths[group]
    return group[np.lexsort((group, -seen.bytes[group], -pixels, -splits))]


@dataclass(frozen=True)
class Findings:
    """What `check` finds in the classes and in the copies, as plain values."""

    counts: dict[str, dict[str, int]]  # split -> class -> images
    empty: list[str]  # classes without an image in any split
    missing: dict[str, list[str]]  # split -> classes that only other splits have
    small: dict[str, list[str]]  # split -> classes of fewer than FEW_IMAGES, but not none
    copies: int  # images that are byte for byte another one's
    leaks: int  # groups of the same bytes in several splits
    two_labels: list[list[str]]  # keys of the same bytes under different labels
    quarantine: dict[str, str]  # key -> reason


def findings(seen: Seen) -> Findings:
    counts = class_counts(seen.parts)
    names = list(dict.fromkeys(name for split in counts.values() for name in split))
    full = {name for name in names if any(split.get(name) for split in counts.values())}
    labels, groups = labels_of(seen), same_bytes(seen)
    quarantine = {seen.key(index): f"{kind}: {text}"
                  for index, (kind, text) in sorted(seen.problems.items())}  # fmt: skip
    two_labels = []
    for group in groups:
        keys = [seen.key(int(index)) for index in best_first(seen, group)]
        if len(np.unique(labels[group])) > 1:
            two_labels.append(keys)
            for key, other in zip(keys, [keys[1], *keys[:1] * (len(keys) - 1)], strict=True):
                quarantine[key] = f"the same file as {other}, under another label"
        else:
            quarantine |= dict.fromkeys(keys[1:], f"the same file as {keys[0]}")
    return Findings(
        counts,
        [name for name in names if name not in full],
        {split: [n for n in names if n in full and not of.get(n)] for split, of in counts.items()},
        {split: [n for n, images in of.items() if 0 < images < FEW_IMAGES]
         for split, of in counts.items()},
        sum(len(group) - 1 for group in groups),
        sum(seen.split(int(group[0])) != seen.split(int(group[-1])) for group in groups),
        two_labels,
        quarantine,
    )  # fmt: skip


def class_counts(parts: Sequence[Part]) -> dict[str, dict[str, int]]:
    """Split -> class -> how many images have it; each of several labels counts."""
    found = {}
    for split, source in parts:
        classes, labels = len(source.class_names), source.labels
        numbers = labels.indices if source.multi_label else np.asarray(labels)
        counts = np.bincount(numbers, minlength=classes).tolist()
        found[split] = dict(zip(source.class_names, counts, strict=False))
    return found
