"""Files of labels: CSV, TSV, JSON and JSON lines, with one label for an image or several."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitkit.data.checks import DataError
from vitkit.data.opening import open_data
from vitkit.data.source import Source, Splits

CATS = "file_name,label\n1.png,cat\n2.png,dog\n3.png,cat\n"


def write_images(root: Path, *names: str) -> Path:
    """Images at these paths below root, numbered from 1 in the order given."""
    for number, name in enumerate(names, 1):
        file = io.BytesIO()
        Image.new("RGB", (4, 4), (number, number, number)).save(file, "PNG")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())
    return root


def numbered(root: Path, number: int = 3, folder: str = "") -> Path:
    return write_images(root, *(f"{folder}{n}.png" for n in range(1, number + 1)))


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def labels_of(source: Source | None) -> dict[str, str]:
    """{key: name of the class}"""
    assert source is not None
    return {source.key(n): source.class_names[source.labels[n]] for n in range(len(source))}


def several_labels_of(source: Source) -> dict[str, list[str]]:
    assert source.multi_label
    rows = source.labels.toarray()
    return {
        source.key(n): [source.class_names[c] for c in np.flatnonzero(rows[n])]
        for n in range(len(source))
    }


def sizes(splits: Splits) -> list[int]:
    return [0 if part is None else len(part) for part in (splits.train, splits.val, splits.test)]


# One label for an image


@pytest.mark.parametrize("name", ["labels.csv", "metadata.csv", "annotations.csv", "Labels.CSV"])
@pytest.mark.parametrize("folder", ["", "images/", "imgs/", "train/", "images/train/"])
def test_a_list_beside_the_images_or_their_folder_is_found_by_its_name(tmp_path, name, folder):
    numbered(tmp_path, folder=folder)
    write(tmp_path / name, CATS)
    source = open_data(tmp_path).train
    assert source.class_names == ["cat", "dog"]
    assert labels_of(source) == {
        f"{folder}1.png": "cat", f"{folder}2.png": "dog", f"{folder}3.png": "cat",
    }  # fmt: skip
    assert int(source.image(1)[0, 0, 0]) == 2
    assert source.file(1) == source.name(1) == str(tmp_path / folder / "2.png")


def test_a_list_may_be_data_itself_whatever_it_is_called(tmp_path):
    numbered(tmp_path)
    assert len(open_data(write(tmp_path / "my list.csv", CATS)).train) == 3


@pytest.mark.parametrize("image", ["file_name", "filename", "Image", "path", "image path", "ID"])
@pytest.mark.parametrize("label", ["label", "class", "Target", "category"])
def test_columns_have_many_names_and_any_place(tmp_path, image, label):
    numbered(tmp_path)
    text = CATS.replace("file_name,label", f"{image},{label}").replace("\n", ",x\n")
    assert labels_of(open_data(write(tmp_path / "a.csv", text)).train)["2.png"] == "dog"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_tables_of_spreadsheets_are_read(tmp_path, encoding, delimiter, newline):
    numbered(tmp_path)
    text = CATS.replace("dog", "hund, größer").replace("2.png,hund, größer", '2.png,"hund, größer"')
    text = text.replace("\n", newline)
    if delimiter != ",":
        text = CATS.replace(",", delimiter).replace("dog", '"hund, größer"')
    source = open_data(write(tmp_path / "labels.csv", text, encoding)).train
    assert source.class_names == ["cat", "hund, größer"]


def test_numbers_are_sorted_as_numbers(tmp_path):
    numbered(tmp_path)
    source = open_data(write(tmp_path / "a.csv", "id,label\n1.png,10\n2.png,9\n3.png,10\n")).train
    assert source.class_names == ["9", "10"]
    assert source.labels.tolist() == [1, 0, 1]


def test_names_without_suffix_are_found(tmp_path):
    write_images(tmp_path, "train/0a.png", "train/0b.png", "test/0c.png")
    write(tmp_path / "labels.csv", "id,breed\n0a,collie\n0b,pug\n")
    splits = open_data(tmp_path)
    assert sizes(splits) == [2, 0, 0]
    assert labels_of(splits.train) == {"train/0a.png": "collie", "train/0b.png": "pug"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", {"1.png": "cat", "2.png": "dog", "3.png": "cat"}),
        ("a.json", {"1.png": 3, "2.png": 4, "3.png": 3}),
        ("a.json", [{"image": f"{n}.png", "label": "ab"[n % 2]} for n in (1, 2, 3)]),
        ("a.json", {"images": [{"image": f"{n}.png", "label": n % 2} for n in (1, 2, 3)]}),
    ],
)
def test_json_is_a_dict_or_a_list_of_records(tmp_path, name, content):
    numbered(tmp_path)
    source = open_data(write(tmp_path / name, json.dumps(content))).train
    assert len(source) == 3
    assert source.labels[0] == source.labels[2] != source.labels[1]


def test_metadata_of_hugging_face_is_read_line_by_line(tmp_path):
    for split in ("train", "test"):
        numbered(tmp_path / split)
        lines = [{"file_name": f"{n}.png", "label": "ab"[n % 2]} for n in (1, 2, 3)]
        write(tmp_path / split / "metadata.jsonl", "\n".join(map(json.dumps, lines)))
    splits = open_data(tmp_path)
    assert sizes(splits) == [3, 0, 3]
    assert labels_of(splits.test) == {"test/1.png": "b", "test/2.png": "a", "test/3.png": "b"}


# Splits


def test_a_column_of_splits_gives_splits(tmp_path):
    numbered(tmp_path, 4)
    write(
        tmp_path / "labels.csv",
        "file_name,label,split\n1.png,a,train\n2.png,b,Train\n3.png,b,valid\n4.png,c,test\n",
    )
    splits = open_data(tmp_path)
    assert sizes(splits) == [2, 1, 1]
    assert splits.val is not None
    assert splits.train.class_names == splits.val.class_names == ["a", "b", "c"]


def test_an_unknown_word_for_a_split_is_an_error(tmp_path):
    numbered(tmp_path)
    file = write(tmp_path / "a.csv", "image,label,split\n1.png,a,train\n2.png,b,odd\n")
    with pytest.raises(DataError, match="splits holds odd; expected train, val and test"):
        open_data(file)


def test_the_first_folder_of_the_paths_is_the_split_where_all_are(tmp_path):
    write_images(tmp_path, "train/1.png", "train/2.png", "val/1.png")
    write(tmp_path / "labels.csv", "path,label\ntrain/1.png,a\ntrain/2.png,b\nval/1.png,a\n")
    assert sizes(open_data(tmp_path)) == [2, 1, 0]


def test_a_list_for_each_split_may_lie_beside_the_folders(tmp_path):
    write_images(tmp_path, "train/1.png", "train/2.png", "val/1.png", "val/2.png")
    write(tmp_path / "train.csv", "image,label\n1.png,b\n2.png,a\n")
    write(tmp_path / "val_labels.csv", "image,label\n1.png,a\n2.png,a\n")
    splits = open_data(tmp_path)
    assert sizes(splits) == [2, 2, 0]
    assert labels_of(splits.val) == {"val/1.png": "a", "val/2.png": "a"}
    assert splits.val and splits.val.class_names == ["a", "b"]


def test_class_folders_to_train_on_and_a_list_to_validate_on_have_the_same_classes(tmp_path):
    """As Tiny ImageNet is published: no header, and boxes after the class."""
    write_images(tmp_path, "train/b/images/1.png", "train/a/images/2.png", "val/images/v.png")
    write(tmp_path / "val" / "val_annotations.txt", "v.png\tb\t0\t0\t62\t62\n")
    splits = open_data(tmp_path)
    assert splits.train.class_names == ["a", "b"]
    assert labels_of(splits.val) == {"val/images/v.png": "b"}


def test_labels_that_are_no_classes_to_train_on_are_an_error(tmp_path):
    write_images(tmp_path, "train/b/1.png", "train/a/2.png", "val/v.png")
    write(tmp_path / "val" / "labels.csv", "image,label\nv.png,emu\n")
    with pytest.raises(DataError, match=r"labels emu are none of the classes to train on \(a, b\)"):
        open_data(tmp_path)


@pytest.mark.filterwarnings("ignore:.*in no row")
def test_a_test_list_without_labels_is_passed_over(tmp_path):
    write_images(tmp_path, "train/1.png", "train/2.png", "test/1.png")
    write(tmp_path / "train.csv", "image,label\n1.png,b\n2.png,a\n")
    write(tmp_path / "test.csv", "image\n1.png\n")
    with pytest.warns(UserWarning, match="passed over"):
        splits = open_data(tmp_path)
    assert sizes(splits) == [2, 0, 0]


def test_images_that_are_trained_on_and_validated_on_are_counted(tmp_path):
    numbered(tmp_path)
    write(tmp_path / "train.csv", "image,label\n1.png,a\n2.png,b\n3.png,b\n")
    write(tmp_path / "val.csv", "image,label\n3.png,b\n")
    with pytest.warns(UserWarning, match=r"1 images are to train on and in val as well: 3\.png"):
        open_data(tmp_path)


# Several labels


@pytest.mark.parametrize(
    "cell", ["cat|dog", "cat;dog", " dog ; cat ", '"[""dog"", ""cat""]"', "\"['dog', 'cat']\""]
)
def test_several_labels_lie_in_one_cell(tmp_path, cell):
    numbered(tmp_path)
    text = f"image,labels\n1.png,{cell}\n2.png,dog\n3.png,emu\n"
    source = open_data(write(tmp_path / "labels.csv", text)).train
    assert source.class_names == ["cat", "dog", "emu"]
    assert several_labels_of(source) == {
        "1.png": ["cat", "dog"], "2.png": ["dog"], "3.png": ["emu"],
    }  # fmt: skip
    target = source.target(0)
    assert isinstance(target, np.ndarray)
    assert target.tolist() == [1, 1, 0]
    assert source.labels.dtype == bool


def test_json_lists_are_several_labels(tmp_path):
    numbered(tmp_path)
    content = {"1.png": ["a", "b"], "2.png": ["b"], "3.png": []}
    file = write(tmp_path / "a.json", json.dumps(content))
    with pytest.warns(UserWarning, match=r"1 of 3 images have no label, .*: 3\.png"):
        source = open_data(file).train
    assert several_labels_of(source) == content


def test_columns_of_zeros_and_ones_are_several_labels(tmp_path):
    """As Roboflow writes them, in each split folder."""
    for split in ("train", "valid"):
        numbered(tmp_path / split)
        text = "filename, cat, dog\n1.png, 1, 1\n2.png, 0, 1\n3.png, 1, 0\n"
        write(tmp_path / split / "_classes.csv", text)
    splits = open_data(tmp_path)
    assert sizes(splits) == [3, 3, 0]
    assert splits.train.class_names == ["cat", "dog"]
    assert several_labels_of(splits.train)["train/1.png"] == ["cat", "dog"]


def test_one_one_in_every_row_is_one_label(tmp_path):
    numbered(tmp_path)
    file = write(tmp_path / "a.csv", "image,MEL,NV\n1,1.0,0.0\n2,0.0,1.0\n3,1.0,0.0\n")
    assert list(labels_of(open_data(file).train).values()) == ["MEL", "NV", "MEL"]


def test_a_split_with_single_labels_beside_one_with_several_has_several_too(tmp_path):
    numbered(tmp_path)
    write(tmp_path / "train.csv", "image,label\n1.png,a|b\n2.png,b\n")
    write(tmp_path / "val.csv", "image,label\n3.png,b\n")
    val = open_data(tmp_path).val
    assert val is not None
    assert several_labels_of(val) == {"3.png": ["b"]}


# What is wrong is counted and named before training


def test_absent_images_are_counted_and_named(tmp_path):
    numbered(tmp_path)
    file = write(tmp_path / "a.csv", CATS + "4.png,cat\nx/5.png,dog\n")
    with pytest.raises(DataError, match=r"2 of 5 rows .* not in .*: 4\.png, x/5\.png; remove the"):
        open_data(file)


def test_images_that_are_in_no_row_are_counted_in_a_warning(tmp_path):
    numbered(tmp_path, 5)
    with pytest.warns(UserWarning, match=r"2 images beside it are in no row .*: 4\.png, 5\.png"):
        assert len(open_data(write(tmp_path / "a.csv", CATS)).train) == 3


def test_rows_that_repeat_an_image_count_once(tmp_path):
    numbered(tmp_path)
    with pytest.warns(UserWarning, match=r"1 rows repeat an image with the same label .*: 2\.png"):
        source = open_data(write(tmp_path / "a.csv", CATS + "./2.png,dog\n")).train
    assert list(labels_of(source)) == ["1.png", "2.png", "3.png"]


def test_two_different_labels_of_an_image_are_an_error_with_both(tmp_path):
    numbered(tmp_path)
    file = write(tmp_path / "a.csv", CATS + "2.png,cat\n")
    with pytest.raises(
        DataError, match=r"1 images have .* \(2\.png is dog in row 2 and cat in row"
    ):
        open_data(file)


def test_empty_labels_are_counted_and_named(tmp_path):
    numbered(tmp_path)
    file = write(tmp_path / "a.csv", CATS.replace("dog", " "))
    with pytest.raises(DataError, match=r"1 of 3 labels are empty: 2\.png; write labels or remove"):
        open_data(file)


@pytest.mark.parametrize(
    "path", ["../1.png", "/etc/1.png", "a/../../1.png", "C:\\1.png", "..\\1.png", "x/\0.png"]
)
def test_paths_that_lead_out_of_the_folder_are_refused(tmp_path, path):
    write_images(tmp_path, "1.png", "in/1.png")
    file = write(tmp_path / "in" / "a.csv", f"image,label\n1.png,a\n{path},b\n")
    with pytest.raises(DataError, match=r"1 of 2 paths lead out of its folder: .*; write them rel"):
        open_data(file)


def test_rows_of_other_lengths_are_counted(tmp_path):
    numbered(tmp_path)
    with pytest.raises(
        DataError, match=r"1 of 4 rows do not have the 2 columns .* is row 4 \(1\.pn"
    ):
        open_data(write(tmp_path / "a.csv", CATS + "1.png,a,b\n"))


def test_other_columns_are_listed(tmp_path):
    numbered(tmp_path)
    with pytest.raises(DataError, match=r"found the columns image, width; expected one of images"):
        open_data(write(tmp_path / "a.csv", "image,width\n1.png,4\n"))


def test_a_list_of_something_else_beside_class_folders_is_passed_over(tmp_path):
    write_images(tmp_path, "cat/1.png", "dog/1.png")
    write(tmp_path / "labels.csv", "id,label\n0,cat\n1,dog\n")
    with pytest.warns(UserWarning, match="passed over as a list of images: .* of which none is in"):
        assert open_data(tmp_path).train.class_names == ["cat", "dog"]


def test_a_list_that_fits_counts_before_class_folders(tmp_path):
    write_images(tmp_path, "a/1.png", "b/2.png")
    write(tmp_path / "labels.csv", "path,label\na/1.png,x\nb/2.png,y\n")
    assert open_data(tmp_path).train.class_names == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "found no rows"),
        ("a.csv", "image,label\n", "found no rows"),
        ("a.json", "{", "not readable as JSON: "),
        ("a.json", "[" * 100_000, "not readable as JSON: "),
        ("a.json", "[1, 2]", "not readable as JSON: expected {path: label}"),
        ("a.json", '{"1.png": {"a": 1}}', "not readable as JSON: expected {path: label}"),
        ("a.jsonl", '{"image": "1.png"}\nx', "not readable as JSONL: "),
        ("a.json", '[{"image": "1.png", "label": {"a": 1}}]', "some labels are records"),
        ("a.csv", 'image,label\n1.png,"' + "x" * 200_000 + '"\n', "not readable as CSV: field lar"),
        ("a.csv", "image,label\n1.png,[1\n", "found the label '[1'; expected a list"),
        ("a.csv", 'image,label\n1.png,"[a\nb]"\n', "found the label '[a\\nb]'; expected a list"),
        ("a.csv", "image,label\n,cat\n", "1 of 1 rows name no image"),
    ],
)
def test_damaged_files_are_named_with_what_is_wrong(tmp_path, name, text, message):
    numbered(tmp_path, 1)
    with pytest.raises(DataError) as error:
        open_data(write(tmp_path / name, text))
    assert f"{name}: {message}" in str(error.value)


def test_text_that_is_not_utf_8_is_named(tmp_path):
    with pytest.raises(DataError, match=r"a\.csv: not UTF-8 text, from byte 18 on; save it again"):
        open_data(write(tmp_path / "a.csv", "image,label\n1.png,ö\n", "latin-1"))


# Fingerprints


def test_the_fingerprint_changes_with_labels_and_images(tmp_path):
    numbered(tmp_path)
    file = write(tmp_path / "a.csv", CATS)
    first, again = open_data(file).train.fingerprint(), open_data(file).train.fingerprint()
    write(file, CATS.replace("2.png,dog", "2.png,cat").replace("3.png,cat", "3.png,dog"))
    relabelled = open_data(file).train.fingerprint()
    write_images(tmp_path, "9.png", "1.png")
    write(file, CATS)
    assert first == again
    assert len({first, relabelled}) == 2
