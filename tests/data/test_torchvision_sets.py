"""Published data sets as torchvision lays them out, and pickles of which nothing is run."""

import io
import json
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from vitkit.data.checks import DataError
from vitkit.data.formats.plain_pickle import Built, PickleError, array_of, load_plain
from vitkit.data.opening import open_data
from vitkit.data.source import Source

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_image(path: Path, value: int = 0) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(file, "JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())


def labels_of(source: Source | None) -> dict[str, str]:
    assert source is not None
    return {source.key(n): source.class_names[source.labels[n]] for n in range(len(source))}


def pixels(first: int, number: int) -> np.ndarray:
    random = np.random.default_rng(first)
    return random.integers(0, 256, (number, 3072), dtype=np.uint8)


# CIFAR


def write_pickle(path: Path, content, protocol: int = 2) -> None:
    """As Python 2 and an old numpy wrote it: with the module's old name."""
    data = pickle.dumps(content, protocol)
    if protocol < 4:  # later, names have lengths
        data = data.replace(b"numpy._core", b"numpy.core")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def cifar10(root: Path, protocol: int = 2) -> Path:
    folder = root / "cifar-10-batches-py"
    write_pickle(folder / "batches.meta", {"label_names": NAMES, "num_vis": 3072}, protocol)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        content = {
            "batch_label": name, "labels": [number, 9], "data": pixels(number, 2),
            "filenames": ["a.png", "b.png"],
        }  # fmt: skip
        write_pickle(folder / name, content, protocol)
    return folder


@pytest.mark.parametrize("protocol", range(5))
def test_cifar_10_is_read_from_its_pickles(tmp_path, protocol):
    splits = open_data(cifar10(tmp_path, protocol))
    assert splits.val is None
    assert splits.test is not None
    assert splits.train.class_names == splits.test.class_names == NAMES
    assert splits.train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert splits.test.labels.tolist() == [5, 9]
    np.testing.assert_array_equal(splits.train.image(4), pixels(2, 2)[0].reshape(3, 32, 32))
    assert (splits.train.key(4), splits.test.key(0)) == ("train/4", "test/0")


def test_pickles_of_python_2_are_read(tmp_path):
    """Its texts are bytes, and so are the pixels: as the published files are."""
    folder, batch = cifar10(tmp_path), pixels(7, 2)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x08cnumpy\nndarray\nq\x09K\x00\x85U\x01b\x87Rq\x0a"
        b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\x0bU\x02u1K\x00K\x01\x87Rq\x0c"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + len(batch.tobytes()).to_bytes(4, "little") + batch.tobytes() + b"q\x0dtb"
    )
    content = b"\x80\x02}q\x01(U\x04dataq\x02" + array + b"U\x06labels]q\x03(K\x03K\x04eu."
    assert set(pickle.loads(content, encoding="bytes")) == {b"data", b"labels"}
    (folder / "test_batch").write_bytes(content)
    test = open_data(folder).test
    assert test is not None
    assert test.labels.tolist() == [3, 4]
    np.testing.assert_array_equal(test.image(1), batch[1].reshape(3, 32, 32))


def test_the_folder_that_torchvision_was_given_is_data_too(tmp_path):
    cifar10(tmp_path / "data" / "downloads")
    (tmp_path / "data" / "downloads" / "cifar-10-python.tar.gz").write_bytes(b"")
    assert len(open_data(tmp_path / "data" / "downloads").train) == 10
    assert len(open_data(tmp_path / "data").train) == 10


def test_cifar_100_has_its_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    names = [f"fine {n}" for n in range(100)]
    write_pickle(folder / "meta", {"fine_label_names": names, "coarse_label_names": ["x"]})
    for name in ("train", "test"):
        content = {b"data": pixels(1, 3), b"fine_labels": [99, 0, 7], b"coarse_labels": [1, 2, 3]}
        write_pickle(folder / name, content)
    splits = open_data(tmp_path)
    assert splits.train.class_names == names
    assert splits.train.labels.tolist() == [99, 0, 7]


