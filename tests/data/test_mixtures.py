"""Subsets of a source by class, and lists of images that are left out."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from vitkit.data.checks import DataError
from vitkit.data.mixing import shares, stratified, subset, without_listed
from vitkit.data.source import ArraySource, Source, Subset, Without
from vitkit.errors import UsageError


def in_memory(labels, classes: int | None = None) -> ArraySource:
    labels = np.asarray(labels)
    names = [f"class {number}" for number in range(classes or labels.max() + 1)]
    return ArraySource(np.zeros((len(labels), 1, 1), np.uint8), labels, names, name="memory")


class Several(Source):
    """Images that may have several labels each."""

    def __init__(self, rows) -> None:
        self.labels = csr_array(np.asarray(rows, dtype=bool))
        self.class_names = [str(number) for number in range(self.labels.shape[1])]

    def encoded(self, index: int) -> bytes:
        return b""

    def key(self, index: int) -> str:
        return str(index)

    name = key

    def fingerprint(self) -> str:
        return ""


def chosen(part: Source) -> list[int]:
    assert isinstance(part, Subset)
    return part.indices.tolist()


# Subsets


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    large=st.lists(st.integers(100, 400), max_size=2), seed=st.integers(0, 9),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_every_class_has_its_share_to_within_one_and_larger_subsets_hold_smaller_ones(
    sizes, large, seed
):
    sizes = np.array(sizes + large)
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    before: set[int] = set()
    for count in np.linspace(1, len(labels), 30).astype(int):
        indices = stratified(labels, int(count), seed)
        assert len(indices) == count
        assert (np.diff(indices) > 0).all()
        have = np.bincount(labels[indices], minlength=len(sizes))
        assert (np.abs(have - sizes * count / len(labels)) < 1).all()
        assert before <= set(indices.tolist())
        before = set(indices.tolist())


@pytest.mark.parametrize("seed", range(4))
def test_one_large_class_beside_many_small_ones_has_its_share_too(seed):
    """Where classes of one image each come in at about the same time, it must not wait."""
    sizes = np.random.default_rng(seed).permutation([1] * 300 + [3] * 20 + [500])
    before = np.zeros(len(sizes))
    for count in range(1, sizes.sum() + 1, 7):
        given = np.array(shares(sizes, count))
        assert given.sum() == count
        assert (np.abs(given - sizes * count / sizes.sum()) < 1).all()
        assert (given >= before).all()
        before = given


def test_an_amount_above_one_is_a_number_of_images_and_else_a_share():
    source = in_memory(np.arange(200) % 4)
    assert len(subset(source, 50, 0)) == 50
    assert len(subset(source, 0.25, 0)) == 50
    assert chosen(subset(source, 50, 0)) == chosen(subset(source, 0.25, 0))
    assert subset(source, 1, 0) is source
    assert subset(source, 200, 0) is source


def test_a_subset_is_a_pure_function_of_labels_and_seed():
    source, same = in_memory(np.arange(200) % 4), in_memory(np.arange(200) % 4)
    assert chosen(subset(source, 40, 3)) == chosen(subset(same, 40, 3))
    assert chosen(subset(source, 40, 3)) != chosen(subset(source, 40, 4))


def test_which_images_of_a_class_are_chosen_is_a_matter_of_chance():
    hits = np.zeros(40)
    for seed in range(200):
        hits[chosen(subset(in_memory(np.arange(40) // 20), 0.5, seed))] += 1
    assert hits.min() > 60 and hits.max() < 140


def test_of_several_labels_the_rarest_counts_and_images_without_any_have_their_share():
    rows = [[1, 1]] * 10 + [[1, 0]] * 20 + [[0, 0]] * 10
    indices = np.array(chosen(subset(Several(rows), 20, 0)))
    assert [int((indices < 10).sum()), int((indices >= 30).sum())] == [5, 5]


@pytest.mark.parametrize("amount", [0, -3, 2.5, float("nan")])
def test_an_amount_that_cannot_be_is_an_error_of_the_words(amount):
    with pytest.raises(UsageError, match="cannot be; give a whole number of images"):
        subset(in_memory([0, 1]), amount, 0)


@pytest.mark.parametrize("amount", [3, 0.1])
def test_more_images_than_there_are_or_none_at_all_are_an_error(amount):
    with pytest.raises(DataError, match=r"of 2 images to train on; give 1 to 2 images"):
        subset(in_memory([0, 1]), amount, 0)


def test_a_million_images_of_a_thousand_classes_take_seconds():
    labels = np.random.default_rng(0).zipf(1.3, 1_000_000) % 1000
    began = time.perf_counter()
    indices = stratified(labels, 100_000, 0)
    assert time.perf_counter() - began < 5
    quota = np.bincount(labels, minlength=1000) / 10
    assert (np.abs(np.bincount(labels[indices], minlength=1000) - quota) < 1).all()


# Lists of images to leave out


def listed(tmp_path, text: str, name: str = "bad.txt"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def kept(source: Source) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def test_listed_images_are_left_out_by_their_keys(tmp_path):
    file = listed(tmp_path, "# found by a check\n1\n\n4\ttruncated file\n1\n")
    source = without_listed(in_memory([0, 1] * 3), [file])
    assert isinstance(source, Without)
    assert kept(source) == ["0", "2", "3", "5"]


def test_several_lists_are_left_out_together(tmp_path):
    files = [listed(tmp_path, "1\n", "a.txt"), listed(tmp_path, "2\r\n1\r\n", "b.txt")]
    assert kept(without_listed(in_memory([0, 1] * 2), files)) == ["0", "3"]


def test_no_lists_and_empty_lists_leave_a_source_as_it_is(tmp_path):
    source = in_memory([0, 1])
    assert without_listed(source, []) is source
    assert without_listed(source, [listed(tmp_path, "# nothing\n")]) is source


def test_a_key_may_begin_with_a_hash(tmp_path):
    class Odd(Several):
        def key(self, index: int) -> str:
            return f"#{index}.jpg"

    assert kept(without_listed(Odd([[1], [1]]), [listed(tmp_path, "#1.jpg\n")])) == ["#0.jpg"]


def test_a_list_for_other_data_is_an_error_that_shows_both_kinds_of_key(tmp_path):
    files = [listed(tmp_path, "1\n", "a.txt"), listed(tmp_path, "cat/1.jpg\n", "b.txt")]
    with pytest.raises(DataError, match=r"b\.txt: none of its 1 lines \(cat/1.jpg\) .* first is 0"):
        without_listed(in_memory([0, 1]), files)


def test_keys_that_are_no_images_are_counted_in_a_warning(tmp_path):
    with pytest.warns(UserWarning, match=r"1 of its 2 lines name no image to train on: x"):
        source = without_listed(in_memory([0, 1]), [listed(tmp_path, "x\n0\n")])
    assert kept(source) == ["1"]


def test_a_list_of_everything_is_an_error(tmp_path):
    with pytest.raises(DataError, match="leave out all 2 images"):
        without_listed(in_memory([0, 1]), [listed(tmp_path, "0\n1\n")])


def test_a_list_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no\.txt: not readable as a list of images: No such file"):
        without_listed(in_memory([0, 1]), [tmp_path / "no.txt"])
