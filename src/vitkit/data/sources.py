"""Where labelled images come from: digits, class folders, parquet files, arrays.

A source gives random access, its length, its labels and the names of its classes.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitkit.data.decode import decode
from vitkit.errors import VitkitError

IMAGE_SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".tif",
    ".tiff",
    ".bmp",
    ".avif",
    ".ppm",
}
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}


class DataError(VitkitError):
    """The data is not as it must be; the message says what was found and what was expected."""


class Source(ABC):
    """Labelled images by index: `len(source)`, `source.labels` (N,) int64, `source.class_names`."""

    class_names: list[str]
    labels: np.ndarray
    flip_keeps_class = True  # False where a mirrored image would mean something else

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """The image as uint8 (3, H, W). Raises ImageError."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call this image in a message: its path, or file and row."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that changes when the images or labels change."""


@dataclass(frozen=True)
class Splits:
    """What a user's DATA holds: images to train on and, where it has them, to validate on."""

    name: str
    train: Source
    val: Source | None = None


class ArraySource(Source):
    """Images in memory: uint8 (N, H, W) or (N, H, W, 3)."""

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        name: str = "array",
        flip_keeps_class: bool = True,
    ) -> None:
        if (
            images.dtype != np.uint8
            or images.ndim not in (3, 4)
            or images.shape[3:] not in ((), (3,))
        ):
            raise DataError(
                f"{name}: images are {images.dtype} of shape {images.shape}; expected uint8 "
                "(N, H, W) or (N, H, W, 3)"
            )
        if images.ndim == 3:
            images = np.repeat(images[..., None], 3, axis=-1)
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)
        self.class_names = list(class_names)
        self.labels = checked_labels(labels, self.class_names, name)
        self.title, self.flip_keeps_class = name, flip_keeps_class
        if len(self.labels) != len(images):
            raise DataError(f"{name}: {len(images)} images but {len(self.labels)} labels")

    def image(self, index: int) -> Tensor:
        return self.images[index].contiguous()

    def name(self, index: int) -> str:
        return f"{self.title} {index}"

    def fingerprint(self) -> str:
        return digest([self.images.numpy().tobytes(), self.labels.tobytes(), *self.class_names])


class FolderSource(Source):
    """A folder of class folders, each holding images at any depth."""

    def __init__(self, root: Path) -> None:
        folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        files = [[p for p in sorted(f.rglob("*")) if is_image(p)] for f in folders]
        if not any(files):
            raise DataError(
                f"{root}: found {found_in(root)}; expected class folders with images in them "
                f"({root.name}/cat/1.jpg), train/ and val/ of such folders, or parquet files"
            )
        self.root = root
        # An empty folder is still a class: train/ and val/ must agree on the numbers.
        self.class_names = [f.name for f in folders]
        self.paths = [path for group in files for path in group]
        self.labels = np.repeat(np.arange(len(folders)), [len(group) for group in files])

    def image(self, index: int) -> Tensor:
        return decode(self.paths[index].read_bytes())

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def fingerprint(self) -> str:
        sizes = (f"{p.relative_to(self.root)}:{p.stat().st_size}" for p in self.paths)
        return digest([*self.class_names, *sizes])


