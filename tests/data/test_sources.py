"""Sources: digits, class folders and parquet files give the images, labels and names they hold."""

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitkit.data.checks import DataError
from vitkit.data.decode import ImageError
from vitkit.data.formats.image_files import Names
from vitkit.data.opening import digits, held_out, image_side, open_data, require_classes
from vitkit.data.source import (
    ArraySource,
    Concatenated,
    Source,
    Splits,
    Subset,
    Without,
    only_classes,
)


def encoded(value: int = 0, size: tuple[int, int] = (4, 4), kind: str = "PNG") -> bytes:
    """A file with an image of one colour, so that `value_of` tells which image it is."""
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, kind)
    return file.getvalue()


def value_of(source: Source, index: int) -> int:
    return int(source.image(index)[0, 0, 0])


def write_images(root: Path, *names: str) -> Path:
    """Images at these paths below root, numbered from 1 in the order given."""
    for number, name in enumerate(names, 1):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    return root


def write_parquet(path: Path, metadata: dict | None = None, **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


def names_metadata(*names: str) -> dict[str, str]:
    """What `datasets` writes into a parquet file for a ClassLabel column."""
    label = {"names": list(names), "_type": "ClassLabel"}
    return {"huggingface": json.dumps({"info": {"features": {"label": label}}})}


def hf_images(values: Sequence[int | None]) -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [None if v is None else {"bytes": encoded(v), "path": f"{v}.png"} for v in values]
    return pa.array(rows, kind)


def in_memory(labels: Sequence[int], classes: int | None = None) -> ArraySource:
    """One image for each label, of the colour of its index."""
    labels = np.asarray(labels)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    names = [f"class {number}" for number in range(classes or labels.max() + 1)]
    return ArraySource(images, labels, names, name="memory")


def chosen(part: Source) -> list[int]:
    """Which images of a source are in a part of it."""
    if isinstance(part, Without):
        return [part.inner(index) for index in range(len(part))]
    assert isinstance(part, Subset)
    return part.indices.tolist()


# digits


def test_digits_are_1797_images_of_ten_classes_a_stratified_fifth_held_out():
    splits = open_data("digits")
    assert splits.val is not None
    assert len(splits.train) + len(splits.val) == 1797
    assert splits.train.class_names == splits.val.class_names == [str(n) for n in range(10)]
    train, val = np.bincount(splits.train.labels), np.bincount(splits.val.labels)
    assert (np.abs(val / (train + val) - 0.2) < 0.01).all()


def test_no_digit_is_lost_or_in_both_splits():
    splits = digits()
    train, val = splits.train, splits.val
    assert isinstance(train, Without)
    assert isinstance(val, Subset)
    assert sorted([*chosen(train), *chosen(val)]) == list(range(1797))


def test_digits_are_scaled_to_the_whole_pixel_range_and_must_not_be_mirrored():
    train = digits().train
    image = train.image(0)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 8, 8)
    assert torch.stack([train.image(i) for i in range(50)]).aminmax() == (0, 255)
    assert not train.flip_keeps_class


# Class folders


def test_class_names_are_the_sorted_names_of_the_folders(tmp_path):
    source = open_data(write_images(tmp_path, "dog/1.png", "cat/1.png", "ant/1.png")).train
    assert source.class_names == ["ant", "cat", "dog"]
    assert source.labels.tolist() == [0, 1, 2]
    assert [value_of(source, index) for index in range(3)] == [3, 2, 1]


def test_images_lie_at_any_depth_and_end_in_any_case(tmp_path):
    write_images(tmp_path, "a/x/y/1.png", "a/2.PNG", "b/3.png")
    source = open_data(tmp_path).train
    assert [Path(source.name(i)).relative_to(tmp_path).as_posix() for i in range(len(source))] == [
        "a/2.PNG", "a/x/y/1.png", "b/3.png",
    ]  # fmt: skip
    assert source.labels.tolist() == [0, 0, 1]


def test_files_that_are_no_images_are_not_counted(tmp_path):
    write_images(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a" / "notes.txt").write_text("hello")
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "b" / "odd.png").mkdir()
    assert len(open_data(tmp_path).train) == 2


def test_hidden_folders_are_no_classes(tmp_path):
    write_images(tmp_path, "a/1.png", "b/1.png", ".cache/1.png")
    assert open_data(tmp_path).train.class_names == ["a", "b"]


def test_hidden_files_and_folders_inside_a_class_are_not_counted(tmp_path):
    """macOS leaves ._1.jpg beside 1.jpg in archives; galleries leave folders of thumbnails."""
    write_images(tmp_path, "a/1.png", "a/._1.png", "a/.thumbnails/1.png", "b/1.png")
    source = open_data(tmp_path).train
    assert [Path(source.name(i)).relative_to(tmp_path).as_posix() for i in range(len(source))] == [
        "a/1.png", "b/1.png",
    ]  # fmt: skip


def test_an_empty_folder_is_still_a_class(tmp_path):
    write_images(tmp_path, "a/1.png", "c/1.png")
    (tmp_path / "b").mkdir()
    source = open_data(tmp_path).train
    assert source.class_names == ["a", "b", "c"]
    assert source.labels.tolist() == [0, 2]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