def test_the_binary_versions_hold_the_same(tmp_path):
    ten = tmp_path / "cifar-10-batches-bin"
    ten.mkdir()
    (ten / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        rows = np.hstack([np.array([[number], [9]], np.uint8), pixels(number, 2)])
        (ten / f"{name}.bin").write_bytes(rows.tobytes())
    binary, pickled = open_data(ten), open_data(cifar10(tmp_path / "py"))
    assert binary.train.class_names == NAMES
    assert binary.train.fingerprint() == pickled.train.fingerprint()

    hundred = tmp_path / "cifar-100-binary"
    hundred.mkdir()
    (hundred / "fine_label_names.txt").write_text("\n".join(f"f{n}" for n in range(100)))
    for name in ("train", "test"):
        rows = np.hstack([np.array([[1, 99]], np.uint8), pixels(0, 1)])
        (hundred / f"{name}.bin").write_bytes(rows.tobytes())
    assert open_data(hundred).train.labels.tolist() == [99]


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_pickle_is_refused_and_nothing_in_it_is_run(tmp_path, protocol):
    folder = cifar10(tmp_path)
    data = {"data": Harm(tmp_path / "harm"), "labels": [0]}
    (folder / "data_batch_3").write_bytes(pickle.dumps(data, protocol))
    with pytest.raises(DataError, match=r"data_batch_3: not as CIFAR is published, .* was run"):
        open_data(folder)
    assert not (tmp_path / "harm").exists()
    pickle.loads((folder / "data_batch_3").read_bytes())
    assert (tmp_path / "harm").exists()  # Python's own reader would have run it


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02}q\x01",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
        b"(S'x'\nios\nsystem\n.",
        b"\x80\x02cnumpy\ndtype\n(cnumpy\ndtype\nI1\ntR\x81.",
        b"Pid\n.",
        b"\x82\x01.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02U\xff.",
        b"t.",
        b"(.",
        b"}(K\x01u.",
        b"]K\x01K\x02s.",
        b"h\x05.",
        b"NR.",
        b"cnumpy\nndarray\nNb.",
    ],
)
def test_whatever_is_not_plain_is_a_pickle_error(data):
    with pytest.raises(PickleError):
        load_plain(data)


def test_keys_that_would_take_for_ever_to_hash_are_refused():
    doubled = b"K\x01\x85" + b"q\x00h\x00\x86" * 60
    began = time.perf_counter()
    with pytest.raises(PickleError, match="odd keys"):
        load_plain(b"}" + doubled + b"K\x01s.")
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("protocol", range(5))
def test_plain_things_are_read_as_they_were_written(protocol):
    value = {"a": [1, -5, 2**40, True, None, 1.5], "b": ("x", (), (1, 2, 3, 4)), "ö": b"\xff\0"}
    assert load_plain(pickle.dumps(value, protocol)) == value


def test_arrays_of_other_kinds_are_no_arrays():
    def read(array) -> np.ndarray | None:
        return array_of(load_plain(pickle.dumps(array, 2)))

    flat = np.arange(6, dtype=np.uint8)
    np.testing.assert_array_equal(read(flat.reshape(2, 3)), flat.reshape(2, 3))
    for other in (flat.astype(np.int64), np.asfortranarray(flat.reshape(2, 3))):
        assert read(other) is None
    assert array_of(b"123") is None


def test_an_array_of_another_shape_than_its_bytes_is_no_array():
    kind = Built("numpy dtype", ("u1",))
    for shape in [(2, 3), (2, 2), (-1, -4), (4.0,), ()]:
        state = (1, shape, kind, False, b"1234")
        found = array_of(Built("numpy.core.multiarray _reconstruct", (), state))
        assert (found is not None) == (shape == (2, 2))


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [0]}, {"labels": None}, {"labels": ["a", "b"]}, {"data": b"123"},
        {"data": np.zeros((2, 3071), np.uint8)}, {"data": np.zeros((2, 3072), np.float32)},
    ],
)  # fmt: skip
def test_a_batch_that_is_not_as_cifar_has_it_is_named(tmp_path, change):
    folder = cifar10(tmp_path)
    content = {"labels": [0, 1], "data": pixels(0, 2), **change}
    write_pickle(folder / "test_batch", content)
    with pytest.raises(DataError, match=r"test_batch: expected 'data', uint8 \(N, 3072\), and 'la"):
        open_data(folder)


