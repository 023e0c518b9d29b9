"""The classes of data and net are matched by name, however each of them writes it."""

import pytest

from vitkit.data.checks import DataError
from vitkit.errors import UsageError
from vitkit.workflows.protocols.classes import class_numbers

IMAGENET = ["tench, Tinca tinca", "great white shark, white shark, man-eater", "hammerhead, shark"]


@pytest.mark.parametrize(
    ("known", "given", "expected"),
    [
        (["cat", "dog"], ["dog", "cat"], [1, 0]),
        (["cat", "Cat"], ["Cat"], [1]),  # as it is written, before all else
        (["Golden Retriever", "cat"], ["cat", "golden_retriever"], [1, 0]),
        (["golden_retriever"], ["GoldenRetriever"], [0]),
        (IMAGENET, ["Tench", "white_shark", "hammerhead"], [0, 1, 2]),
        (["white shark", "tench"], ["tench, Tinca tinca", "great shark, white shark"], [1, 0]),
        (["a", "a"], ["a", "a"], [0, 1]),  # the very same list
    ],
)  # fmt: skip
def test_names_are_matched(known, given, expected):
    assert class_numbers(known, given, "data").tolist() == expected


def test_a_name_of_two_classes_of_the_net_is_refused_and_both_are_named():
    with pytest.raises(DataError, match=r"more than one class for crane \(Crane, CRANE\)"):
        class_numbers(["Crane", "CRANE", "cat"], ["crane", "cat"], "data")
    with pytest.raises(DataError, match=r"more than one class for seal"):
        class_numbers(["sea lion, seal", "seal, stamp"], ["seal"], "data")


def test_two_names_of_one_class_of_the_net_are_refused():
    with pytest.raises(DataError, match="tench, Tinca tinca are the same ones to the net"):
        class_numbers(IMAGENET, ["tench", "Tinca tinca"], "data")


def test_unknown_names_are_listed():
    with pytest.raises(DataError, match=r"does not know the classes bird, fish; it knows cat, dog"):
        class_numbers(["cat", "dog"], ["bird", "cat", "fish"], "data")


def test_a_net_without_a_head_knows_no_classes():
    with pytest.raises(UsageError, match="has no head"):
        class_numbers([], ["cat"], "data")