@pytest.mark.parametrize("train", ["train", "training", "Train"])
def test_train_and_val_folders_are_the_splits(tmp_path, train, val):
    write_images(tmp_path, f"{train}/a/1.png", f"{train}/b/1.png", f"{val}/a/1.png")
    (tmp_path / val / "b").mkdir()
    splits = open_data(tmp_path)
    assert splits.val is not None
    assert (len(splits.train), len(splits.val)) == (2, 1)
    assert splits.train.class_names == splits.val.class_names == ["a", "b"]
    assert value_of(splits.val, 0) == 3


def test_the_test_split_is_kept_apart_from_the_validation_split(tmp_path):
    write_images(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "val/a/1.png")
    splits = open_data(tmp_path)
    assert splits.val is not None
    assert splits.test is not None
    assert (value_of(splits.val, 0), value_of(splits.test, 0)) == (4, 3)


def test_test_images_are_never_validated_on(tmp_path):
    write_images(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png")
    splits = open_data(tmp_path)
    assert splits.val is None
    assert splits.test is not None
    assert len(splits.test) == 2


def test_a_test_folder_without_labels_is_passed_over(tmp_path):
    write_images(tmp_path, "train/a/1.png", "train/b/1.png", "test/1.png", "test/2.png")
    with pytest.warns(UserWarning, match="test split is passed over: .*expected class folders"):
        splits = open_data(tmp_path)
    assert (len(splits.train), splits.val, splits.test) == (2, None, None)


def test_without_a_val_folder_there_is_no_validation_split(tmp_path):
    assert open_data(write_images(tmp_path, "train/a/1.png", "train/b/1.png")).val is None
    assert open_data(write_images(tmp_path / "flat", "a/1.png", "b/1.png")).val is None


def test_a_class_may_be_called_train(tmp_path):
    """COCO's and Pascal's classes are: aeroplane, ..., train, ..."""
    splits = open_data(write_images(tmp_path, "car/1.png", "train/1.png"))
    assert splits.train.class_names == ["car", "train"]


def test_a_folder_beside_the_splits_is_no_class(tmp_path):
    write_images(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "unlabeled/1.png")
    splits = open_data(tmp_path)
    assert splits.train.class_names == ["a", "b"]
    assert splits.val is not None


@pytest.mark.parametrize("within", ["photos", "a/b/c", "images"])
def test_folders_that_hold_nothing_but_another_are_looked_through(tmp_path, within):
    write_images(tmp_path / within, "cat/1.png", "dog/1.png", "emu/x/1.png")
    (tmp_path / "README.md").write_text("hello")
    write_images(tmp_path, "__MACOSX/photos/._1.png", ".cache/1.png")
    splits = open_data(tmp_path)
    assert splits.name == str(tmp_path)
    assert splits.train.class_names == ["cat", "dog", "emu"]
    assert splits.train.key(0) == "cat/1.png"


def test_a_folder_without_images_beside_is_looked_past(tmp_path):
    write_images(tmp_path, "images/a/1.png", "images/b/1.png")
    (tmp_path / "annotations" / "xml").mkdir(parents=True)
    assert open_data(tmp_path).train.class_names == ["a", "b"]


def test_splits_may_lie_in_a_folder_too(tmp_path):
    write_images(tmp_path, "d/train/a/1.png", "d/train/b/1.png", "d/val/a/1.png", "d/val/b/1.png")
    splits = open_data(tmp_path)
    assert splits.val is not None
    assert (splits.train.key(1), splits.val.key(1)) == ("train/b/1.png", "val/b/1.png")


def test_archives_beside_what_was_in_them_do_not_matter(tmp_path):
    write_images(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "photos.tar").write_bytes(b"")
    (tmp_path / "photos.tar.gz").write_bytes(b"")
    assert open_data(tmp_path).train.class_names == ["cat", "dog"]


def test_links_in_a_circle_do_not_matter(tmp_path):
    write_images(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert len(open_data(tmp_path).train) == 2
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "c").symlink_to(tmp_path / "c")
    with pytest.raises(DataError, match="expected class folders"):
        open_data(tmp_path / "c")


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(tmp_path, recwarn):
    write_images(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "b" / "circle.png").symlink_to("circle.png")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "lost").symlink_to(tmp_path / "not-mounted")
    train = open_data(tmp_path).train
    assert train.class_names == ["a", "b"]
    assert "links lead nowhere: circle, lost" in str(recwarn[0].message)
    assert [train.key(n) for n in range(len(train))] == [
        "a/1.png", "a/gone.png", "b/1.png", "b/circle.png",
    ]  # fmt: skip
    for index in (1, 3):
        with pytest.raises(OSError):
            train.image(index)


def test_class_folders_and_images_may_be_links(tmp_path):
    write_images(tmp_path / "all", "a/1.png", "b/1.png")
    (tmp_path / "some" / "b").mkdir(parents=True)
    (tmp_path / "some" / "a").symlink_to(tmp_path / "all" / "a")
    (tmp_path / "some" / "b" / "1.png").symlink_to(tmp_path / "all" / "b" / "1.png")
    assert len(open_data(tmp_path / "some").train) == 2


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("training_set", "test_set"), ("seg_train/seg_train", "seg_val/seg_val"),
        ("train/images", "val/images"), ("train-images", "validation-images"),
    ],
)  # fmt: skip
def test_folders_of_splits_have_longer_names_too(tmp_path, train, val):
    write_images(
        tmp_path, f"{train}/a/1.png", f"{train}/b/1.png", f"{val}/a/1.png", f"{val}/b/1.png"
    )
    splits = open_data(tmp_path)
    second = splits.val or splits.test
    assert second is not None
    assert splits.train.class_names == second.class_names == ["a", "b"]
    assert (len(splits.train), len(second)) == (2, 2)


