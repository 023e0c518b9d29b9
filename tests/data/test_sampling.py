"""Which image comes at which place: epochs, repeats, mixtures, balance, shares of processes."""

import itertools

import numpy as np
import pytest

from vitkit.data.checks import DataError
from vitkit.data.order import shuffled
from vitkit.data.sampling import MIXTURE, Order, places_of, shares_of
from vitkit.data.source import ArraySource, Concatenated, Without


def source(labels, classes: int = 3) -> ArraySource:
    labels = np.asarray(labels)
    names = [f"class {number}" for number in range(classes)]
    return ArraySource(np.zeros((len(labels), 1, 1), np.uint8), labels, names)


def places(number: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + number)


# A shuffle without a permutation


@pytest.mark.parametrize("length", [1, 2, 3, 5, 23, 64, 65, 1000, 4097])
def test_every_image_is_sent_to_a_place_of_its_own(length):
    for key in (0, 1, 2**64 + 5):
        assert sorted(shuffled(places(length), length, key)) == list(range(length))


def test_a_hundred_million_are_shuffled_without_memory():
    some = shuffled(np.array([0, 1, 99_999_999]), 100_000_000, 7)
    assert len(set(some.tolist())) == 3
    assert (some >= 0).all() and (some < 100_000_000).all()


def test_each_key_gives_another_order_and_neighbours_do_not_stay_together():
    orders = [shuffled(places(50_000), 50_000, key) for key in range(20)]
    for first, second in itertools.pairwise(orders):
        assert (first == second).mean() < 0.001
    for order in orders:
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
        assert abs(np.corrcoef(order, places(50_000))[0, 1]) < 0.02


def test_all_orders_of_a_few_images_are_about_equally_likely():
    counts = np.unique([shuffled(places(4), 4, key) for key in range(4800)], axis=0,
                       return_counts=True)[1]  # fmt: skip
    assert len(counts) == 24
    assert (np.abs(counts - 200) < 60).all()


# Epochs


def test_an_epoch_holds_every_image_once_in_an_order_of_its_own():
    order = Order(source(np.arange(30) % 3), 5, seed=1)
    epochs = order(places(120)).reshape(4, 30)
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_second_epoch_of_a_seed_is_not_the_first_of_the_next_seed():
    data = source(np.arange(30) % 3)
    assert (Order(data, 5, 0)(places(30, 30)) != Order(data, 5, 1)(places(30))).any()


@pytest.mark.parametrize("options", [{}, {"repeats": 5}, {"balance": 0.5}, {"weights": (1.0, 3.0)}])
def test_any_places_can_be_asked_for_in_any_order(options):
    data = Concatenated([source(np.arange(40) % 3), source(np.arange(17) % 3)])
    order = Order(data, 10, seed=3, **options)
    whole = order(places(30_000))
    some = np.random.default_rng(0).permutation(30_000)[:500]
    assert (order(some) == whole[some]).all()
    assert (whole >= 0).all() and (whole < 57).all()


# Repeats


def test_repeated_augmentation_brings_each_image_so_often_within_a_batch():
    order = Order(source(np.arange(60) % 3), 12, seed=1, repeats=3)
    batches = order(places(60 * 3)).reshape(-1, 12)
    for batch in batches:
        _, counts = np.unique(batch, return_counts=True)
        assert (counts == 3).all()
    assert sorted(batches[:, :4].ravel()) == list(range(60))  # an epoch takes three times as long


