"""Decoded images kept in files: read back, shared, and never believed without their checksum."""

import os
import shutil
import threading

import numpy as np
import pytest
import torch

from vitkit.data.checks import DataError
from vitkit.data.kept import KeptOnDisk, shrunk
from vitkit.data.source import ArraySource


class Counting(ArraySource):
    """Images of several sizes, with a count of how often each was decoded."""

    def __init__(self, images: int = 20) -> None:
        super().__init__(np.zeros((images, 1, 1), np.uint8), np.arange(images) % 2, ["a", "b"])
        random = np.random.default_rng(0)
        self.sizes = [(10 + number, 30 - number) for number in range(images)]
        self.pictures = [
            torch.from_numpy(random.integers(0, 256, (3, *size), np.uint8)) for size in self.sizes
        ]
        self.decoded = np.zeros(images, int)

    def image(self, index: int) -> torch.Tensor:
        self.decoded[index] += 1
        return self.pictures[index]


def kept(folder, source, side=100, limit=10**9) -> KeptOnDisk:
    return KeptOnDisk(folder, len(source), side, limit)


def assert_all_right(cache: KeptOnDisk, source: Counting, side: int = 100) -> None:
    for index in range(len(source)):
        assert torch.equal(cache.image(source, index), shrunk(source.pictures[index], side))


def test_an_image_is_decoded_once_and_comes_back_bit_for_bit(tmp_path):
    source = Counting()
    cache = kept(tmp_path, source)
    for _ in range(3):
        assert_all_right(cache, source)
    assert (source.decoded == 1).all()


def test_a_later_run_reads_what_an_earlier_one_kept(tmp_path):
    source = Counting()
    assert_all_right(kept(tmp_path, source), source)
    assert_all_right(kept(tmp_path, source), source)
    assert (source.decoded == 1).all()


def test_two_at_once_share_the_folder_and_see_what_the_other_wrote(tmp_path):
    source = Counting()
    one, other = kept(tmp_path, source), kept(tmp_path, source)
    for index in range(10):
        one.image(source, index)
    for index in range(10, 20):
        other.image(source, index)
    assert_all_right(one, source)
    assert_all_right(other, source)
    assert (source.decoded == 1).all()


def test_many_threads_may_read_and_write_at_once(tmp_path):
    source, wrong = Counting(), []
    cache = kept(tmp_path, source)

    def read(seed: int) -> None:
        for index in np.random.default_rng(seed).integers(0, 20, 300).tolist():
            if not torch.equal(cache.image(source, index), source.pictures[index]):
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_images_are_shrunk_to_the_side_and_smaller_ones_stay_as_they_are(tmp_path):
    source = Counting()
    cache = kept(tmp_path, source, side=12)
    assert_all_right(cache, source, side=12)
    assert_all_right(kept(tmp_path, source, side=12), source, side=12)
    for index, (height, width) in enumerate(source.sizes):
        found = cache.image(source, index).shape[1:]
        assert min(found) == min(12, height, width)
        assert found[0] / found[1] == pytest.approx(height / width, rel=0.1)


def test_what_does_not_fit_is_decoded_each_time_and_is_the_same(tmp_path):
    source = Counting()
    cache = kept(tmp_path, source, limit=3000)
    for _ in range(2):
        assert_all_right(cache, source)
    assert sum(file.stat().st_size for file in tmp_path.glob("*.pixels")) <= 3000
    assert set(source.decoded.tolist()) == {1, 2}


@pytest.mark.parametrize("write", [lambda *_: 5, OSError(28, "No space left on device")])
def test_a_full_disk_ends_the_keeping_and_not_the_run(tmp_path, monkeypatch, write):
    def failing(*given):
        if isinstance(write, OSError):
            raise write
        return write(*given)

    source = Counting()
    cache = kept(tmp_path, source)
    monkeypatch.setattr(os, "pwrite", failing)
    for _ in range(2):
        assert_all_right(cache, source)
    assert cache.full


@pytest.mark.parametrize("damage", ["flipped", "truncated", "removed", "row"])
def test_damaged_files_are_not_believed(tmp_path, damage):
    source = Counting()
    assert_all_right(kept(tmp_path, source), source)
    (file,) = tmp_path.glob("*.pixels")
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[100] ^= 1
        file.write_bytes(data)
    elif damage == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "removed":
        file.unlink()
    else:
        rows = np.load(tmp_path / "where.npy", mmap_mode="r+")
        rows[3, 1] += 3
        rows[4] = [1, -5, 2**62, 9]
        rows[5, 0] = 77
        rows.flush()
    assert_all_right(kept(tmp_path, source), source)
    assert source.decoded.max() == 2


def test_a_folder_of_other_images_is_refused(tmp_path):
    kept(tmp_path, Counting(20))
    with pytest.raises(DataError, match=r"where\.npy: does not belong to these images; remove"):
        kept(tmp_path, Counting(21))


def test_a_folder_that_was_removed_and_made_anew_gives_no_other_images(tmp_path):
    source, other = Counting(), Counting()
    other.pictures = [255 - picture for picture in other.pictures]
    running = kept(tmp_path / "kept", source)
    assert_all_right(running, source)
    shutil.rmtree(tmp_path / "kept")
    assert_all_right(kept(tmp_path / "kept", other), other)
    assert_all_right(running, source)


def test_what_others_write_to_a_row_later_does_not_change_what_was_verified(tmp_path):
    source = Counting()
    running = kept(tmp_path, source)
    assert_all_right(running, source)
    running.where[3, 1:] = running.where[7, 1:]  # another process, half done
    assert_all_right(running, source)


@pytest.mark.parametrize("content", [b"", b"junk"])
def test_a_folder_that_cannot_be_used_is_named_with_what_to_do(tmp_path, content):
    (tmp_path / "where.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be kept there .* VITKIT_CACHE, or give --data.k"):
        kept(tmp_path, Counting())