def test_classes_may_have_words_for_splits_in_their_names(tmp_path):
    write_images(tmp_path, "bullet train/1.png", "test tube/1.png", "cat/1.png")
    assert open_data(tmp_path).train.class_names == ["bullet train", "cat", "test tube"]


def test_keys_of_all_splits_differ_and_are_the_paths_in_the_data(tmp_path):
    write_images(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png")
    splits = open_data(tmp_path)
    assert splits.val is not None
    keys = [part.key(n) for part in (splits.train, splits.val) for n in range(2)]
    assert keys == ["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"]
    assert splits.val.file(0) == str(tmp_path / "val/a/1.png")


def test_names_need_not_be_utf_8(tmp_path):
    write_images(tmp_path, "größe/1.png", "b/1.png")
    os.rename(tmp_path / "b/1.png", os.fsencode(tmp_path / "b") + b"/\xff.png")
    source = open_data(tmp_path).train
    assert [value_of(source, n) for n in range(2)] == [2, 1]
    assert source.key(1) == "größe/1.png"


def test_names_are_a_list_of_texts():
    texts = ["a/1.jpg", "", "ö\udcff", "b"]
    names = Names(iter(texts))
    assert list(names) == texts
    assert (names[-1], names[1:3], len(names)) == ("b", ["", "ö\udcff"], 4)
    with pytest.raises(IndexError):
        names[4]


# Parquet


def test_parquet_files_of_hugging_face_have_their_class_names(tmp_path):
    file = write_parquet(
        tmp_path / "a.parquet", names_metadata("cat", "dog", "emu"),
        image=hf_images([5, 6, 7]), label=[1, 0, 1],
    )  # fmt: skip
    source = open_data(file).train
    assert source.class_names == ["cat", "dog", "emu"]
    assert source.labels.tolist() == [1, 0, 1]
    assert [value_of(source, index) for index in range(3)] == [5, 6, 7]
    assert source.name(2) == f"{file} row 2"


def test_a_column_of_plain_bytes_is_an_image_column(tmp_path):
    images = [encoded(value) for value in (5, 6, 7)]
    source = open_data(write_parquet(tmp_path / "a.parquet", picture=images, y=[2, 0, 1])).train
    assert source.class_names == ["0", "1", "2"]
    assert source.labels.tolist() == [2, 0, 1]
    assert value_of(source, 1) == 6


def test_labels_may_be_names_which_are_then_sorted(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", image=hf_images([1, 2, 3]), label=["d", "c", "c"])
    source = open_data(file).train
    assert source.class_names == ["c", "d"]
    assert source.labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view()])
@pytest.mark.parametrize("binary", [pa.binary(), pa.large_binary()])
def test_the_wide_column_types_that_polars_and_pandas_write_are_read(tmp_path, text, binary):
    file = write_parquet(
        tmp_path / "a.parquet",
        image=pa.array([encoded(1), encoded(2)], binary), label=pa.array(["b", "a"], text),
    )  # fmt: skip
    source = open_data(file).train
    assert source.class_names == ["a", "b"]
    assert value_of(source, 1) == 2


def test_image_structs_may_hold_large_bytes(tmp_path):
    kind = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
    images = pa.array([{"bytes": encoded(value), "path": None} for value in (1, 2)], kind)
    source = open_data(write_parquet(tmp_path / "a.parquet", image=images, label=[0, 1])).train
    assert value_of(source, 1) == 2


def test_a_column_called_label_is_taken_before_others_that_could_be_labels(tmp_path):
    file = write_parquet(
        tmp_path / "a.parquet",
        id=[7, 8], caption=["x", "y"], image=hf_images([1, 2]), label=[1, 0], width=[4, 4],
    )  # fmt: skip
    assert open_data(file).train.labels.tolist() == [1, 0]


def test_a_class_label_of_hugging_face_is_taken_before_a_column_called_label(tmp_path):
    metadata = names_metadata("cat", "dog")["huggingface"].replace('"label"', '"species"')
    file = write_parquet(
        tmp_path / "a.parquet", {"huggingface": metadata},
        label=["x", "y"], species=[1, 0], image=hf_images([1, 2]),
    )  # fmt: skip
    source = open_data(file).train
    assert source.class_names == ["cat", "dog"]
    assert source.labels.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["labels", "class", "target", "fine_label", "Label"])
def test_other_words_for_the_label_are_understood(tmp_path, name):
    columns = {"id": [7, 8], name: [1, 0], "coarse_label": [0, 0], "image": hf_images([1, 2])}
    assert open_data(write_parquet(tmp_path / "a.parquet", **columns)).train.labels.tolist() == [
        1, 0,
    ]  # fmt: skip


def test_of_several_columns_that_could_be_labels_none_is_guessed(tmp_path):
    file = write_parquet(
        tmp_path / "a.parquet", id=[7, 8], caption=["x", "y"], image=hf_images([1, 2])
    )
    with pytest.raises(DataError, match=r"columns id \(int64\), caption .*one called label"):
        open_data(file)


