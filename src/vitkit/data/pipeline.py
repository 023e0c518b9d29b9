"""The Grain pipeline: a source becomes batches.

Order and augmentation are pure functions of (seed, global position in the stream), so a run can
go on from any position, and the number of loader threads changes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vitkit.data.checks import BadImages, DataError, reason_of
from vitkit.data.crops import RandomCrop
from vitkit.data.decode import ImageError, decode_batch
from vitkit.data.draws import Purpose, uniforms
from vitkit.data.kept import KeptOnDevice, KeptOnDisk
from vitkit.data.sampling import Order, places_of
from vitkit.data.source import Source
from vitkit.data.transforms import Preprocessing

logging.getLogger("absl").setLevel(logging.ERROR)  # grain warns that jax is not installed
import grain  # noqa: E402  (after the line that quiets it)

PREFETCHED_BATCHES = 2  # grain's default of 500 images or more costs gigabytes at 224 pixels
ENDLESS = 10**9  # batches
LOADER = threading.local()
T = TypeVar("T")
ATTEMPTS = 20  # replacements tried for one bad image
ORDERED_AT_ONCE = 32  # batches whose order is found together, as fast as that of one
DECODED_AT_ONCE = 64  # whole images that a GPU decodes in one call


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, H, W), uint8 for training and float for evaluation, and labels: (B,)
    int64, or (B, K) float shares of the classes. `positions` (B,) are the places in the stream."""

    images: Tensor
    labels: Tensor
    positions: np.ndarray | None = None


