"""Images without labels, and images whose labels a net has guessed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from vitkit.data.checks import DataError, digest, some
from vitkit.data.formats.folders import images_below, is_parquet, split_folders
from vitkit.data.formats.image_files import FileSource, FolderSource, Names
from vitkit.data.formats.layouts import LayoutError, listed
from vitkit.data.opening import looked_through, open_data, open_one, short_names
from vitkit.data.source import Concatenated, Source, Splits
from vitkit.data.tars.opening import is_tar
from vitkit.data.tars.shards import is_url

CLASS = "unlabelled"  # the one class that all of them are of, as number 0


class Relabelled(Source):
    """The images of a source with other labels; what a subclass adds is the labels."""

    def __init__(self, source: Source, labels: np.ndarray, class_names: Sequence[str]) -> None:
        self.source, self.labels, self.class_names = source, labels, list(class_names)
        self.flip_keeps_class = source.flip_keeps_class
        self.shard_lengths, self.shards_at_once = source.shard_lengths, source.shards_at_once
        self.part_lengths = source.part_lengths

    def encoded(self, index: int) -> bytes | None:
        return self.source.encoded(index)

    def image(self, index: int) -> Tensor:
        return self.source.image(index)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def file(self, index: int) -> str | None:
        return self.source.file(index)

    def prefetch(self, shards: Sequence[int]) -> None:
        self.source.prefetch(shards)


class Unlabelled(Relabelled):
    """The images of a source, all of one class, so that nothing can be learned from its labels."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, np.zeros(len(source), dtype=np.int64), [CLASS])

    def fingerprint(self) -> str:
        return self.source.fingerprint()


class PseudoLabelled(Relabelled):
    """Images with labels that a net has given them: classes (N,) int64, or shares of the classes
    (N, K) float32 with rows that sum to 1, whose largest is then the label.

    Raises DataError where they are not one for each image.
    """

    def __init__(self, source: Source, targets: np.ndarray, class_names: Sequence[str]) -> None:
        if len(targets) != len(source) or targets.shape[1:] not in ((), (len(class_names),)):
            raise DataError(
                f"pseudo-labels of shape {targets.shape} were given for {len(source)} images of "
                f"{len(class_names)} classes; expected a class or a row of shares for each"
            )
        self.soft_targets, self.targets = targets.ndim == 2, targets
        labels = targets.argmax(1) if self.soft_targets else targets
        super().__init__(source, labels.astype(np.int64), class_names)

    def target(self, index: int) -> int | np.ndarray:
        return self.targets[index] if self.soft_targets else int(self.targets[index])

    def fingerprint(self) -> str:
        values = np.ascontiguousarray(self.targets)
        parts = [self.source.fingerprint(), str(values.dtype), values.tobytes(), *self.class_names]
        return digest(parts)


def open_unlabelled(data: str | Path | Splits | Source | Sequence[str | Path]) -> Source:
    """DATA as users name it -> its images to learn from without labels, all of one class.

    DATA is what `open_data` takes, whose training images these are (all where it has no splits),
    or a folder of image files at any depth, of which `train/` counts where it has split folders.
    Labels, if there are any, have no part in it. Raises DataError, also where there is no image.
    """
    if isinstance(data, Splits | Source):
        return Unlabelled(open_data(data).train)
    words = [data] if isinstance(data, str | Path) else list(data)
    if len(words) < 2 or all(map(is_parquet, words)) or all(map(is_tar, words)):
        return open_word(words[0]) if len(words) == 1 else Unlabelled(open_data(words).train)
    return Concatenated([open_word(word) for word in words], short_names([str(w) for w in words]))


def open_word(word: str | Path) -> Source:
    """One of the words. A folder that holds no labelled data is one of images alone."""
    try:
        source = open_one(word).train
    except DataError as error:
        plain = image_files(word)
        if plain is None and isinstance(error, LayoutError):
            entries = some(listed(Path(word).expanduser())) or "nothing"
            raise DataError(
                f"{word}: no image in it, but {entries}; give a folder that holds image files at "
                "any depth"
            ) from error
        if plain is None:
            raise
        return plain
    # Beside class folders there may be images that are in none of them.
    plain = image_files(word) if isinstance(source, FolderSource) else None
    return plain or Unlabelled(source)


def image_files(word: str | Path) -> FileSource | None:
    """All images in a folder at any depth, or in its `train/`; None for anything else."""
    if is_url(word) or not Path(word).expanduser().is_dir():
        return None
    root = looked_through(Path(word).expanduser())
    below = split_folders(root).get("train", "")
    names = Names(images_below(root / below, f"{below}/" if below else ""))
    if not names:
        return None
    return FileSource(root, names, np.zeros(len(names), dtype=np.int64), [CLASS])