def test_identifiers_are_no_labels(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", id=[5, 10**12], image=hf_images([1, 2]))
    with pytest.raises(DataError, match=r"'id' holds 1000000000000 in 2 rows"):
        open_data(file)


def test_labels_may_be_categories_of_pandas(tmp_path):
    labels = pa.array(["d", "c", "c"]).dictionary_encode()
    file = write_parquet(tmp_path / "a.parquet", image=hf_images([1, 2, 3]), label=labels)
    source = open_data(file).train
    assert (source.class_names, source.labels.tolist()) == (["c", "d"], [1, 0, 0])


def test_files_with_integers_of_other_widths_are_joined(tmp_path):
    files = [
        write_parquet(tmp_path / f"{kind}.parquet", image=hf_images([1, 2]),
                      label=pa.array([0, 1], kind))
        for kind in (pa.int32(), pa.int64())
    ]  # fmt: skip
    assert open_data(files).train.labels.tolist() == [0, 1, 0, 1]


def test_files_that_number_the_classes_differently_cannot_be_joined(tmp_path):
    files = [
        write_parquet(tmp_path / f"{first}.parquet", names_metadata(first, second),
                      image=hf_images([1, 2]), label=[0, 1])
        for first, second in (("cat", "dog"), ("dog", "cat"))
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"'label' differently: cat, dog; and dog, cat"):
        open_data(files)


def test_several_parquet_files_are_one_source_in_the_order_given(tmp_path):
    files = [
        write_parquet(tmp_path / f"{v}.parquet", image=hf_images([v, v + 1]), label=[0, 1])
        for v in (10, 30, 20)
    ]
    source = open_data(files).train
    assert [value_of(source, index) for index in range(6)] == [10, 11, 30, 31, 20, 21]
    assert source.labels.tolist() == [0, 1] * 3


def test_a_folder_of_parquet_files_has_the_splits_that_their_names_say(tmp_path):
    for number in range(4):
        write_parquet(
            tmp_path / f"train-{number:05}-of-00004.parquet",
            image=hf_images([number, number]), label=[0, 1],
        )  # fmt: skip
    write_parquet(tmp_path / "val.parquet", image=hf_images([9]), label=[1])
    write_parquet(tmp_path / "test-00000-of-00001.parquet", image=hf_images([8]), label=[1])
    splits = open_data(tmp_path)
    assert splits.val is not None
    assert [value_of(splits.train, index) for index in range(0, 8, 2)] == [0, 1, 2, 3]
    assert [value_of(splits.val, index) for index in range(len(splits.val))] == [9]
    assert splits.test is not None
    assert value_of(splits.test, 0) == 8


def test_a_test_file_alone_is_all_there_is(tmp_path):
    write_parquet(tmp_path / "test.parquet", image=hf_images([1, 2]), label=[0, 1])
    splits = open_data(tmp_path)
    assert (len(splits.train), splits.val, splits.test) == (2, None, None)


@pytest.mark.parametrize("name", ["validation-00000-of-00001", "valid"])
def test_other_words_for_the_validation_files_are_understood(tmp_path, name):
    write_parquet(tmp_path / "train.parquet", image=hf_images([1, 2]), label=[0, 1])
    write_parquet(tmp_path / f"{name}.parquet", image=hf_images([3]), label=[1])
    splits = open_data(tmp_path)
    assert splits.val is not None
    assert (len(splits.train), len(splits.val)) == (2, 1)


def test_missing_files_of_a_numbered_set_are_counted_and_named(tmp_path):
    for number in (0, 1, 4):
        file = tmp_path / f"train-{number:05}-of-00005.parquet"
        write_parquet(file, image=hf_images([1, 2]), label=[0, 1])
    missing = r"2 files of a numbered set .*: train-00002-of-00005\.parquet, train-00003-of-00005"
    with pytest.raises(DataError, match=missing):
        open_data(tmp_path)
    with pytest.warns(UserWarning, match="2 files of a numbered set are not among those given"):
        assert len(open_data(sorted(tmp_path.iterdir())).train) == 6
    assert len(open_data(tmp_path / "train-00001-of-00005.parquet").train) == 2


def test_keys_of_rows_say_the_file_and_the_row_in_it(tmp_path):
    for name in ("x/0", "x/1", "y/0"):
        write_parquet(tmp_path / f"{name}.parquet", image=hf_images([1, 2]), label=[0, 1])

    def keys(*names: str) -> list[str]:
        source = open_data([tmp_path / name for name in names]).train
        return [source.key(n) for n in range(len(source))]

    assert keys("x/1.parquet") == ["1.parquet:0", "1.parquet:1"]
    assert keys("x") == ["0.parquet:0", "0.parquet:1", "1.parquet:0", "1.parquet:1"]
    assert keys("x/0.parquet", "y/0.parquet")[::2] == ["x/0.parquet:0", "y/0.parquet:0"]
    assert keys("x/0.parquet", "x/0.parquet")[::2] == ["0.parquet:0", "0.parquet (2):0"]
    assert keys("x", "y")[::2] == ["x/0.parquet:0", "x/1.parquet:0", "y/0.parquet:0"]


def test_parquet_files_with_other_names_are_all_to_train_on(tmp_path):
    for name in ("part-0", "part-1"):
        write_parquet(tmp_path / f"{name}.parquet", image=hf_images([1, 2]), label=[0, 1])
    splits = open_data(tmp_path)
    assert splits.val is None
    assert len(splits.train) == 4


def test_train_and_val_folders_may_hold_parquet_files(tmp_path):
    for split, value in (("train", 1), ("validation", 2)):
        write_parquet(tmp_path / split / "0.parquet", image=hf_images([value] * 2), label=[0, 1])
    splits = open_data(tmp_path)
    assert splits.val is not None
    assert value_of(splits.val, 0) == 2


def test_a_missing_image_is_an_image_error_and_disturbs_no_other(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", image=hf_images([1, None, 3]), label=[0, 1, 0])
    source = open_data(file).train
    with pytest.raises(ImageError, match="empty"):
        source.image(1)
    assert [value_of(source, 0), value_of(source, 2)] == [1, 3]


# Splitting


@given(
    counts=st.lists(st.integers(10, 60), min_size=2, max_size=6),
    share=st.floats(0.06, 0.9), seed=st.integers(0, 99), order=st.randoms(use_true_random=False),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_held_out_is_stratified_disjoint_complete_and_keeps_an_image_of_each_class(
    counts, share, seed, order
):
    labels = np.repeat(np.arange(len(counts)), counts).tolist()
    order.shuffle(labels)
    source = in_memory(labels)
    splits = held_out(source, "data", share=share, seed=seed)
    train, val = splits.train, splits.val
    assert isinstance(train, Without)
    assert isinstance(val, Subset)
    assert sorted([*chosen(train), *chosen(val)]) == list(range(len(labels)))
    assert (np.bincount(train.labels, minlength=len(counts)) >= 1).all()
    held = np.bincount(val.labels, minlength=len(counts))
    assert (np.abs(held - share * np.array(counts)) <= 1).all()
    for part in (train, val):
        assert part.labels.tolist() == [labels[index] for index in chosen(part)]
        assert [part.target(index) for index in range(len(part))] == part.labels.tolist()


def test_every_class_keeps_an_image_to_train_on_however_much_is_held_out():
    splits = held_out(in_memory([0] * 5 + [1] * 2 + [2]), "data", share=1.0)
    assert splits.train.labels.tolist() == [0, 1, 2]


def test_held_out_is_a_pure_function_of_the_seed():
    source = in_memory(np.arange(200) % 4)
    first, again, other = (held_out(source, "data", seed=seed).val for seed in (1, 1, 2))
    assert isinstance(first, Subset)
    assert isinstance(again, Subset)
    assert isinstance(other, Subset)
    assert first.indices.tolist() == again.indices.tolist()
    assert first.indices.tolist() != other.indices.tolist()


def test_a_tenth_is_held_out_by_default_and_at_most_ten_thousand():
    small = held_out(in_memory(np.arange(400) % 4), "data")
    assert small.val is not None
    assert len(small.val) == 40
    large = ArraySource(
        np.zeros((200_000, 1, 1), np.uint8), np.arange(200_000) % 7, list("abcdefg")
    )
    splits = held_out(large, "data")
    assert splits.val is not None
    assert 9_990 <= len(splits.val) <= 10_000
    held = np.bincount(splits.val.labels)
    assert held.max() - held.min() <= 10


def test_a_tenth_is_held_out_of_many_small_classes_too():
    """40 classes of 5: a tenth of each is less than one, a tenth of all is 20."""
    splits = held_out(in_memory(np.arange(200) % 40), "data")
    assert splits.val is not None
    assert 15 <= len(splits.val) <= 25


def test_the_most_that_is_held_out_is_shared_by_all_classes():
    """63 classes of 100, sorted: none of them may be without images because it comes last."""
    splits = held_out(in_memory(np.repeat(np.arange(63), 100)), "data", at_most=100)
    assert splits.val is not None
    assert len(splits.val) <= 100
    assert np.bincount(splits.val.labels, minlength=63).min() >= 1


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    share=st.floats(0.01, 1.0), at_most=st.integers(1, 60), seed=st.integers(0, 9),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_held_out_is_about_the_share_and_never_more_than_the_most(counts, share, at_most, seed):
    source = in_memory(np.repeat(np.arange(len(counts)), counts))
    spare = np.array(counts) - 1
    if not spare.any():
        return
    splits = held_out(source, "data", share=share, at_most=at_most, seed=seed)
    assert splits.val is not None
    held = np.bincount(splits.val.labels, minlength=len(counts))
    quotas = np.minimum(np.array(counts) * min(share, at_most / sum(counts)), spare)
    assert (np.abs(held - quotas) <= 1).all()
    assert (held <= spare).all()
    assert 1 <= held.sum() <= at_most
    assert abs(held.sum() - quotas.sum()) <= 1


def test_too_few_images_to_hold_any_out_is_an_error():
    with pytest.raises(DataError, match=r"data: 2 images of 2 classes are too few"):
        held_out(in_memory([0, 1]), "data")


def test_only_classes_renumbers_in_the_order_given():
    chosen = only_classes(in_memory([0, 1, 2, 3, 0, 1, 2, 3]), ["class 3", "class 1"])
    assert chosen.class_names == ["class 3", "class 1"]
    assert chosen.labels.tolist() == [1, 0, 1, 0]
    assert [value_of(chosen, index) for index in range(4)] == [1, 3, 5, 7]


def test_only_classes_names_a_class_that_is_not_there():
    with pytest.raises(DataError, match=r"no classes cat among class 0, class 1"):
        only_classes(in_memory([0, 1]), ["class 0", "cat"])


# Several at once


def test_concatenated_sources_follow_each_other():
    first, second = in_memory([0, 1, 1]), in_memory([1, 0])
    both = Concatenated([first, second])
    assert both.labels.tolist() == [0, 1, 1, 1, 0]
    assert both.class_names == first.class_names
    assert [value_of(both, index) for index in range(5)] == [0, 1, 2, 0, 1]
    assert [both.name(index) for index in (2, 3)] == ["memory 2", "memory 0"]


def test_concatenated_images_are_mirrored_only_if_all_parts_allow_it():
    plain, written = in_memory([0, 1]), in_memory([0, 1])
    written.flip_keeps_class = False
    assert Concatenated([plain, plain]).flip_keeps_class
    assert not Concatenated([plain, written]).flip_keeps_class


def test_keys_of_several_data_begin_with_what_tells_them_apart(tmp_path):
    for name in ("1/cats", "2/cats", "2/dogs"):
        write_images(tmp_path / name, "a/1.png", "b/1.png")

    def keys(*words: str) -> list[str]:
        source = open_data([tmp_path / word for word in words]).train
        return [source.key(n) for n in range(0, len(source), 2)]

    assert keys("2/cats", "2/dogs") == ["cats/a/1.png", "dogs/a/1.png"]
    assert keys("1/cats", "2/cats") == ["1/cats/a/1.png", "2/cats/a/1.png"]
    assert keys("1/cats", "1/cats") == ["cats/a/1.png", "cats (2)/a/1.png"]


def test_sources_with_other_classes_cannot_be_joined_and_both_are_named():
    with pytest.raises(DataError, match=r"memory 0 \(class 0, class 1, class 2\).*\(class 0, cl"):
        Concatenated([in_memory([0, 1]), in_memory([0, 1, 2])])


def test_several_folders_are_joined_split_by_split(tmp_path):
    write_images(tmp_path / "x", "train/a/1.png", "train/b/1.png", "val/a/1.png")
    (tmp_path / "x" / "val" / "b").mkdir()
    write_images(tmp_path / "y", "a/1.png", "b/1.png")
    splits = open_data([tmp_path / "x", tmp_path / "y"])
    assert splits.val is not None
    assert (len(splits.train), len(splits.val)) == (4, 1)


def test_a_source_or_splits_are_taken_as_they_are():
    source = in_memory([0, 1])
    assert open_data(source).train is source
    splits = Splits("mine", source)
    assert open_data(splits) is splits


# Arrays


def test_grey_arrays_become_three_equal_channels():
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4), np.uint8)
    image = ArraySource(images, [0, 1, 0], ["a", "b"]).image(1)
    assert image.shape == (3, 5, 4)
    assert all((channel.numpy() == images[1]).all() for channel in image)


def test_colour_arrays_keep_their_channels():
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), np.uint8)
    image = ArraySource(images, [0, 1, 0], ["a", "b"]).image(2)
    np.testing.assert_array_equal(image.permute(1, 2, 0), images[2])