def test_a_batch_that_is_missing_or_cut_is_named(tmp_path):
    folder = cifar10(tmp_path)
    content = (folder / "data_batch_2").read_bytes()
    (folder / "data_batch_2").write_bytes(content[:3000])
    with pytest.raises(
        DataError, match=r"data_batch_2: not as CIFAR is published, a damaged pickl"
    ):
        open_data(folder)
    (folder / "data_batch_2").unlink()
    with pytest.raises(DataError, match=r"data_batch_2: the file cannot be read .*No such file"):
        open_data(folder)


# Pets and flowers


def pets(root: Path) -> Path:
    folder = root / "oxford-iiit-pet"
    lists = {
        "trainval.txt": ["Abyssinian_100 1 1 1", "american_bulldog_12 2 2 1"],
        "test.txt": ["#Image CLASS-ID SPECIES BREED ID", "american_bulldog_1 2 2 1"],
    }
    for name, lines in lists.items():
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        (folder / "annotations" / name).write_text("\n".join(lines) + "\n")
        for line in lines:
            if not line.startswith("#"):
                write_image(folder / "images" / f"{line.split()[0]}.jpg")
    return folder


@pytest.mark.parametrize("above", [False, True])
def test_pets_are_named_by_their_breeds(tmp_path, above):
    splits = open_data(pets(tmp_path).parent if above else pets(tmp_path))
    assert labels_of(splits.train) == {
        "images/Abyssinian_100.jpg": "Abyssinian",
        "images/american_bulldog_12.jpg": "american bulldog",
    }
    assert labels_of(splits.test) == {"images/american_bulldog_1.jpg": "american bulldog"}


def test_pets_that_are_missing_are_counted(tmp_path):
    (pets(tmp_path) / "images" / "Abyssinian_100.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images are missing: images/Abyssinian_100\.jpg"):
        open_data(tmp_path)


def test_a_list_of_pets_cannot_lead_elsewhere(tmp_path):
    (pets(tmp_path) / "annotations" / "test.txt").write_text("../../x_1 1 1 1\n")
    with pytest.raises(DataError, match=r"test\.txt: found '../../x_1 1 1 1'; expected lines such"):
        open_data(tmp_path)


def flowers(root: Path) -> Path:
    folder = root / "flowers-102"
    for number in range(1, 6):
        write_image(folder / "jpg" / f"image_{number:05}.jpg", number)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[77, 1, 102, 5, 5]], np.uint8)})
    ids = {"trnid": [[5, 1]], "valid": [[3]], "tstid": [[2, 4]]}
    savemat(folder / "setid.mat", {key: np.array(value) for key, value in ids.items()})
    return folder


def test_flowers_have_three_splits_and_are_called_by_their_numbers(tmp_path):
    splits = open_data(flowers(tmp_path).parent)
    assert labels_of(splits.train) == {"jpg/image_00005.jpg": "5", "jpg/image_00001.jpg": "77"}
    assert labels_of(splits.val) == {"jpg/image_00003.jpg": "102"}
    assert labels_of(splits.test) == {"jpg/image_00002.jpg": "1", "jpg/image_00004.jpg": "5"}
    assert splits.train.class_names == [str(number) for number in range(1, 103)]


def test_flowers_have_names_where_a_list_of_them_is_there(tmp_path):
    names = {str(number): f"flower {number}" for number in range(1, 103)}
    (flowers(tmp_path) / "cat_to_name.json").write_text(json.dumps(names))
    assert labels_of(open_data(tmp_path).val) == {"jpg/image_00003.jpg": "flower 102"}


