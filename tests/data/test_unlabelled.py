"""Unlabelled images: which are found, that no label has a part in them, and guessed labels."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitkit.data.checks import DataError
from vitkit.data.crops import RandomCrop
from vitkit.data.kept import KeptOnDevice
from vitkit.data.opening import digits, open_data
from vitkit.data.overlap import in_common
from vitkit.data.pipeline import TrainingStream
from vitkit.data.source import ArraySource, Concatenated, Splits, Subset, Without
from vitkit.data.unlabelled import PseudoLabelled, open_unlabelled


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
    with pytest.raises(DataError, match=r"no such|no data|no image"):
        open_unlabelled(word and tmp_path / word)


@pytest.mark.parametrize("file", [None, "notes.txt"])
def test_a_folder_without_images_is_not_asked_for_labels(tmp_path, file):
    if file:
        (tmp_path / file).write_text("no image")
    with pytest.raises(DataError, match=r"no image in it, but (nothing|notes.txt); give a") as said:
        open_unlabelled(tmp_path)
    assert len(str(said.value).splitlines()) == 1 and "class" not in str(said.value)


def test_it_stays_an_error_for_labelled_data_that_no_class_is_known_of(tmp_path):
    with pytest.raises(DataError):
        open_data(write_images(tmp_path, "1.png"))


# Pseudo-labels


SHARES = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], np.float32)


def grey(*values, labels=None):
    """Images of one value each, of classes a, b, c."""
    pixels = np.array(values, np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    return ArraySource(pixels, [0] * len(values) if labels is None else labels, ["a", "b", "c"])


def both():
    """Two labelled images, then two with shares."""
    pseudo = PseudoLabelled(open_unlabelled(grey(3, 4)), SHARES, ["a", "b", "c"])
    return Concatenated([grey(1, 2, labels=[1, 2]), pseudo], ["labelled", "unlabelled"])


def test_the_label_is_the_largest_share_and_the_target_is_all_of_them():
    source = PseudoLabelled(open_unlabelled(grey(3, 4)), SHARES, ["a", "b", "c"])
    assert source.labels.tolist() == [0, 2]
    assert source.target(1).tolist() == SHARES[1].tolist()
    hard = PseudoLabelled(open_unlabelled(grey(3, 4)), np.array([2, 1]), ["a", "b", "c"])
    assert hard.labels.tolist() == [2, 1] and hard.target(0) == 2 and not hard.soft_targets


def test_labels_beside_shares_are_whole_ones():
    source = both()
    targets = [np.asarray(source.target(index)).tolist() for index in range(4)]
    assert targets == [[0, 1, 0], [0, 0, 1], *SHARES.tolist()]
    assert source.labels.tolist() == [1, 2, 0, 2]


def test_parts_of_it_keep_the_shares():
    some = Subset(both(), [3, 3, 0])
    assert np.stack([some.target(i) for i in range(3)]).tolist() == [
        SHARES[1].tolist(), SHARES[1].tolist(), [0, 1, 0]
    ]  # fmt: skip
    fewer = Without(both(), [2])
    assert np.asarray(fewer.target(2)).tolist() == SHARES[1].tolist() and fewer.soft_targets


@pytest.mark.parametrize("on_device", [False, True])
def test_a_batch_holds_labels_and_shares_together(on_device):
    source = both()
    crop = RandomCrop((4, 4), (1.0, 1.0), flip=False)
    kept = KeptOnDevice((4, 4), torch.device("cpu")) if on_device else None
    batch = next(TrainingStream(source, crop, 4, seed=0, kept=kept).batches())
    assert batch.labels.dtype == torch.float32
    expected = dict(zip((1, 2, 3, 4), [[0, 1, 0], [0, 0, 1], *SHARES.tolist()], strict=True))
    for image, target in zip(batch.images, batch.labels, strict=True):
        assert target.tolist() == expected[int(image[0, 0, 0])]


def test_its_fingerprint_follows_every_share():
    images = open_unlabelled(grey(3, 4))
    changed = SHARES + np.array([[1e-7, 0, 0], [0, 0, 0]], np.float32)
    prints = {PseudoLabelled(images, s, ["a", "b", "c"]).fingerprint() for s in (SHARES, changed)}
    assert len(prints) == 2


def test_targets_that_do_not_fit_the_images_are_refused():
    with pytest.raises(DataError, match=r"shape \(2, 3\) were given for 3 images of 3 classes"):
        PseudoLabelled(grey(1, 2, 3), SHARES, ["a", "b", "c"])


# Images in common


def test_the_same_files_are_found_whatever_they_are_called(tmp_path):
    one = open_unlabelled(write_images(tmp_path / "one", "a.png", "b.png", "c.png"))
    write_images(tmp_path / "other", "x/1.png", "y/2.png")
    (tmp_path / "other" / "y" / "3.png").write_bytes((tmp_path / "one" / "a.png").read_bytes())
    (tmp_path / "other" / "y" / "2.png").unlink()
    other = open_data(tmp_path / "other").train
    found = in_common(one, [other])
    assert {one.key(i): other.key(there) for i, there in found[0].items()} in (
        {"a.png": "x/1.png"}, {"a.png": "y/3.png"}
    )  # fmt: skip


def test_of_images_that_are_no_files_the_pixels_are_compared(tmp_path):
    files = open_unlabelled(write_images(tmp_path, "a.png", "b.png"))
    assert in_common(files, [grey(2, 7), grey(9)]) == [{1: 0}, {}]


def test_images_that_cannot_be_read_are_like_no_other(tmp_path):
    one = open_unlabelled(write_images(tmp_path / "one", "a.png", "b.png"))
    other = open_unlabelled(write_images(tmp_path / "other", "a.png", "b.png"))
    for name in ("one", "other"):
        (tmp_path / name / "a.png").unlink()
    assert in_common(one, [other]) == [{1: 1}]