def test_a_mirrored_view_of_an_array_is_an_array_too():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    image = ArraySource(images[:, :, ::-1], [0, 1], ["a", "b"]).image(0)
    np.testing.assert_array_equal(image.permute(1, 2, 0), images[0, :, ::-1])


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 4, 4), np.float32), ((2, 4, 4, 4), np.uint8), ((4, 4), np.uint8), ((2, 3, 4, 4), bool)],
)
def test_arrays_of_another_kind_are_refused_with_what_was_found_and_expected(shape, dtype):
    with pytest.raises(DataError, match=rf"mine: images are {np.dtype(dtype)} of shape .*uint8"):
        ArraySource(np.zeros(shape, dtype), [0, 1], ["a", "b"], name="mine")


def test_as_many_labels_as_images_are_expected():
    with pytest.raises(DataError, match="mine: 2 images but 3 labels"):
        ArraySource(np.zeros((2, 4, 4), np.uint8), [0, 1, 0], ["a", "b"], name="mine")


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_out_of_range_are_named_with_their_row(label):
    with pytest.raises(DataError, match=rf"first is {label} in row 1; expected 0 to 1 for 2 class"):
        ArraySource(np.zeros((2, 4, 4), np.uint8), [0, label], ["a", "b"])


# Errors say where, what was found and what was expected


