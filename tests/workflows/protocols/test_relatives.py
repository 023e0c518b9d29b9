"""top-k of ImageNet's relatives: classes by any name, and logits among the classes of the set."""

import pytest
from reader import reader, write

import vitkit
from vitkit.data.checks import DataError
from vitkit.data.classes.imagenet import classes_of_set, imagenet_classes, objectnet_folders
from vitkit.errors import UsageError
from vitkit.workflows.evaluate import found

WNIDS = [known.wnid for known in imagenet_classes()]
WORDS = [known.names for known in imagenet_classes()]
OF_R = [number for (number,) in classes_of_set("imagenet-r")]  # 1, 2, 4, ...


def test_class_folders_called_by_wordnet_numbers_meet_a_net_that_says_english_names(tmp_path):
    write(tmp_path / WNIDS[5] / "a.png", predicted=5)
    write(tmp_path / WNIDS[700] / "b.png", predicted=700)
    write(tmp_path / WNIDS[700] / "c.png", predicted=3)
    metrics = vitkit.evaluate(reader(WORDS), tmp_path)["metrics"]
    assert metrics["top1"] == pytest.approx(2 / 3)


def test_and_the_other_way_round(tmp_path):
    for name, predicted in (("tench", 0), ("goldfish", 1), ("tiger_shark", 9)):
        write(tmp_path / name / "a.png", predicted)
    metrics = vitkit.evaluate(reader(WNIDS), tmp_path)["metrics"]
    assert metrics["top1"] == pytest.approx(2 / 3)


def test_a_first_word_that_is_anothers_second_is_told_apart_by_the_list_of_imagenet(tmp_path):
    """A bathtub is a tub too."""
    tub = WORDS.index("tub, vat")
    write(tmp_path / "tub" / "a.png", tub)
    write(tmp_path / "bathtub" / "a.png", 435)
    assert vitkit.evaluate(reader(WORDS), tmp_path)["metrics"]["top1"] == 1


def test_classes_that_are_no_imagenet_classes_are_still_refused(tmp_path):
    write(tmp_path / "tench" / "a.png", 0)
    write(tmp_path / "dragon" / "a.png", 0)
    with pytest.raises(DataError, match="does not know the classes dragon"):
        vitkit.evaluate(reader(WNIDS), tmp_path)


def test_imagenet_r_is_scored_among_its_200_classes_alone(tmp_path):
    """A tench is not among them, so the second choice counts."""
    write(tmp_path / WNIDS[1] / "a.png", predicted=0, second=1)
    write(tmp_path / WNIDS[1] / "b.png", predicted=2, second=1)
    write(tmp_path / WNIDS[OF_R[1]] / "c.png", predicted=OF_R[1])
    model = reader(WORDS)
    free = vitkit.evaluate(model, tmp_path)["metrics"]["top1"]
    _, restricted = found(model, tmp_path, "top-k", classes="imagenet-r")
    assert free == pytest.approx(1 / 3)
    assert restricted.metrics["top1"] == pytest.approx(2 / 3)
    assert restricted.class_recall == {WNIDS[1]: 0.5, WNIDS[2]: 1.0}
    assert any("best of its 200 classes" in note for note in restricted.notes)


def test_imagenet_v2_and_sketch_are_scored_among_all_thousand(tmp_path):
    write(tmp_path / "v2" / "10" / "a.png", predicted=10)
    write(tmp_path / "v2" / "2" / "b.png", predicted=0, second=2)
    write(tmp_path / "sketch" / WNIDS[10] / "a.png", predicted=10)
    write(tmp_path / "sketch" / WNIDS[2] / "b.png", predicted=0, second=2)
    for folder, title in (("v2", "imagenet-v2"), ("sketch", "imagenet-sketch")):
        result = vitkit.evaluate(reader(WORDS), tmp_path / folder, classes=title)
        assert result["metrics"]["top1"] == 0.5
        assert result["metrics"]["top5"] == 1.0


def test_objectnet_counts_any_of_the_mapped_classes_without_frame_and_other_folders(tmp_path):
    analog, digital = objectnet_folders()["alarm_clock"]
    (banana,) = objectnet_folders()["banana"]
    write(tmp_path / "alarm_clock" / "a.png", predicted=analog, border=2)
    write(tmp_path / "alarm_clock" / "b.png", predicted=digital, border=2)
    write(tmp_path / "alarm_clock" / "c.png", predicted=banana, border=2)
    write(tmp_path / "banana" / "d.png", predicted=banana, border=2)
    write(tmp_path / "air_freshener" / "e.png", predicted=banana, border=2)
    _, result = found(reader(WORDS), tmp_path, "top-k", classes="objectnet")
    assert result.metrics["top1"] == 0.75
    assert result.class_recall == {"alarm_clock": pytest.approx(2 / 3), "banana": 1.0}
    assert result.images == 4
    assert any("1 of 5 images are left out" in note for note in result.notes)


def test_a_net_that_lacks_classes_of_the_set_is_refused(tmp_path):
    write(tmp_path / WNIDS[1] / "a.png", 1)
    with pytest.raises(DataError, match="does not know 150 of ImageNet's classes"):
        vitkit.evaluate(reader([WNIDS[n] for n in OF_R[:50]]), tmp_path, classes="imagenet-r")


def test_data_that_looks_like_a_set_is_scored_as_it_is_and_the_option_named(tmp_path):
    for number in OF_R:
        write(tmp_path / WNIDS[number] / "a.png", number)
    _, result = found(reader(WORDS), tmp_path, "top-k")
    assert any("--classes imagenet-r" in note for note in result.notes)


def test_the_refusal_of_objectnet_names_the_option(tmp_path):
    for folder in objectnet_folders():
        write(tmp_path / folder / "a.png", 0)
    with pytest.raises(DataError, match="--classes objectnet"):
        vitkit.evaluate(reader(WORDS), tmp_path)


def test_a_set_that_is_not_known_is_an_error_with_the_nearest(tmp_path):
    write(tmp_path / WNIDS[1] / "a.png", 1)
    with pytest.raises(UsageError, match="did you mean 'imagenet-r'"):
        vitkit.evaluate(reader(WORDS), tmp_path, classes="imagenet-rr")
