"""Which classes are taken for which."""

import numpy as np

from vitkit.evaluation.confusions import MOST_CLASSES, OTHERS, confusion, most_frequent

LABELS = np.array([2, 2, 2, 0, 0, 5])  # of the net, which has 6 classes
TAKEN = np.array([2, 0, 0, 0, 4, 5])


def test_rows_are_true_classes_of_the_data_and_columns_what_they_were_taken_for():
    found = confusion(LABELS, np.array([2, 0, 0, 0, 5, 5]), np.array([5, 2, 0]), ["a", "b", "c"])
    assert found.class_names == ("a", "b", "c")
    assert found.counts.tolist() == [[1, 0, 0], [0, 1, 2], [1, 0, 1]]


def test_classes_that_the_data_lack_are_counted_in_a_column_of_their_own():
    found = confusion(LABELS, TAKEN, np.array([5, 2, 0]), ["a", "b", "c"])
    assert found.class_names == ("a", "b", "c", OTHERS)
    assert found.counts.tolist() == [[1, 0, 0, 0], [0, 1, 2, 0], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_of_very_many_classes_there_is_no_matrix():
    number = np.arange(MOST_CLASSES + 1)
    assert confusion(number, number, number, [str(n) for n in number]) is None
    assert confusion(number[:-1], number[:-1], number[:-1], [str(n) for n in number[:-1]])


def test_the_table_tells_the_most_frequent_confusions_first():
    table = most_frequent(LABELS, TAKEN, ["c", "1", "b", "3", "4", "a"])
    assert table.rows == (("b", "c", "2", "66.7%"), ("c", "4", "1", "50.0%"))
    assert most_frequent(LABELS, LABELS, ["c"] * 6) is None