@pytest.mark.parametrize("name", ["photos", "photos.parquet"])
def test_missing_data_is_named(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name}: no such file or folder; DATA is a folder"):
        open_data(tmp_path / name)


def test_no_data_at_all_is_an_error():
    with pytest.raises(DataError, match="no data given; expected a folder"):
        open_data([])


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="found an empty folder; expected class folders"):
        open_data(tmp_path)


def test_a_folder_of_images_without_class_folders_is_an_error(tmp_path):
    write_images(tmp_path, *(f"{number}.png" for number in range(9)))
    with pytest.raises(DataError, match=r"found 0\.png, .* and 4 more; expected class folders"):
        open_data(tmp_path)


def test_class_folders_without_images_are_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"found a/, b/; expected class folders with images"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("files", "fix"),
    [
        ([], "put images into class folders: ROOT/cat/1.jpg"),
        (["1.png", "2.png"], "mkdir -p ROOT/cat && mv ROOT/1.png ROOT/cat/; or write a labels.csv"),
        (["cat.1.png", "cat.2.png", "dog.1.png", "dog.2.png"],
         "cd ROOT && for c in cat dog; do mkdir -p $c && mv $c[._-]* $c/; done"),
        (["train/1.png", "val/2.png"], "mkdir -p ROOT/train/cat && mv ROOT/train/1.png"),
        (["photos.zip"], "unpack the archive: unzip ROOT/photos.zip -d ROOT"),
        (["a.7z", "b.7z"], "unpack each of the archives: 7z x ROOT/a.7z"),
        (["cat/1.mp4", "dog/1.mp4"], "ffmpeg -i ROOT/cat/1.mp4 -vf fps=1 frames/cat/%06d.jpg"),
        (["cat/1.heic", "dog/1.heic"], "2 files are .heic, which is not read; convert them"),
        (["small/x.parquet", "large/x.parquet"], "give one of its folders as DATA: ROOT/large"),
        (["notes.txt"], "give the folder that holds the images, or put them into ROOT/cat"),
    ],
)  # fmt: skip
def test_a_wrong_layout_is_shown_beside_the_right_ones_with_one_way_there(tmp_path, files, fix):
    write_images(tmp_path, *files)
    with pytest.raises(DataError) as error:
        open_data(tmp_path)
    lines = str(error.value).splitlines()
    assert "expected class folders" in lines[0]
    assert lines[1] == "found:"
    assert "expected one of:" in lines
    assert lines[-1].startswith("fix: ")
    assert fix.replace("ROOT", str(tmp_path)) in lines[-1]
    assert len(lines) < 20


