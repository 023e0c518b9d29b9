"""--protocol real on a made-up validation set of 12 images."""

import json

import pytest
from reader import reader, write

import vitkit
from vitkit.data.checks import DataError
from vitkit.data.classes.imagenet import imagenet_classes
from vitkit.errors import UsageError
from vitkit.workflows.evaluate import found

NAMES = [known.names for known in imagenet_classes()][:10]  # a net of ten of the classes
WNIDS = [known.wnid for known in imagenet_classes()][:10]
# For image 1 and each that follows: what it was labelled, what the net says, its ReaL labels.
IMAGES = [
    (0, 0, [0]), (0, 1, [0, 1]), (0, 1, [0]), (1, 1, [1]), (1, 1, [2]), (1, 2, []),
    (2, 2, []), (2, 3, [3]), (3, 3, [3, 4]), (3, 9, [3]), (4, 4, [4]), (4, 4, [999]),
]  # fmt: skip
# Of the ten with labels right by ReaL: 1, 2, 4, 8, 9, 11; by their own label: 1, 4, 5, 9, 11, 12.


@pytest.fixture
def photos(tmp_path):
    for place, (label, predicted, _) in enumerate(IMAGES):
        write(tmp_path / "val" / WNIDS[label] / f"ILSVRC2012_val_{place + 1:08}.JPEG", predicted)
    (tmp_path / "real.json").write_text(json.dumps([labels for *_, labels in IMAGES]))
    return tmp_path


def test_accuracy_is_over_the_images_with_labels_and_plain_top1_over_the_same(photos):
    _, result = found(reader(NAMES), photos / "val", "real", real=str(photos / "real.json"))
    assert result.metrics == {"real": 0.6, "top1": 0.6, "top1_all": pytest.approx(7 / 12)}
    assert result.images == 10
    assert "2 of 12 images have no ReaL label" in result.notes[0]
    assert "10 of ImageNet's 1,000 classes" in result.notes[1]


def test_labels_go_by_the_number_in_the_name_whichever_images_are_there(photos):
    for place in (1, 5, 12):
        next((photos / "val").glob(f"*/ILSVRC2012_val_{place:08}.JPEG")).unlink()
    result = vitkit.evaluate(reader(NAMES), photos / "val", "real", real=photos / "real.json")
    assert result["metrics"]["real"] == pytest.approx(5 / 7)
    assert result["metrics"]["top1"] == pytest.approx(3 / 7)


def test_an_image_beyond_the_list_or_by_another_name_is_named(photos):
    (photos / "real.json").write_text(json.dumps([[0]] * 11))
    with pytest.raises(DataError, match=r"val_00000012\.JPEG: expected .* to .*00000011"):
        vitkit.evaluate(reader(NAMES), photos / "val", "real", real=photos / "real.json")
    write(photos / "val" / WNIDS[0] / "cat.JPEG", 0)
    with pytest.raises(DataError, match=r"cat\.JPEG: expected an image of ImageNet's validation"):
        vitkit.evaluate(reader(NAMES), photos / "val", "real", real=photos / "real.json")


def test_without_any_labelled_image_there_is_nothing_to_say(photos):
    (photos / "real.json").write_text(json.dumps([[]] * 12))
    with pytest.raises(DataError, match="none of the 12 images has a ReaL label"):
        vitkit.evaluate(reader(NAMES), photos / "val", "real", real=photos / "real.json")


def test_a_net_of_other_classes_is_refused(photos):
    other = reader([f"{wnid[1:]}" for wnid in WNIDS])
    with pytest.raises(DataError, match="does not know the classes"):
        vitkit.evaluate(other, photos / "val", "real", real=photos / "real.json")


def test_the_file_has_to_be_given(photos):
    with pytest.raises(UsageError, match="--real FILE"):
        vitkit.evaluate(reader(NAMES), photos / "val", "real")