@pytest.mark.parametrize("content", [b"", b"x" * 500, b"MATLAB 5.0 MAT-file" + b"\0" * 200])
def test_a_damaged_list_of_flowers_is_named(tmp_path, content):
    (flowers(tmp_path) / "setid.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"setid\.mat: not readable as a MATLAB file with 'trnid'"):
        open_data(tmp_path)


# ImageNet

WNIDS = ["n01440764", "n02012849", "n03126707"]
WORDS = {
    "n01440764": ("tench", "Tinca tinca"), "n02012849": ("crane",), "n03126707": ("crane",),
}  # fmt: skip
HUMAN = ["tench", "crane (n02012849)", "crane (n03126707)"]


def imagenet(root: Path, flat: bool) -> Path:
    for number, wnid in enumerate(WNIDS):
        write_image(root / "train" / wnid / f"{wnid}_1.JPEG", number)
        name = f"ILSVRC2012_val_{number + 1:08}.JPEG"
        write_image(root / "val" / name if flat else root / "val" / wnid / name)
    return root


def devkit(root: Path, order=(3, 1, 2)) -> None:
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    synsets = np.array([(n, wnid, "x") for n, wnid in enumerate(WNIDS, 1)], dtype=kind)
    savemat(folder / "meta.mat", {"synsets": synsets.reshape(-1, 1)})
    text = "".join(f"{number}\n" for number in order)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(text)


def test_imagenet_in_folders_is_named_by_meta_bin(tmp_path):
    torch.save((WORDS, []), imagenet(tmp_path, flat=False) / "meta.bin")
    splits = open_data(tmp_path)
    assert splits.val is not None
    assert splits.train.class_names == splits.val.class_names == HUMAN
    assert splits.train.key(0) == "train/n01440764/n01440764_1.JPEG"


def test_without_lists_the_classes_are_called_by_their_folders(tmp_path):
    splits = open_data(imagenet(tmp_path, flat=False))
    assert splits.train.class_names == WNIDS


def test_flat_validation_images_have_the_labels_of_the_devkit(tmp_path):
    devkit(imagenet(tmp_path, flat=True))
    splits = open_data(tmp_path)
    assert splits.val is not None
    assert [splits.val.class_names[label] for label in splits.val.labels] == [
        "n03126707", "n01440764", "n02012849",
    ]  # fmt: skip


def test_flat_validation_images_have_the_labels_of_meta_bin(tmp_path):
    torch.save((WORDS, WNIDS[::-1]), imagenet(tmp_path, flat=True) / "meta.bin")
    val = open_data(tmp_path).val
    assert list(labels_of(val).values()) == HUMAN[::-1]


@pytest.mark.parametrize("word", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_imagenet_as_kaggle_lays_it_out(tmp_path, word):
    imagenet(tmp_path / "ILSVRC" / "Data" / "CLS-LOC", flat=True)
    write_image(tmp_path / "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG")
    names = "".join(f"{wnid} {', '.join(words)}\n" for wnid, words in WORDS.items())
    (tmp_path / "LOC_synset_mapping.txt").write_text(names)
    rows = "".join(
        f"ILSVRC2012_val_{n:08},{wnid} 1 2 3 4 {wnid} 5 6 7 8\n"
        for n, wnid in zip((2, 3, 1), WNIDS, strict=True)
    )
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
    splits = open_data(tmp_path / word)
    assert splits.train.class_names == HUMAN
    assert list(labels_of(splits.val).values()) == [HUMAN[2], HUMAN[0], HUMAN[1]]


def test_flat_validation_images_without_labels_say_what_would_help(tmp_path):
    imagenet(tmp_path, flat=True)
    with pytest.raises(
        DataError,
        match=r"3 images such as ILSVRC2012_val_00000001\.JPEG without .*"
        r"put meta\.bin, the folder ILSVRC2012_devkit_t12 or LOC",
    ):
        open_data(tmp_path)  # fmt: skip


def test_a_devkit_of_other_images_is_an_error(tmp_path):
    devkit(imagenet(tmp_path, flat=True), order=(1, 2))
    with pytest.raises(DataError, match=r"has labels for 2 images, but val/ holds 3"):
        open_data(tmp_path)


def test_a_meta_bin_with_code_in_it_is_refused(tmp_path):
    torch.save(Harm(tmp_path / "harm"), imagenet(tmp_path, flat=True) / "meta.bin")
    with pytest.raises(DataError, match=r"meta\.bin: not readable as torchvision's list"):
        open_data(tmp_path)
    assert not (tmp_path / "harm").exists()