def test_a_tree_of_many_folders_is_shown_in_few_lines(tmp_path):
    write_images(tmp_path, *(f"{n:02}/{m}.txt" for n in range(30) for m in range(3)))
    with pytest.raises(DataError) as error:
        open_data(tmp_path)
    lines = str(error.value).splitlines()
    assert "    00/ (0.txt and 2 more .txt)" in lines
    assert "    and 25 more folders" in lines
    assert len(lines) < 20


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write_images(tmp_path, "a/1.png", "b/1.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"/b: the folder cannot be read: Permission denied"):
        open_data(tmp_path)


def test_one_class_is_not_enough(tmp_path):
    source = open_data(write_images(tmp_path, "cat/1.png", "cat/2.png")).train
    with pytest.raises(
        DataError, match=r"data: found 2 images of 1 class \(cat\); expected at lea"
    ):
        require_classes(source, "data")
    require_classes(in_memory([0, 1]), "data")


def test_a_class_without_images_does_not_count_as_a_second_one(tmp_path):
    write_images(tmp_path, "cat/1.png")
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match="of 1 class"):
        require_classes(open_data(tmp_path).train, "data")


@pytest.mark.parametrize("labels", [[0, None, 1], ["a", None, "b"]])
def test_missing_labels_are_counted_and_their_column_named(tmp_path, labels):
    file = write_parquet(tmp_path / "a.parquet", image=hf_images([1, 2, 3]), label=labels)
    with pytest.raises(DataError, match=r"a\.parquet: 1 of 3 labels are missing .*'label'"):
        open_data(file)


def test_labels_outside_the_names_of_a_parquet_file_are_an_error(tmp_path):
    file = write_parquet(
        tmp_path / "a.parquet", names_metadata("cat", "dog"),
        image=hf_images([1, 2, 3]), label=[0, 1, 2],
    )  # fmt: skip
    with pytest.raises(DataError, match=r"first is 2 in row 2; expected 0 to 1 for 2 classes"):
        open_data(file)


def test_negative_labels_are_an_error(tmp_path):
    """-1 is how Hugging Face marks the unlabelled images of a test split."""
    file = write_parquet(tmp_path / "a.parquet", image=hf_images([1, 2]), label=[-1, 0])
    with pytest.raises(DataError, match="first is -1 in row 0"):
        open_data(file)


@pytest.mark.parametrize(
    "columns",
    [
        {"image": ["a.png"], "label": [0]},
        {"image": [b""]},
        {"label": [0]},
        {"image": [b""], "label": [0.5]},
        {"image": [b""], "label": [[[0]]]},
    ],
)
def test_wrong_columns_are_listed_with_their_types(tmp_path, columns):
    file = write_parquet(tmp_path / "a.parquet", **columns)
    found = r"found the columns (image|label) \(\w+.*\); expected an image column .* a label column"
    with pytest.raises(DataError, match=found):
        open_data(file)


def test_parquet_files_with_other_columns_cannot_be_joined(tmp_path):
    one = write_parquet(tmp_path / "1.parquet", image=hf_images([1]), label=[0])
    two = write_parquet(tmp_path / "2.parquet", image=hf_images([1]), label=["cat"])
    with pytest.raises(DataError, match=r"1\.parquet and 1 more: .*label.*int64 vs string"):
        open_data([one, two])


def test_a_parquet_file_without_rows_is_an_error(tmp_path):
    labels = pa.array([], pa.int64())
    file = write_parquet(tmp_path / "a.parquet", image=hf_images([]), label=labels)
    with pytest.raises(DataError, match="found no rows; expected images and labels"):
        open_data(file)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_truncated_parquet_file_is_named(tmp_path, kept):
    file = write_parquet(tmp_path / "a.parquet", image=hf_images([1, 2] * 50), label=[0, 1] * 50)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * kept)])
    with pytest.raises(DataError, match=r"a\.parquet: not readable as parquet"):
        open_data(file)


