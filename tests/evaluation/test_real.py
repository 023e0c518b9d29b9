"""ReaL labels: the file, and when a prediction is right."""

import json

import numpy as np
import pytest

from vitkit.data.checks import DataError
from vitkit.evaluation.real import read_real, right_by_real


def test_a_prediction_is_right_if_it_is_among_the_labels_and_images_without_any_do_not_count():
    listed = [[3], [3, 7], [3, 7], [], [0], [2]]
    right = right_by_real(np.array([3, 7, 8, 3, -1, 2]), listed)
    np.testing.assert_array_equal(right, [1, 1, 0, np.nan, 0, 1])


def test_the_published_form_is_read(tmp_path):
    file = tmp_path / "real.json"
    file.write_text(json.dumps([[], [970, 795], [999]]))
    assert read_real(file) == [[], [970, 795], [999]]


@pytest.mark.parametrize(
    "text, why",
    [
        ("not json", "holds no JSON"),
        ("{}", "no list of lists"),
        ("[]", "no list of lists"),
        ("[[1], 2]", "entry 1 is 2"),
        ("[[1], [1000]]", r"entry 1 is \[1000\]"),
        ("[[1], [-1]]", r"entry 1 is \[-1\]"),
        ('[[1], ["tench"]]', "entry 1 is"),
        ("[[1], [true]]", "entry 1 is"),
        ("[[1], [1.0]]", "entry 1 is"),
    ],
)
def test_any_other_file_is_refused_with_its_first_wrong_entry(tmp_path, text, why):
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(DataError, match=why) as caught:
        read_real(file)
    assert "reassessed-imagenet" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: the file cannot be read"):
        read_real(tmp_path / "none.json")