def test_an_image_is_never_beside_its_own_repetition_with_which_it_would_be_mixed():
    order = Order(source(np.arange(60) % 3), 12, seed=1, repeats=3)
    pairs = order(places(600)).reshape(-1, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()


def test_repeats_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(DataError, match=r"comes 5 times .* the batch size 12; change"):
        Order(source([0, 1]), 12, seed=0, repeats=5)


# Mixtures


def test_a_mixture_has_the_shares_asked_for_whatever_the_numbers_of_images():
    parts = [source(np.arange(1000) % 3), source(np.arange(10) % 3), source(np.arange(90) % 3)]
    order = Order(Concatenated(parts), 10, seed=2, weights=(0.2, 0.5, 0.3))
    found = order(places(MIXTURE))
    counts = [((start <= found) & (found < end)).sum()
              for start, end in [(0, 1000), (1000, 1010), (1010, 1100)]]  # fmt: skip
    assert counts == [2000, 5000, 3000]
    window = found[:500]  # also in a short stretch of the stream
    assert abs(((window >= 1000) & (window < 1010)).mean() - 0.5) < 0.08


def test_within_a_part_of_a_mixture_all_images_come_equally_often():
    parts = [source(np.arange(100) % 3), source(np.arange(10) % 3)]
    order = Order(Concatenated(parts), 10, seed=2, weights=(1.0, 1.0))
    for block in order(places(3 * MIXTURE)).reshape(3, MIXTURE):
        assert np.bincount(block).tolist() == [50] * 100 + [500] * 10


def test_images_left_out_of_a_part_do_not_come():
    parts = [source(np.arange(100) % 3), source(np.arange(10) % 3)]
    fewer = Without(Concatenated(parts), [3, 50, 101, 109])
    assert fewer.part_lengths == [98, 8]
    found = Order(fewer, 10, seed=2, weights=(1.0, 1.0))(places(MIXTURE))
    assert (found >= 98).sum() == MIXTURE / 2
    assert set(found.tolist()) == set(range(106))


def test_a_weight_is_needed_for_each_part():
    parts = Concatenated([source([0, 1]), source([0, 1])])
    with pytest.raises(DataError, match="names 3 shares for 2 DATA; give one for each"):
        Order(parts, 10, seed=0, weights=(1.0, 2.0, 3.0))


def test_shares_are_whole_numbers_that_sum_to_the_total():
    assert shares_of(10, (1, 1, 1)) in ([4, 3, 3], [3, 4, 3], [3, 3, 4])
    assert shares_of(10, (1e-9, 1)) == [1, 9]
    assert sum(shares_of(MIXTURE, (0.123, 0.456, 7.89))) == MIXTURE


# Shards


def in_shards(number: int, length: int) -> ArraySource:
    data = source(np.arange(number) % 3)
    data.shard_lengths, data.shards_at_once = [length] * (number // length), 2
    return data


def test_each_part_of_a_mixture_reads_its_own_shards_some_at_once():
    parts = Concatenated([in_shards(50_000, 500), in_shards(50_000, 500)])
    found = Order(parts, 10, seed=2, weights=(1.0, 1.0))(places(MIXTURE))
    assert len(set(found.tolist())) == MIXTURE  # half an epoch at most of each: none twice
    assert len(set((found // 500).tolist())) <= 2 * 12  # of 200 shards


def test_what_is_at_hand_comes_evenly_among_shards_from_afar():
    parts = Concatenated([source(np.arange(1000) % 3), in_shards(1000, 10)])
    found = Order(parts, 100, seed=2)(places(2000))
    assert sorted(found) == list(range(2000))
    local = (found.reshape(10, 200) < 1000).mean(axis=1)
    assert local.min() > 0.2 and local.max() < 0.8


def test_balance_needs_images_at_hand():
    with pytest.raises(DataError, match="one shard or row group after another; leave it"):
        Order(in_shards(30, 10), 10, seed=0, balance=1.0)


# Balance


@pytest.mark.parametrize(
    ("balance", "expected"), [(1.0, [1 / 3, 1 / 3, 1 / 3]), (0.5, [0.639, 0.286, 0.0753])]
)
def test_rare_classes_come_more_often_where_they_are_balanced(balance, expected):
    labels = np.repeat([0, 1, 2], [720, 144, 10])
    found = labels[Order(source(labels), 10, seed=5, balance=balance)(places(60_000))]
    assert np.abs(np.bincount(found) / 60_000 - expected).max() < 0.01


def test_within_a_class_all_images_come_equally_often():
    labels = np.repeat([0, 1], [50, 5])
    found = Order(source(labels, 2), 10, seed=5, balance=1.0)(places(50_000))
    counts = np.bincount(found, minlength=55)
    assert (np.abs(counts[:50] / 500 - 1) < 0.2).all()
    assert (np.abs(counts[50:] / 5000 - 1) < 0.06).all()


def test_balance_and_weights_exclude_each_other():
    with pytest.raises(DataError, match="exclude each other"):
        Order(source([0, 1]), 10, seed=0, weights=(1.0,), balance=1.0)


# Shares of processes


@pytest.mark.parametrize(("size", "ranks"), [(12, 1), (12, 2), (12, 3), (12, 4), (12, 12), (15, 3)])
def test_processes_divide_a_batch_among_them(size, ranks):
    shares = [places_of(7, size, rank, ranks) for rank in range(ranks)]
    assert sorted(np.concatenate(shares)) == list(range(84 * size // 12, 84 * size // 12 + size))
    assert len({len(share) for share in shares}) == 1
