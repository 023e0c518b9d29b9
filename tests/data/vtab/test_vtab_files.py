"""Tasks of VTAB-1k whose images are files: their labels, and which are to train and test on."""

import pytest

from vitkit.data.checks import DataError
from vitkit.data.source import Source
from vitkit.data.vtab import files
from vitkit.data.vtab.pools import file_source
from vtab_sets import lists, write


def labels_of(source: Source | None) -> dict[str, str]:
    assert source is not None
    return {source.key(n): source.class_names[source.labels[n]] for n in range(len(source))}


def test_caltech_has_30_images_of_each_class_to_train_on_and_the_others_to_test_on(tmp_path):
    for name in ("BACKGROUND_Google", "accordion"):
        for number in range(33):
            write(tmp_path / f"101_ObjectCategories/{name}/image_{number:04}.jpg")
    pools = files.caltech101(tmp_path)
    train, test = labels_of(pools.train), labels_of(pools.test)
    assert sorted(train.values()) == ["BACKGROUND_Google"] * 30 + ["accordion"] * 30
    assert sorted(test.values()) == ["BACKGROUND_Google"] * 3 + ["accordion"] * 3
    assert not set(train) & set(test)
    assert not pools.same_test
    assert labels_of(files.caltech101(tmp_path).train) == train  # the draw is always the same


def test_dtd_is_divided_as_its_first_lists_say(tmp_path):
    for name, split in (("banded_0002", "train"), ("dotted_0001", "val"), ("dotted_0009", "test")):
        path = f"{name.split('_')[0]}/{name}.jpg"
        write(tmp_path / "images" / path)
        write(tmp_path / f"labels/{split}1.txt", path + "\n")
    pools = files.dtd(tmp_path)
    assert labels_of(pools.train) == {"banded/banded_0002.jpg": "banded"}
    assert labels_of(pools.val) == {"dotted/dotted_0001.jpg": "dotted"}
    assert labels_of(pools.test) == {"dotted/dotted_0009.jpg": "dotted"}
    assert pools.same_test
    assert pools.test.image(0).shape == (3, 8, 8)


def sun397(folder):
    for name in ("a/abbey", "c/church/outdoor"):
        for number in range(10):
            write(folder / f"SUN397/{name}/sun_{number}.jpg")
    write(folder / "SUN397" / files.SUN397_BROKEN)


def test_sun397_takes_the_classes_from_paths_and_leaves_the_broken_image_out(tmp_path):
    sun397(tmp_path)
    pools = files.sun397(tmp_path)
    assert [len(part) for part in (pools.train, pools.val or [], pools.test)] == [14, 2, 4]
    assert pools.train.class_names == ["a/abbey", "c/church/outdoor"]
    found = labels_of(pools.train) | labels_of(pools.val) | labels_of(pools.test)
    assert len(found) == 20
    assert all(path.rpartition("/")[0] == name for path, name in found.items())
    assert not pools.same_test


def test_sun397_with_the_published_lists_has_the_published_test_images(tmp_path):
    sun397(tmp_path)
    for split, number in (("tr", 1), ("va", 2), ("te", 3)):
        write(tmp_path / f"sun397_tfds_{split}.txt",
              f"/a/abbey/sun_{number}.jpg\n/c/church/outdoor/sun_{number}.jpg\n")  # fmt: skip
    pools = files.sun397(tmp_path)
    assert list(labels_of(pools.test)) == ["a/abbey/sun_3.jpg", "c/church/outdoor/sun_3.jpg"]
    assert pools.same_test


@pytest.mark.parametrize(
    ("reader", "folder"), [(files.eurosat, "2750"), (files.resisc45, "NWPU-RESISC45")]
)
def test_sets_without_splits_are_cut_60_20_20(tmp_path, reader, folder):
    for name in ("Forest", "River"):
        for number in range(10):
            write(tmp_path / f"{folder}/{name}/{name}_{number}.jpg")
    pools = reader(tmp_path)
    parts = [labels_of(part) for part in (pools.train, pools.val, pools.test)]
    assert [len(part) for part in parts] == [12, 4, 4]
    assert len(parts[0] | parts[1] | parts[2]) == 20
    assert not pools.same_test


def retinopathy(folder):
    for path in ("train/1_left", "train/1_right", "test/2_left", "test/3_left"):
        write(folder / f"{path}.jpeg")
    write(folder / "trainLabels.csv", "image,level\n1_left,0\n1_right,4\n")
    write(folder / "retinopathy_solution.csv",
          "image,level,Usage\n2_left,2,Private\n3_left,1,Public\n")  # fmt: skip


def test_retinopathy_is_tested_on_the_private_images_of_the_contest(tmp_path):
    retinopathy(tmp_path)
    pools = files.diabetic_retinopathy(tmp_path)
    assert labels_of(pools.train) == {
        "train/1_left.jpeg": "none", "train/1_right.jpeg": "proliferative",
    }  # fmt: skip
    assert labels_of(pools.val) == {"test/3_left.jpeg": "mild"}
    assert labels_of(pools.test) == {"test/2_left.jpeg": "moderate"}
    assert "btgraham-300" in pools.note


@pytest.mark.parametrize("text", ["image,level\n1_left,much\n", "a,b\nc,d\n", "image,level\nx\n"])
def test_a_table_of_another_kind_is_an_error_with_its_row(tmp_path, text):
    retinopathy(tmp_path)
    write(tmp_path / "trainLabels.csv", text)
    with pytest.raises(DataError, match=r"trainLabels\.csv: row 2"):
        files.diabetic_retinopathy(tmp_path)


def test_grades_are_0_to_4(tmp_path):
    retinopathy(tmp_path)
    write(tmp_path / "trainLabels.csv", "image,level\n1_left,5\n")
    with pytest.raises(DataError, match="0 to 4"):
        files.diabetic_retinopathy(tmp_path)


def test_a_test_split_is_required_of_the_sets_that_have_one(tmp_path):
    for name in ("cat", "dog"):
        write(tmp_path / name / "a.jpg")
    with pytest.raises(DataError, match="test on"):
        files.opened(tmp_path)


def test_lists_name_images_and_labels(tmp_path):
    lists(tmp_path, classes=3, test=5)
    fit, choose, test = files.with_lists(tmp_path, 3)
    assert (len(fit), len(choose), len(test)) == (800, 200, 5)
    assert [test.key(n) for n in range(4)] == [f"images/{n}.jpg" for n in (0, 1, 2, 0)]
    assert test.labels.tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("line", ["images/0.jpg 3", "images/0.jpg", "images/0.jpg -1", "0"])
def test_a_label_that_cannot_be_is_an_error_with_its_line(tmp_path, line):
    lists(tmp_path, classes=3)
    write(tmp_path / "val200.txt", line + "\n")
    with pytest.raises(DataError, match=r"val200\.txt: found"):
        files.with_lists(tmp_path, 3)


@pytest.mark.parametrize("path", ["/etc/passwd", "../other/1.jpg", "images/../../1.jpg"])
def test_lists_never_lead_out_of_their_folder(tmp_path, path):
    lists(tmp_path, classes=3)
    write(tmp_path / "test.txt", f"{path} 0\n")
    with pytest.raises(DataError, match="leads out"):
        files.with_lists(tmp_path, 3)


@pytest.mark.parametrize("name", ["a\0.jpg", "\ud800.jpg"])
def test_a_path_that_no_file_can_have_is_an_error(tmp_path, name):
    with pytest.raises(DataError, match="is no path"):
        file_source(tmp_path, [name], [0], ["a"])