def test_a_text_file_called_parquet_is_named(tmp_path):
    (tmp_path / "a.parquet").write_text("image,label\n" * 9)
    with pytest.raises(DataError, match=r"a\.parquet: not readable as parquet"):
        open_data(tmp_path / "a.parquet")


def test_another_kind_of_file_is_an_error(tmp_path):
    (tmp_path / "a.doc").write_text("image,label\n")
    with pytest.raises(DataError, match=r"a\.doc: a file, but not parquet; expected a folder or"):
        open_data(tmp_path / "a.doc")


# Fingerprints


def folder_print(tmp_path: Path) -> str:
    return open_data(tmp_path).train.fingerprint()


def test_the_fingerprint_of_a_folder_stays_when_nothing_changed(tmp_path):
    write_images(tmp_path / "here", "a/1.png", "b/1.png")
    before = folder_print(tmp_path / "here")
    assert folder_print(tmp_path / "here") == before
    (tmp_path / "here" / "notes.txt").write_text("hello")
    (tmp_path / "here").rename(tmp_path / "there")
    assert folder_print(tmp_path / "there") == before


def test_the_fingerprint_of_a_folder_changes_with_its_labels(tmp_path):
    before = folder_print(write_images(tmp_path, "a/1.png", "a/2.png", "b/1.png"))
    (tmp_path / "a" / "2.png").rename(tmp_path / "b" / "2.png")
    moved = folder_print(tmp_path)
    (tmp_path / "b").rename(tmp_path / "c")
    assert len({before, moved, folder_print(tmp_path)}) == 3


def test_the_fingerprint_of_a_folder_changes_with_its_images(tmp_path):
    before = folder_print(write_images(tmp_path, "a/1.png", "b/1.png"))
    (tmp_path / "a" / "1.png").write_bytes(encoded(1, size=(64, 64)))
    changed = folder_print(tmp_path)
    write_images(tmp_path, "a/2.png")
    assert len({before, changed, folder_print(tmp_path)}) == 3


def test_the_fingerprint_of_a_folder_changes_with_an_image_of_the_same_length(tmp_path):
    """Any two BMP files of the same size are of the same length."""
    write_images(tmp_path, "a/1.png", "b/1.png")
    prints = set()
    for value in (1, 2):
        (tmp_path / "a" / "1.bmp").write_bytes(encoded(value, kind="BMP"))
        prints.add(folder_print(tmp_path))
    assert len(prints) == 2


def parquet_print(path: Path, images: Sequence[int], labels: Sequence[int]) -> str:
    """The fingerprint of a file whose images are BMP: all of the same length."""
    column = [encoded(value, kind="BMP") for value in images]
    pq.write_table(pa.table({"image": column, "label": labels}), path, compression="none",
                   use_dictionary=False)  # fmt: skip
    return open_data(path).train.fingerprint()


def test_the_fingerprint_of_a_parquet_file_changes_with_labels_and_images_only(tmp_path):
    path = tmp_path / "a.parquet"
    before = parquet_print(path, [1, 2, 3], [0, 1, 0])
    assert parquet_print(path, [1, 2, 3], [0, 1, 0]) == before
    assert parquet_print(path, [1, 2, 3], [0, 1, 1]) != before
    assert parquet_print(path, [1, 2, 3, 4], [0, 1, 0, 1]) != before


def test_the_fingerprint_of_a_parquet_file_changes_with_an_image_of_the_same_length(tmp_path):
    path = tmp_path / "a.parquet"
    prints = {parquet_print(path, [1, 2, value], [0, 1, 0]) for value in (3, 4)}
    assert len(prints) == 2


def test_the_fingerprint_of_arrays_and_of_what_is_made_of_them_changes_with_each_part():
    source = in_memory([0, 1, 0, 1])
    other_label, other_image = in_memory([0, 1, 1, 1]), in_memory([0, 1, 0, 1])
    other_image.images = other_image.images.clone()
    other_image.images[3] = 99
    renamed = in_memory([0, 1, 0, 1], classes=3)
    parts = [
        source, other_label, other_image, renamed,
        Subset(source, [0, 1]), Subset(source, [0, 3]), Subset(other_image, [0, 1]),
        only_classes(source, ["class 0", "class 1"]), only_classes(source, ["class 1", "class 0"]),
        Concatenated([source, other_label]), Concatenated([other_label, source]),
    ]  # fmt: skip
    assert len({part.fingerprint() for part in parts}) == len(parts)
    assert in_memory([0, 1, 0, 1]).fingerprint() == source.fingerprint()


# The size of the images


def test_the_image_side_is_the_median_shorter_side(tmp_path):
    for number, size in enumerate([(10, 30), (40, 20), (50, 60)]):
        path = tmp_path / f"class {number}" / "1.png"
        path.parent.mkdir()
        path.write_bytes(encoded(size=size))
    (tmp_path / "class 2" / "2.png").write_bytes(b"broken")
    assert image_side(open_data(tmp_path).train) == 20


def test_no_image_that_can_be_decoded_is_an_error(tmp_path):
    write_images(tmp_path, "a/1.png", "b/1.png")
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"none of the images .* can be decoded, .*1\.png first"):
        image_side(open_data(tmp_path).train)
