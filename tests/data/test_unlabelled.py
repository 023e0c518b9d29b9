"""Unlabelled images: which are found, that no label has a part in them, and guessed labels."""

import numpy as np
import pytest
from PIL import Image

from vitkit.data.checks import DataError
from vitkit.data.opening import digits, open_data
from vitkit.data.source import ArraySource, Splits
from vitkit.data.unlabelled import open_unlabelled


def write_images(root, *names):
    for number, name in enumerate(names, 1):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, number, number)).save(path)
    return root


def keys(source):
    return [source.key(index) for index in range(len(source))]


def test_a_folder_without_class_folders_gives_every_image_at_any_depth(tmp_path):
    root = write_images(tmp_path / "photos", "b.png", "a.png", "2019/c.png", "2019/may/d.png")
    (root / "notes.txt").write_text("no image")
    source = open_unlabelled(root)
    assert keys(source) == ["2019/c.png", "2019/may/d.png", "a.png", "b.png"]
    assert source.class_names == ["unlabelled"] and source.labels.tolist() == [0, 0, 0, 0]
    assert source.target(1) == 0 and int(source.image(2)[0, 0, 0]) == 2


def test_images_in_class_folders_and_beside_them_are_all_of_one_class(tmp_path):
    root = write_images(tmp_path, "cat/1.png", "dog/2.png", "3.png")
    source = open_unlabelled(str(root))
    assert keys(source) == ["3.png", "cat/1.png", "dog/2.png"]
    assert source.labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize("train", ["train/cat/1.png", "train/1.png"])
def test_of_a_folder_with_splits_the_training_images_are_taken(tmp_path, train):
    root = write_images(tmp_path, train, "val/cat/2.png", "test/cat/3.png")
    assert keys(open_unlabelled(root)) == [train]


def test_of_labelled_data_the_training_images_are_taken_and_no_label():
    opened = digits()
    source = open_unlabelled("digits")
    assert keys(source) == keys(opened.train) and not source.labels.any()
    assert (source.image(5) == opened.train.image(5)).all()
    assert not source.flip_keeps_class, "a mirrored digit is no such digit, labelled or not"
    table = ArraySource(
        np.zeros((2, 4, 4), np.uint8), np.array([[1, 1], [0, 1]]), ["a", "b"]
    )  # several labels each
    assert open_unlabelled(table).target(0) == 0
    assert open_unlabelled(Splits("data", table)).labels.tolist() == [0, 0]


def test_a_list_of_labels_names_the_images(tmp_path):
    root = write_images(tmp_path, "images/1.png", "images/2.png")
    (root / "labels.csv").write_text("image,label\nimages/2.png,cat\nimages/1.png,dog\n")
    assert keys(open_unlabelled(root / "labels.csv")) == ["images/2.png", "images/1.png"]


def test_several_data_become_one_source_with_keys_that_tell_them_apart(tmp_path):
    one = write_images(tmp_path / "one", "1.png")
    other = write_images(tmp_path / "other", "cat/1.png", "dog/2.png")
    source = open_unlabelled([one, other])
    assert keys(source) == ["one/1.png", "other/cat/1.png", "other/dog/2.png"]
    assert source.part_lengths == [1, 2]


def test_the_fingerprint_follows_the_images(tmp_path):
    root = write_images(tmp_path, "1.png", "2.png")
    before = open_unlabelled(root).fingerprint()
    assert open_unlabelled(root).fingerprint() == before
    write_images(root, "3.png")
    assert open_unlabelled(root).fingerprint() != before


@pytest.mark.parametrize("word", ["nowhere", "empty", []])
def test_where_there_is_no_image_a_sentence_says_so(tmp_path, word):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no such|no data|found"):
        open_unlabelled(word and tmp_path / word)


def test_it_stays_an_error_for_labelled_data_that_no_class_is_known_of(tmp_path):
    with pytest.raises(DataError):
        open_data(write_images(tmp_path, "1.png"))