class TrainingStream:
    """An endless stream of randomly cropped training batches, from any position on.

    A bad image is replaced by another, drawn by (seed, position, attempt), the same for all its
    repeats in a batch; more bad images than 10 and 0.1 % of the source raise DataError. Of several
    processes each has its `rank` and gets its share of every batch, which their number must divide:
    together they see the stream of a single one. `order` is by default every image once an epoch.
    `kept` holds decoded images, on the device or on disk; `device` is where the others are decoded.
    """

    def __init__(
        self,
        source: Source,
        crop: RandomCrop,
        batch_size: int,
        seed: int,
        threads: int = 2,
        rank: int = 0,
        ranks: int = 1,
        *,
        order: Order | None = None,
        kept: KeptOnDevice | KeptOnDisk | None = None,
        device: torch.device = torch.device("cpu"),  # noqa: B008  (it never changes)
    ) -> None:
        if batch_size % ranks:
            raise ValueError(f"{ranks} processes do not divide a batch of {batch_size}")
        self.source, self.crop = source, crop
        self.batch_size, self.seed, self.threads = batch_size, seed, threads
        self.rank, self.ranks = rank, ranks
        self.order = order or Order(source, batch_size, seed)
        self.blocks: dict[int, np.ndarray] = {}
        self.kept, self.device = kept, device
        self.fetched: list[int] = []
        self.pulse: Callable[[], None] = lambda: None  # called while a long time passes
        # Where all are kept, every process meets all bad ones, else its share of them.
        shares = 1 if isinstance(kept, KeptOnDevice) else ranks
        self.bad = BadImages(limit=max(1, max(10, len(source) // 1000) // shares))

    def batches(self, first: int = 0) -> Generator[Batch, None, None]:
        """Batches from number `first` on; closing the iterator ends its threads."""
        if isinstance(self.kept, KeptOnDevice):
            self.kept.fill(self.source, self.bad, self.threads, self.pulse)
            return self.from_device(self.kept, first)
        return self.decoded(first)

    def places(self, batch: int) -> np.ndarray:
        return places_of(batch, self.batch_size, self.rank, self.ranks)

    def indices(self, batch: int) -> np.ndarray:
        """The images (B,) of this process's share of a batch."""
        block, inside = divmod(batch, ORDERED_AT_ONCE)
        found = self.blocks.get(block)
        if found is None:
            first = block * ORDERED_AT_ONCE
            places = [self.places(number) for number in range(first, first + ORDERED_AT_ONCE)]
            found = self.order(np.concatenate(places)).reshape(ORDERED_AT_ONCE, -1)
            # Threads may still be at the block before.
            self.blocks = {block: found} | {n: b for n, b in self.blocks.items() if n == block - 1}
        return found[inside]

    def from_device(self, kept: KeptOnDevice, first: int) -> Generator[Batch, None, None]:
        """Nothing but a few numbers for each image goes to the device."""

        def load(number: int) -> Batch:
            compute_alone(self.threads)
            places = self.places(first + number)
            indices = self.indices(first + number).copy()
            for row in np.flatnonzero(kept.bad[indices]):
                indices[row] = self.replacement(int(places[row]), kept)
            images, labels = kept.taken(indices)
            images = self.crop.crop_batch(images, self.crop.draws(self.seed, places))
            return Batch(images, labels, places)

        if kept.device.type == "cpu":
            return ahead(load, self.threads, PREFETCHED_BATCHES)
        return (load(number) for number in range(ENDLESS))  # a GPU works ahead by itself

    def replacement(self, place: int, kept: KeptOnDevice) -> int:
        found = [index for index in self.replacements(place) if not kept.bad[index]]
        if not found:
            raise DataError(f"{ATTEMPTS} images in a row cannot be used; check the data")
        return found[0]

    def attempts(self, index: int, place: int) -> Iterator[int]:
        yield index
        yield from self.replacements(place)

    def replacements(self, place: int) -> list[int]:
        """The images that take the place of a bad one, the first that is good."""
        (place,) = self.order.without_repeats(np.array([place])).tolist()
        drawn = uniforms(self.seed, Purpose.REPLACEMENT, place, 1, ATTEMPTS)[0]
        return (drawn * len(self.source)).astype(np.int64).tolist()

    def decoded(self, first: int) -> Generator[Batch, None, None]:
        # A thread loads a part of a batch: a single image would cost more in grain than it takes
        # to decode a small one, a whole batch would leave threads without work.
        parts = max(1, min(self.threads, self.batch_size // self.ranks))
        building: dict[int, Building] = {}
        lock = threading.Lock()

        def load(number: int) -> bool:
            compute_alone(self.threads)
            number, part = divmod(number, parts)
            with lock:
                if number not in building:
                    self.fetch_ahead(first + number)
                    building[number] = Building(self, first + number)
                batch = building[number]
            batch.load(part, parts)
            return True

        loaded = ahead(load, self.threads, PREFETCHED_BATCHES * parts)
        try:
            for number in range(ENDLESS // parts):
                for _ in range(parts):
                    next(loaded)
                with lock:
                    batch = building.pop(number)
                yield batch.batch()
        finally:
            loaded.close()

    def fetch_ahead(self, batch: int) -> None:
        """Have shards from afar brought near before their images are wanted."""
        shards = self.order.shards(batch * self.batch_size)
        if shards != self.fetched:
            self.fetched = shards
            self.source.prefetch(shards)

    def load(
        self, index: int, place: int, decoded: Tensor | Exception | None = None
    ) -> tuple[Tensor, int | np.ndarray]:
        """An image and its target, or those of a replacement; `decoded` is the image, or what is
        wrong with it, where that is known."""
        for attempt in self.attempts(index, place):
            try:
                if isinstance(decoded, Exception):
                    raise decoded
                image = self.image(attempt) if decoded is None else decoded
                return image, self.source.target(attempt)
            except (ImageError, OSError) as error:
                self.bad.add(self.source.name(attempt), error)
                decoded = None
        raise DataError(f"{ATTEMPTS} images in a row cannot be used; check the data")

    def image(self, index: int) -> Tensor:
        if isinstance(self.kept, KeptOnDisk):
            return self.kept.image(self.source, index)
        return self.source.image(index)


class Building:
    """A batch on its way: several threads load a part of it each."""

    def __init__(self, stream: TrainingStream, number: int) -> None:
        self.stream, self.places = stream, stream.places(number)
        self.indices = stream.indices(number)
        self.draws = stream.crop.draws(stream.seed, self.places)
        size = (len(self.places), 3, *stream.crop.image_size)
        self.images = torch.empty(size, dtype=torch.uint8)
        self.on_gpu: dict[range, Tensor] = {}  # what a GPU has decoded, by rows
        self.labels: list[Any] = [None] * len(self.places)

    def load(self, part: int, parts: int) -> None:
        rows = range(part, len(self.places), parts)
        if not decodes_many(self.stream.device):
            for row in rows:
                self.images[row] = self.cropped(row)
            return
        for begin in range(0, len(rows), DECODED_AT_ONCE):
            some = rows[begin : begin + DECODED_AT_ONCE]
            with own_stream(self.stream.device):
                decoded = self.by_gpu(some)
                cropped = [self.cropped(row, decoded.get(row)) for row in some]
                self.on_gpu[some] = torch.stack(cropped)

    def cropped(self, row: int, decoded: Tensor | Exception | None = None) -> Tensor:
        index, place = int(self.indices[row]), int(self.places[row])
        image, self.labels[row] = self.stream.load(index, place, decoded)
        return self.stream.crop.crop(image.to(self.stream.device), self.draws[row])

    def by_gpu(self, rows: range) -> dict[int, Tensor | Exception]:
        """Images decoded on the device, those of a source that keeps files."""
        files: dict[int, bytes] = {}
        results: dict[int, Tensor | Exception] = {}
        for row in rows:
            try:
                data = self.stream.source.encoded(int(self.indices[row]))
            except OSError as error:
                results[row] = error
            else:
                if data is not None:
                    files[row] = data
        decoded = decode_batch(list(files.values()), self.stream.device)
        return results | dict(zip(files, decoded, strict=True))

    def batch(self) -> Batch:
        if self.on_gpu:
            self.images = self.images.to(self.stream.device)
        for rows, images in self.on_gpu.items():
            self.images[rows.start : rows.stop : rows.step] = images
            if images.is_cuda:  # made on a loader thread's stream, and used on this one
                images.record_stream(torch.cuda.current_stream(images.device))
        return Batch(self.images, torch.from_numpy(np.stack(self.labels)), self.places)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """A loader thread works on a stream of its own, and has done so when the block ends: nothing
    waits for the steps of the run, and nothing is read before it is there."""
    if device.type != "cuda":
        yield
        return
    if not hasattr(LOADER, "stream"):
        LOADER.stream = torch.cuda.Stream(device)
    with torch.cuda.stream(LOADER.stream):
        yield
        LOADER.stream.synchronize()


def decodes_many(device: torch.device) -> bool:
    """Whether a device decodes many files faster in a single call; a CPU does not."""
    return device.type == "cuda"


def evaluation_batches(
    source: Source,
    preprocessing: Preprocessing,
    batch_size: int,
    threads: int = 2,
    bad: BadImages | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> Generator[Batch, None, None]:
    """Every image once, in order, the last batch as long as it comes.

    A bad image is a DataError; where `bad` is given, it is left out, counted and named there. Of
    several processes each, by its `rank`, gets every `ranks`-th image.
    """

    def load(index: int) -> tuple[Tensor, int | np.ndarray] | None:
        compute_alone(threads)
        try:
            return preprocessing(source.image(index)), source.target(index)
        except (ImageError, OSError) as error:
            if bad is None:
                raise DataError(f"{source.name(index)}: {reason_of(error)}") from error
            bad.add(source.name(index), error)
            return None  # grain leaves it out

    samples = grain.MapDataset.range(len(source))[rank::ranks].map(load)
    options = reading(threads, PREFETCHED_BATCHES * batch_size)
    batches = samples.to_iter_dataset(options).batch(batch_size, batch_fn=stack)
    return closing(iter(batches))


def compute_alone(threads: int) -> None:
    """A loader thread computes by itself: it is the threads that work side by side."""
    if threads and not hasattr(LOADER, "alone"):
        torch.set_num_threads(1)  # of this thread, and of those that begin later
        LOADER.alone = True


def ahead(load: Callable[[int], T], threads: int, buffered: int) -> Generator[T, None, None]:
    """load(0), load(1), ... in order, without end, made by threads that are so many ahead."""
    loaded = grain.MapDataset.range(ENDLESS).map(load)
    return closing(iter(loaded.to_iter_dataset(reading(threads, buffered))))


def reading(threads: int, buffered: int) -> grain.ReadOptions:
    return grain.ReadOptions(threads, buffered if threads else 0)


def closing(iterator: Any) -> Generator[Any, None, None]:
    """The same, and closing it closes grain's."""
    try:
        yield from iterator
    finally:
        iterator.close()  # an unclosed one keeps its threads


def stack(samples: Sequence[Any]) -> Batch:  # of (image, label)
    images, labels = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.from_numpy(np.stack(labels)))
