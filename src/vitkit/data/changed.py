"""A source whose images are changed on their way out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from vitkit.data.checks import digest
from vitkit.data.source import Source


class Changed(Source):
    """Every image is `change(image, index)`; labels, keys and names are those of the source.

    `change` takes and gives uint8 (3, H, W) and must be a pure function; `title` says all that
    decides it, and goes into the fingerprint.
    """

    def __init__(self, source: Source, change: Callable[[Tensor, int], Tensor], title: str) -> None:
        self.source, self.change, self.title = source, change, title
        self.labels, self.class_names = source.labels, source.class_names
        self.flip_keeps_class = source.flip_keeps_class
        self.shard_lengths = source.shard_lengths
        self.shards_at_once = source.shards_at_once
        self.part_lengths = source.part_lengths

    def encoded(self, index: int) -> None:
        return None  # the file is not what the image is

    def image(self, index: int) -> Tensor:
        return self.change(self.source.image(index), index)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def prefetch(self, shards: Sequence[int]) -> None:
        self.source.prefetch(shards)

    def fingerprint(self) -> str:
        return digest([self.source.fingerprint(), "changed", self.title])
