"""Features and logits on disk: what was put in comes out, and nothing else ever does."""

import os

import numpy as np
import pytest

from vitkit.prediction import feature_cache as cache

VALUES = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VITKIT_CACHE", str(tmp_path))
    return tmp_path / "features"


def the_file(folder):
    [path] = folder.iterdir()
    return path


def test_what_is_kept_comes_back_bit_for_bit():
    assert cache.find("key", 40, 6) is None
    cache.keep("key", VALUES)
    np.testing.assert_array_equal(cache.find("key", 40, 6), VALUES)
    assert cache.find("other", 40, 6) is None


def test_a_large_file_is_mapped_and_changing_the_numbers_does_not_change_it(folder, monkeypatch):
    monkeypatch.setattr(cache, "MAPPED_FROM", 0)
    cache.keep("key", VALUES)
    found = cache.find("key", 40, 6)
    assert isinstance(found, np.memmap)
    found[:] = 0
    np.testing.assert_array_equal(cache.find("key", 40, 6), VALUES)


def other_header(old, shape):
    return old.replace(b"(40, 6)", shape.encode())


DAMAGES = {
    "cut short": lambda data: data[:-5],
    "empty": lambda data: b"",
    "its header alone": lambda data: data[:128],
    "one bit turned": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "numbers of another shape": lambda data: other_header(data, "(6, 40)"),
    "a header that promises exabytes": lambda data: other_header(data, "(40, 9" + "0" * 17 + ")"),
    "a header that promises more than an integer holds": lambda data: other_header(
        data, "(40, 9" + "0" * 40 + ")"
    ),
    "a shape that is none": lambda data: other_header(data, "(40, -6)"),
    "objects": lambda data: data.replace(b"'<f4'", b"'|O' "),
    "another type": lambda data: data.replace(b"'<f4'", b"'<i4'"),
    "columns first": lambda data: data.replace(b"False", b"True "),
    "code in the header": lambda data: data.replace(b"(40, 6)", b"exit(1)"),
    "no array": lambda data: b"PK\x03\x04" + bytes(500),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_no_entry_and_is_removed(folder, damage):
    cache.keep("key", VALUES)
    path, good = the_file(folder), the_file(folder).read_bytes()
    path.write_bytes(DAMAGES[damage](good))
    assert path.read_bytes() != good
    assert cache.find("key", 40, 6) is None
    assert not path.exists()


def test_numbers_of_fewer_images_are_no_entry():
    cache.keep("key", VALUES)
    assert cache.find("key", 41, 6) is None


def test_numbers_of_another_width_are_no_entry_even_under_their_own_hash():
    cache.keep("key", VALUES)
    assert cache.find("key", 40, 5) is None
    cache.keep("key", VALUES)
    assert cache.find("key", 40, 6) is not None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_no_entry(value):
    cache.keep("key", np.full_like(VALUES, value))
    assert cache.find("key", 40, 6) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in folders")
def test_a_pipe_is_no_entry_and_is_not_waited_for(folder):
    cache.keep("key", VALUES)
    path = the_file(folder)
    path.unlink()
    os.mkfifo(path)
    assert cache.find("key", 40, 6) is None


def test_the_longest_unused_goes_when_there_is_no_more_room(monkeypatch):
    size = VALUES.nbytes + 128
    monkeypatch.setenv("VITKIT_CACHE_GB", str(2.5 * size / 1e9))
    cache.keep("a", VALUES)
    cache.keep("b", VALUES)
    for path in cache.folder().iterdir():
        os.utime(path, (1, 1))
    assert cache.find("a", 40, 6) is not None  # used now
    cache.keep("c", VALUES)
    assert [cache.find(key, 40, 6) is not None for key in "abc"] == [True, False, True]


def test_what_is_larger_than_the_room_is_not_kept_and_nothing_goes_for_it(monkeypatch):
    cache.keep("a", VALUES)
    monkeypatch.setenv("VITKIT_CACHE_GB", str(2 * VALUES.nbytes / 1e9))
    cache.keep("b", np.repeat(VALUES, 3, axis=0))
    assert cache.find("b", 120, 6) is None and cache.find("a", 40, 6) is not None


def test_a_folder_that_cannot_be_written_is_only_told(tmp_path):
    (tmp_path / "features").write_text("a file")
    with pytest.warns(UserWarning, match="could not be kept.*VITKIT_CACHE"):
        cache.keep("key", VALUES)
    assert cache.find("key", 40, 6) is None
