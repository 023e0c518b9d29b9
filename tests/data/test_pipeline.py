"""The pipeline: order and augmentation are pure functions of the seed and the position."""

import gc
import io
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Collection, Generator
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from vitkit.data import pipeline
from vitkit.data.checks import DataError
from vitkit.data.crops import RandomCrop
from vitkit.data.decode import ImageError
from vitkit.data.kept import KeptOnDevice
from vitkit.data.pipeline import Batch, TrainingStream, evaluation_batches
from vitkit.data.sampling import Order
from vitkit.data.source import ArraySource, Source
from vitkit.data.transforms import Preprocessing

THREADS = [0, 1, 2, 4]
IMAGES, BATCH, SEED = 23, 5, 7  # 23 is no multiple of 5: batches cross the ends of epochs


class Numbered(ArraySource):
    """Images whose first pixel is their number; some of them cannot be decoded."""

    def __init__(self, images: int = IMAGES, bad: Collection[int] = (), error=ImageError) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (images, 8, 8), np.uint8)
        pixels[:, 0, 0] = np.arange(images) % 256
        super().__init__(pixels, np.arange(images) % 3, ["a", "b", "c"], name="image")
        self.bad, self.error = set(bad), error

    def image(self, index: int) -> Tensor:
        if index in self.bad:
            raise self.error("broken")
        return super().image(index)


