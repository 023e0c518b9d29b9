"""Orders without a permutation: each image once, a pure function, at any length."""

import resource

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitkit.data.order import shards_around, shuffled, windowed

lengths = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 1000, 4097])
def test_shuffled_is_a_permutation(length):
    assert sorted(shuffled(np.arange(length), length, key=5).tolist()) == list(range(length))


def test_shuffling_a_hundred_million_costs_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for first in range(0, 10**8, 10**7):
        found = shuffled(np.arange(first, first + 1000), 10**8, key=first)
        assert len(set(found.tolist())) == 1000
        assert 0 <= found.min() <= found.max() < 10**8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 5_000  # kB


@given(lengths, st.integers(1, 15), st.integers(0, 2**64))
def test_windowed_is_a_permutation(lengths, at_once, key):
    found = windowed(np.arange(sum(lengths)), lengths, at_once, key)
    assert sorted(found.tolist()) == list(range(sum(lengths)))


@given(lengths, st.integers(1, 15), st.integers(0, 2**64), st.data())
def test_windowed_is_a_pure_function_of_each_place(lengths, at_once, key, data):
    places = np.array(data.draw(st.lists(st.integers(0, sum(lengths) - 1), min_size=1)))
    whole = windowed(np.arange(sum(lengths)), lengths, at_once, key)
    assert (windowed(places, lengths, at_once, key) == whole[places]).all()


@given(lengths, st.integers(1, 15), st.integers(0, 2**64))
def test_each_place_is_read_from_the_shards_around_it(lengths, at_once, key):
    found = windowed(np.arange(sum(lengths)), lengths, at_once, key)
    shards = np.searchsorted(np.cumsum(lengths), found, side="right")
    for place, shard in enumerate(shards.tolist()):
        near = shards_around(place, lengths, at_once, key)
        assert shard in near[:at_once]
        assert len(near) <= 2 * at_once


def test_neighbours_come_from_few_shards_and_the_next_are_known():
    lengths = [100] * 64
    found = windowed(np.arange(6400), lengths, 8, key=3) // 100
    windows = found.reshape(8, 800)
    assert [len(set(window)) for window in windows.tolist()] == [8] * 8
    for number in range(7):
        near = shards_around(number * 800 + 400, lengths, 8, key=3)
        assert set(near) == set(windows[number].tolist()) | set(windows[number + 1].tolist())
    assert set(shards_around(6399, lengths, 8, key=3)) == set(windows[7].tolist())
    assert len({tuple(sorted(set(window))) for window in windows.tolist()}) == 8


def test_images_of_a_window_are_mixed_and_keys_differ():
    lengths = [1000] * 8
    one = windowed(np.arange(8000), lengths, 8, key=1)
    other = windowed(np.arange(8000), lengths, 8, key=2)
    assert (one != other).mean() > 0.99
    assert abs(np.corrcoef(np.arange(8000), one)[0, 1]) < 0.05
    assert np.bincount(one[:800] // 1000, minlength=8).min() > 60  # every shard has its share


def test_windowed_reaches_ten_thousand_shards_quickly():
    found = windowed(np.arange(256), [10_000] * 10_000, 8, key=1)
    assert len(set(found.tolist())) == 256