class ParquetSource(Source):
    """Parquet files with an image column (bytes, or Hugging Face's {bytes, path}) and labels."""

    def __init__(self, paths: Sequence[Path]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.paths = list(paths)
        try:
            tables = [pq.read_table(path, memory_map=True) for path in self.paths]
            table = pa.concat_tables(tables, promote_options="default")
        except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
            raise DataError(
                f"{self.title()}: not readable as parquet: {first_line(error)}"
            ) from error
        image_column, label_column = find_columns(table.schema, self.title())
        images = table.column(image_column)
        if pa.types.is_struct(images.type):
            images = pa.chunked_array([part.field("bytes") for part in images.chunks], pa.binary())
        self.images = images
        labels = table.column(label_column)
        if labels.null_count:
            raise DataError(
                f"{self.title()}: {labels.null_count} of {len(labels)} labels are missing in the "
                f"column {label_column!r}; every row needs one"
            )
        values = labels.to_numpy()
        if len(values) == 0:
            raise DataError(f"{self.title()}: found no rows; expected images and labels")
        if values.dtype.kind in "iu":
            top = max(int(values.max()), 0)
            names = class_names_in(table.schema, label_column) or [str(i) for i in range(top + 1)]
        else:  # names as labels
            names, values = np.unique(values.astype(str), return_inverse=True)
        self.class_names = [str(name) for name in names]
        self.labels = checked_labels(values, self.class_names, self.title())

    def title(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"{self.paths[0]}{more}"

    def image(self, index: int) -> Tensor:
        return decode(self.images[index].as_py() or b"")

    def name(self, index: int) -> str:
        return f"{self.title()} row {index}"

    def fingerprint(self) -> str:
        sizes = (f"{path.name}:{path.stat().st_size}" for path in self.paths)
        return digest([*self.class_names, self.labels.tobytes(), *sizes])


class Concatenated(Source):
    """Several sources with the same classes, one after the other."""

    def __init__(self, parts: Sequence[Source]) -> None:
        for part in parts[1:]:
            if part.class_names != parts[0].class_names:
                raise DataError(
                    f"the classes of {part.name(0)} ({some(part.class_names)}) differ from those "
                    f"of {parts[0].name(0)} ({some(parts[0].class_names)}); give data with one "
                    "set of classes"
                )
        self.parts = list(parts)
        self.class_names = parts[0].class_names
        self.labels = np.concatenate([part.labels for part in parts])
        self.flip_keeps_class = all(part.flip_keeps_class for part in parts)
        self.starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()

    def locate(self, index: int) -> tuple[Source, int]:
        part = bisect_right(self.starts, index) - 1
        return self.parts[part], index - self.starts[part]

    def image(self, index: int) -> Tensor:
        part, inner = self.locate(index)
        return part.image(inner)

    def name(self, index: int) -> str:
        part, inner = self.locate(index)
        return part.name(inner)

    def fingerprint(self) -> str:
        return digest([part.fingerprint() for part in self.parts])


class Subset(Source):
    """Chosen images of a source, by index, with the same classes or a smaller set of them."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray) -> None:
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.labels = source.labels[self.indices]
        self.class_names = source.class_names
        self.flip_keeps_class = source.flip_keeps_class

    def image(self, index: int) -> Tensor:
        return self.source.image(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def fingerprint(self) -> str:
        return digest(
            [
                self.source.fingerprint(),
                self.indices.tobytes(),
                self.labels.tobytes(),
                *self.class_names,
            ]
        )


def only_classes(source: Source, classes: Sequence[str]) -> Subset:
    """The images of the named classes, renumbered in the order given."""
    missing = [name for name in classes if name not in source.class_names]
    if missing:
        raise DataError(f"no classes {some(missing)} among {some(source.class_names)}")
    number = {source.class_names.index(name): new for new, name in enumerate(classes)}
    subset = Subset(source, np.flatnonzero(np.isin(source.labels, list(number))))
    subset.labels = np.array([number[label] for label in subset.labels.tolist()], dtype=np.int64)
    subset.class_names = list(classes)
    return subset


def digits() -> Splits:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey; a stratified fifth is held out."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)  # 0..16 -> 0..255
    names = [str(digit) for digit in range(10)]
    source = ArraySource(images, np.asarray(labels), names, name="digit", flip_keeps_class=False)
    return held_out(source, "digits", share=0.2, at_most=len(source), seed=0)


def held_out(
    source: Source, name: str, share: float = 0.1, at_most: int = 10_000, seed: int = 0
) -> Splits:
    """Split off `share` of every class for validation, `at_most` images in all.

    A pure function of the labels and the seed; every class keeps at least one training image.
    """
    share = min(share, at_most / max(1, len(source)))
    random = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(source.labels):
        members = random.permutation(np.flatnonzero(source.labels == label))
        chosen.append(members[: min(round(len(members) * share), len(members) - 1)])
    val = np.sort(np.concatenate(chosen))[:at_most]
    if len(val) == 0:
        raise DataError(
            f"{name}: {len(source)} images of {len(source.class_names)} classes are too few to "
            "hold any out; give more images, or a val/ folder"
        )
    train = np.setdiff1d(np.arange(len(source)), val)
    return Splits(name, Subset(source, train), Subset(source, val))


def open_data(data: str | Path | Splits | Source | Sequence[str | Path]) -> Splits:
    """DATA as users name it -> its splits.

    "digits"; a folder of class folders, of train/ and val/ with class folders in them, or of
    parquet files; one or more parquet files; several of these. Raises DataError.
    """
    if isinstance(data, Splits):
        return data
    if isinstance(data, Source):
        return Splits(data.name(0), data)
    words = [data] if isinstance(data, str | Path) else list(data)
    if not words:
        raise DataError("no data given; expected a folder, parquet files or 'digits'")
    if all(is_parquet(word) for word in words):
        return Splits(str(words[0]), ParquetSource([existing(word) for word in words]))
    opened = [open_one(word) for word in words]
    if len(opened) == 1:
        return opened[0]
    vals = [splits.val for splits in opened if splits.val is not None]
    train = Concatenated([splits.train for splits in opened])
    return Splits(opened[0].name, train, Concatenated(vals) if vals else None)


def open_one(word: str | Path) -> Splits:
    if str(word) == "digits":
        return digits()
    path = existing(word)
    if path.is_file():
        if not is_parquet(path):
            raise DataError(f"{path}: a file, but not parquet; expected a folder or parquet files")
        return Splits(str(path), ParquetSource([path]))
    folders = {SPLITS.get(p.name.lower(), p.name.lower()): p for p in path.iterdir() if p.is_dir()}
    if "train" in folders:
        train, held = folders["train"], folders.get("val", folders.get("test"))
        return Splits(str(path), open_flat(train), open_flat(held) if held else None)
    files: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    for file in sorted(path.glob("*.parquet")):
        start = file.name.lower().split("-")[0].split(".")[0]
        files[SPLITS.get(start, start) if SPLITS.get(start, start) in files else "train"].append(
            file
        )
    if any(files.values()):
        train, held = files["train"], files["val"] or files["test"]
        if not train:
            train, held = held, []
        return Splits(str(path), ParquetSource(train), ParquetSource(held) if held else None)
    return Splits(str(path), FolderSource(path))


def open_flat(path: Path) -> Source:
    """A folder of one split: class folders, or parquet files."""
    files = sorted(path.glob("*.parquet"))
    return ParquetSource(files) if files else FolderSource(path)


def image_side(source: Source, looked_at: int = 16) -> int:
    """The median shorter side of a few images spread over the source, in pixels."""
    from vitkit.data.decode import ImageError

    sides = []
    for index in np.linspace(0, len(source) - 1, min(looked_at, len(source))).astype(int):
        try:
            sides.append(min(source.image(int(index)).shape[-2:]))
        except ImageError:
            continue
    if not sides:
        raise DataError(f"none of the images looked at can be decoded, {source.name(0)} first")
    return int(np.median(sides))


def existing(word: str | Path) -> Path:
    path = Path(word).expanduser()
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; DATA is a folder, parquet files or 'digits'"
        )
    return path


def is_parquet(word: str | Path) -> bool:
    return str(word).endswith(".parquet")


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def find_columns(schema, title: str) -> tuple[str, str]:
    """The image and the label column of a parquet schema; DataError naming the columns found."""
    import pyarrow as pa

    image = label = None
    for field in schema:
        is_struct = pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        is_bytes = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
        is_label = pa.types.is_integer(field.type) or pa.types.is_string(field.type)
        if image is None and (is_struct or is_bytes):
            image = field.name
        if is_label and (label is None or field.name in ("label", "labels")):
            label = field.name
    if image is None or label is None:
        found = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
        raise DataError(
            f"{title}: found the columns {found}; expected an image column (bytes, or a struct "
            "with bytes) and a label column (integers or names)"
        )
    return image, label


def class_names_in(schema, column: str) -> list[str] | None:
    """The names that Hugging Face's schema metadata gives for a ClassLabel column."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        return info["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None


def checked_labels(values: Iterable[int], class_names: Sequence[str], title: str) -> np.ndarray:
    labels = np.asarray(values, dtype=np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(wrong):
        raise DataError(
            f"{title}: {len(wrong)} labels are out of range, the first is {labels[wrong[0]]} in "
            f"row {wrong[0]}; expected 0 to {len(class_names) - 1} for {len(class_names)} classes"
        )
    return labels


def require_classes(source: Source, title: str) -> None:
    """DataError unless there are images of at least two classes."""
    present = np.unique(source.labels)
    if len(present) < 2:
        names = some([source.class_names[label] for label in present]) or "none"
        raise DataError(
            f"{title}: found {len(source)} images of {len(present)} class ({names}); "
            "expected at least two classes"
        )


def found_in(folder: Path) -> str:
    """A few words on what a folder holds, for messages."""
    entries = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    return some(entries) if entries else "an empty folder"


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def digest(parts: Iterable[str | bytes]) -> str:
    """SHA-256 over parts, each with its length, in hexadecimal."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()