class Files(Source):
    """JPEG, PNG and WebP files in memory, some of them damaged."""

    def __init__(self, images: int, bad: Collection[int] = ()) -> None:
        self.class_names, self.labels = ["a", "b", "c"], np.arange(images) % 3
        self.files = []
        for number in range(images):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 20, 3), np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, ["JPEG", "JPEG", "PNG", "WEBP"][number % 4])
            data = file.getvalue()
            self.files.append(data[: len(data) // 3] if number in bad else data)

    def encoded(self, index: int) -> bytes:
        return self.files[index]

    def key(self, index: int) -> str:
        return str(index)

    def name(self, index: int) -> str:
        return f"file {index}"

    def fingerprint(self) -> str:
        return "files"


UNTOUCHED = RandomCrop((8, 8), crop_area=(1.0, 1.0), flip=False)
AUGMENTED = RandomCrop((6, 6))


def stream(source: Source | None = None, crop=UNTOUCHED, keep="none", **options) -> TrainingStream:
    options = {"batch_size": BATCH, "seed": SEED, "threads": 2} | options
    if keep == "device":
        options["kept"] = KeptOnDevice((8, 8), torch.device("cpu"))
    return TrainingStream(source or Numbered(), crop, **options)


def taken(batches: Generator[Batch, None, None], number: int) -> list[Batch]:
    """The first batches; the iterator is closed."""
    result = list(islice(batches, number))
    batches.close()
    return result


def order(batches: list[Batch]) -> list[int]:
    """The numbers of the images, in order."""
    return torch.cat([batch.images[:, 0, 0, 0] for batch in batches]).tolist()


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


# Order


def test_a_batch_holds_uint8_images_and_the_labels_that_belong_to_them():
    for batch in taken(stream().batches(), 5):
        assert batch.images.shape == (BATCH, 3, 8, 8)
        assert batch.images.dtype == torch.uint8
        assert batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == [number % 3 for number in order([batch])]


@pytest.mark.parametrize("threads", THREADS)
def test_the_stream_is_the_same_with_any_number_of_threads(threads):
    expected = taken(stream(crop=AUGMENTED, threads=0).batches(), 12)
    assert_same(taken(stream(crop=AUGMENTED, threads=threads).batches(), 12), expected)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("first", [1, 4, 5, 11])
def test_started_at_a_later_batch_the_stream_goes_on_exactly(first, threads):
    whole = taken(stream(crop=AUGMENTED).batches(), 15)
    rest = taken(stream(crop=AUGMENTED, threads=threads).batches(first), 15 - first)
    assert_same(rest, whole[first:])


def test_a_position_a_billion_images_on_is_reached_at_once():
    began = time.monotonic()
    (batch,) = taken(stream().batches(first=10**9 // BATCH), 1)
    assert batch.images.shape == (BATCH, 3, 8, 8)
    assert time.monotonic() - began < 30  # one by one it would be hours


def test_one_stream_can_be_read_again_from_its_beginning():
    training = stream(crop=AUGMENTED)
    assert_same(taken(training.batches(), 4), taken(training.batches(), 4))


def test_every_epoch_holds_every_image_once_and_each_in_another_order():
    numbers = order(taken(stream().batches(), 4 * IMAGES // BATCH + 1))
    epochs = [numbers[i * IMAGES : (i + 1) * IMAGES] for i in range(4)]
    assert all(sorted(epoch) == list(range(IMAGES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert list(range(IMAGES)) not in epochs


def test_another_seed_gives_another_order():
    assert order(taken(stream(seed=1).batches(), 4)) != order(taken(stream(seed=2).batches(), 4))


def test_an_image_is_augmented_anew_in_every_epoch():
    pixels = np.random.default_rng(1).integers(0, 256, (IMAGES, 8, 8), np.uint8)
    source = ArraySource(pixels, np.arange(IMAGES), [str(n) for n in range(IMAGES)])
    batches = taken(stream(source, AUGMENTED, batch_size=IMAGES).batches(), 4)
    seen = {}
    for batch in batches:
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            seen.setdefault(label, set()).add(image.numpy().tobytes())
    assert all(len(versions) >= 3 for versions in seen.values())


def test_a_batch_may_be_larger_than_the_data():
    (batch,) = taken(stream(Numbered(4), batch_size=10).batches(), 1)
    assert sorted(order([batch])[:4]) == sorted(order([batch])[4:8]) == list(range(4))


@given(
    images=st.integers(1, 30), batch_size=st.integers(1, 9), seed=st.integers(0, 10**6),
    first=st.integers(0, 20), threads=st.sampled_from(THREADS),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_any_part_of_any_stream_depends_on_seed_and_position_alone(
    images, batch_size, seed, first, threads
):
    source, options = Numbered(images), {"batch_size": batch_size, "seed": seed}
    whole = taken(stream(source, threads=0, **options).batches(), first + 2)
    part = taken(stream(source, threads=threads, **options).batches(first), 2)
    assert_same(part, whole[first:])


# Several processes


@pytest.mark.parametrize("keep", ["none", "device"])
@pytest.mark.parametrize("ranks", [2, 3, 4, 6])
def test_processes_together_see_the_stream_of_a_single_one(ranks, keep):
    whole = taken(stream(crop=AUGMENTED, batch_size=12, keep=keep).batches(), 6)
    shares = [
        taken(stream(crop=AUGMENTED, batch_size=12, rank=rank, ranks=ranks, keep=keep).batches(), 6)
        for rank in range(ranks)
    ]
    for number, batch in enumerate(whole):
        found = [shares[rank][number] for rank in range(ranks)]
        places = np.concatenate([share.positions for share in found])
        assert sorted(places) == batch.positions.tolist()
        joined = torch.cat([share.images for share in found])[np.argsort(places)]
        assert torch.equal(joined, batch.images)


def test_pairs_of_neighbours_stay_in_one_process():
    for ranks in (1, 2, 3, 6):
        for rank in range(ranks):
            (batch,) = taken(stream(batch_size=12, rank=rank, ranks=ranks).batches(3), 1)
            assert {place ^ 1 for place in batch.positions} == set(batch.positions)


@pytest.mark.slow
def test_the_first_10000_samples_are_the_same_for_any_ranks_threads_and_stops():
    """For 1, 2 and 4 processes, 0 to 8 threads, and after stopping at 100 random positions."""
    source = Numbered(1000)
    options = {"source": source, "crop": AUGMENTED, "batch_size": 40}
    whole = taken(stream(**options, threads=0).batches(), 250)

    def assert_share_of_whole(rank=0, ranks=1, threads=2, first=0, number=250):
        found = taken(stream(**options, rank=rank, ranks=ranks, threads=threads).batches(first),
                      number)  # fmt: skip
        assert len(found) == number
        for batch, expected in zip(found, whole[first:], strict=False):
            inside = batch.positions - expected.positions[0]
            assert torch.equal(batch.images, expected.images[inside])
            assert torch.equal(batch.labels, expected.labels[inside])

    for ranks in (1, 2, 4):
        for rank in range(ranks):
            for threads in (0, 1, 2, 3, 5, 8):
                assert_share_of_whole(rank, ranks, threads)
    random = np.random.default_rng(0)
    for first in random.integers(0, 249, 100):
        ranks = int(random.choice([1, 2, 4]))
        rest = int(min(3, 250 - first))
        assert_share_of_whole(int(random.integers(ranks)), ranks, int(random.integers(9)),
                              int(first), rest)  # fmt: skip


# Images kept on the device


@pytest.mark.parametrize("bad", [(), (3, 9, 15, 21)])
def test_images_kept_on_the_device_come_in_the_same_order_bad_ones_replaced_alike(bad):
    one, other = stream(Numbered(bad=bad)), stream(Numbered(bad=bad), keep="device")
    assert_same(taken(other.batches(), 12), taken(one.batches(), 12))
    assert_same(taken(other.batches(7), 3), taken(one.batches(7), 3))
    assert other.bad.reasons == {f"image {number}": "broken" for number in bad}


def test_images_kept_on_the_device_are_decoded_once():
    source, read = Numbered(), []
    image = source.image
    source.image = lambda index: read.append(index) or image(index)
    training = stream(source, keep="device")
    taken(training.batches(), 30)
    taken(training.batches(), 3)
    assert sorted(read) == list(range(IMAGES))


def test_where_all_are_kept_one_of_another_size_is_a_bad_image():
    class Odd(Numbered):
        def image(self, index: int) -> Tensor:
            return super().image(index)[:, : 7 if index == 5 else 8]

    training = stream(Odd(), keep="device")
    taken(training.batches(), 10)
    assert "is 8x7 among images of 8x8" in training.bad.reasons["image 5"]


def test_too_many_bad_ones_are_an_error_before_the_first_batch():
    with pytest.raises(DataError, match=r"11 images cannot be used.*--data.quarantine"):
        stream(Numbered(40, bad=range(11)), keep="device").batches()


# Files decoded on a device


@pytest.mark.parametrize("bad", [False, True])
def test_files_decoded_many_at_once_are_those_decoded_one_by_one(bad, monkeypatch):
    files = Files(24, bad=(3, 9) if bad else ())
    expected = stream(files, AUGMENTED, batch_size=8)
    batches = taken(expected.batches(), 6)
    # A CPU stands for the GPU: the same call, and the same bits.
    monkeypatch.setattr(pipeline, "decodes_many", lambda device: True)
    many = stream(Files(24, bad=(3, 9) if bad else ()), AUGMENTED, batch_size=8)
    assert_same(taken(many.batches(), 6), batches)
    assert many.bad.reasons == expected.bad.reasons
    assert len(many.bad.reasons) == (2 if bad else 0)


def test_a_stream_holds_nothing_that_holds_it():
    """Or images kept on a device would stay there until Python next looks for such circles."""
    used = stream()
    used.indices(40)
    gone = weakref.ref(used)
    gc.disable()
    try:
        del used
        assert gone() is None
    finally:
        gc.enable()


# Shards from afar


class Shards(Numbered):
    """Images in shards of five, which are noted when they are fetched ahead."""

    def __init__(self, images: int) -> None:
        super().__init__(images)
        self.shard_lengths, self.fetched = [5] * (images // 5), []
        self.shards_at_once = 2

    def prefetch(self, shards) -> None:
        self.fetched.append(list(shards))


def test_shards_are_read_one_window_after_another_and_fetched_before():
    source = Shards(60)
    numbers = order(taken(stream(source, batch_size=10, threads=0).batches(), 6))
    assert sorted(numbers) == list(range(60))
    windows = [sorted({number // 5 for number in numbers[i : i + 10]}) for i in range(0, 60, 10)]
    assert all(len(window) == 2 for window in windows)
    assert [sorted(shards[:2]) for shards in source.fetched] == windows
    for ahead, then in itertools.pairwise(source.fetched):
        assert ahead[2:] == then[:2]


# Bad images while training


@pytest.mark.parametrize("error", [ImageError, OSError])
def test_bad_images_are_counted_and_named_once_each(error):
    training = stream(Numbered(bad={3, 9}, error=error), threads=0)
    taken(training.batches(), 3 * IMAGES // BATCH)
    assert training.bad.reasons == {"image 3": "broken", "image 9": "broken"}


@pytest.mark.parametrize("threads", THREADS)
def test_a_bad_image_is_replaced_and_no_other_sample_is_shifted(threads):
    numbers = order(taken(stream().batches(), 10))
    good = taken(stream(crop=AUGMENTED).batches(), 10)
    training = stream(Numbered(bad={3, 9}), AUGMENTED, threads=threads)
    mixed = taken(training.batches(), 10)
    for position, number in enumerate(numbers):
        batch, row = divmod(position, BATCH)
        same = torch.equal(good[batch].images[row], mixed[batch].images[row])
        assert same == (number not in (3, 9))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_replacement_is_the_same_every_time_and_for_any_number_of_threads(threads):
    bad = {3, 9, 15, 21}
    expected = taken(stream(Numbered(bad=bad), threads=0).batches(), 15)
    assert bad.isdisjoint(order(expected))
    assert len(set(order(expected))) == IMAGES - len(bad)
    assert_same(taken(stream(Numbered(bad=bad), threads=threads).batches(), 15), expected)
    rest = taken(stream(Numbered(bad=bad), threads=threads).batches(6), 9)
    assert_same(rest, expected[6:])


@pytest.mark.parametrize("keep", ["none", "device"])
def test_all_repeats_of_a_bad_image_are_replaced_by_the_same(keep):
    """Two views that SimCLR takes for one image are of one."""
    source = Numbered(bad={3, 9, 15, 21})
    twice = Order(source, 6, SEED, repeats=2)
    training = stream(source, keep=keep, batch_size=6, order=twice)
    for batch in taken(training.batches(), 12):
        numbers = order([batch])
        assert numbers[:3] == numbers[3:]
    assert len(training.bad.reasons) == 4


def test_the_replacement_brings_its_own_label():
    for batch in taken(stream(Numbered(bad={3, 9})).batches(), 10):
        assert batch.labels.tolist() == [number % 3 for number in order([batch])]


def test_the_replacements_of_one_image_are_not_always_the_same_image():
    numbers = order(taken(stream().batches(), 60))
    replaced = order(taken(stream(Numbered(bad={3})).batches(), 60))
    others = [new for old, new in zip(numbers, replaced, strict=True) if old == 3]
    assert len(set(others)) > 3


@pytest.mark.parametrize("threads", [0, 2])
def test_more_bad_images_than_ten_are_an_error_that_names_some(threads):
    training = stream(Numbered(40, bad=range(11)), threads=threads)
    with pytest.raises(DataError, match=r"11 images cannot be used.*10 tolerated: image \d+: brok"):
        taken(training.batches(), 100)


def test_ten_bad_images_are_tolerated_and_a_thousandth_of_a_large_source():
    training = stream(Numbered(40, bad=range(10)))
    assert len(taken(training.batches(), 40)) == 40
    assert len(training.bad.reasons) == 10
    assert stream(Numbered(10_999)).bad.limit == 10
    assert stream(Numbered(25_000)).bad.limit == 25


def test_a_small_source_of_nothing_but_bad_images_is_an_error_too():
    with pytest.raises(DataError, match="images in a row cannot be used"):
        taken(stream(Numbered(5, bad=range(5))).batches(), 1)


# Evaluation


@pytest.mark.parametrize("threads", THREADS)
def test_evaluation_gives_every_image_once_in_order_with_a_partial_last_batch(threads):
    batches = list(evaluation_batches(Numbered(), Preprocessing.direct((8, 8)), BATCH, threads))
    assert [len(batch.labels) for batch in batches] == [5, 5, 5, 5, 3]
    images = torch.cat([batch.images for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    assert images.dtype == torch.float32
    numbers = ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert numbers == list(range(IMAGES))
    assert labels.tolist() == [number % 3 for number in range(IMAGES)]


def test_evaluation_applies_the_preprocessing():
    source, preprocessing = Numbered(), Preprocessing.small_crop((4, 4), 6)
    (batch,) = evaluation_batches(source, preprocessing, batch_size=100)
    expected = torch.stack([preprocessing(source.image(index)) for index in range(IMAGES)])
    assert torch.equal(batch.images, expected)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("error", [ImageError, OSError])
def test_a_bad_image_while_evaluating_is_an_error_that_names_it(threads, error):
    source = Numbered(bad={17}, error=error)
    with pytest.raises(DataError, match="image 17: broken"):
        list(evaluation_batches(source, Preprocessing.direct((8, 8)), BATCH, threads))


# Threads


def evaluation(source: ArraySource) -> Generator[Batch, None, None]:
    return evaluation_batches(source, Preprocessing.direct((8, 8)), BATCH, threads=4)


def closed_early(source: ArraySource) -> None:
    batches = stream(source, threads=4).batches()
    next(batches)
    assert threading.active_count() > 1
    batches.close()


def read_to_the_end(source: ArraySource) -> None:
    assert len(list(evaluation(source))) == 5


def failing(source: ArraySource) -> None:
    source.bad = {20}
    with pytest.raises(DataError):
        list(evaluation(source))


def never_started(source: ArraySource) -> None:
    stream(source).batches().close()


@pytest.mark.parametrize("use", [closed_early, read_to_the_end, failing, never_started])
def test_no_thread_is_left_behind(use: Callable[[ArraySource], None]):
    before = threading.active_count()
    use(Numbered())
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before
