"""Tar shards give their images and labels where they lie; hostile ones a sentence."""

import gzip
import io
import json
import os
import resource
import tarfile
import threading

import pytest
from test_sources import encoded, value_of

from vitkit.data.checks import DataError
from vitkit.data.indexes.index import build_index, open_index, write_index
from vitkit.data.opening import held_out, open_data
from vitkit.data.source import Concatenated, Splits, Subset, Without
from vitkit.data.tars import opening as tar_shards
from vitkit.data.tars import samples as tar_samples
from vitkit.data.tars import shards as shard_files
from vitkit.data.tars.opening import is_tar, open_tars, tar_files, without_braces
from vitkit.errors import UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VITKIT_CACHE", str(folder))
    return folder


def write_tar(path, members, format=tarfile.PAX_FORMAT):
    """A tar of {name: content}; images for numbers, text for text, a TarInfo as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            data = encoded(content) if isinstance(content, int) else content
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder, shards=3, each=4, classes=2, start=1):
    """Shards of images numbered from `start`, each labelled by its number."""
    paths = []
    for shard in range(shards):
        numbers = range(start + shard * each, start + (shard + 1) * each)
        members = {}
        for number in numbers:
            members |= {f"{number:04}.png": number, f"{number:04}.cls": str(number % classes)}
        paths.append(write_tar(folder / f"{shard:03}.tar", members))
    return paths


def values(source):
    return [value_of(source, index) for index in range(len(source))]


def keys(source):
    return [source.key(index) for index in range(len(source))]


def special(name, kind, link="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def refused(path, match):
    with pytest.raises(DataError, match=match):
        open_tars([path])


def test_shards_give_images_labels_and_keys_in_order(tmp_path):
    write_shards(tmp_path)
    train = open_tars([f"{tmp_path}/{{000..002}}.tar"]).train
    assert values(train) == list(range(1, 13))
    assert train.labels.tolist() == [number % 2 for number in range(1, 13)]
    assert keys(train)[:2] == ["0001", "0002"]
    assert train.name(4) == f"{tmp_path}/001.tar 0005"
    assert train.class_names == ["0", "1"]
    assert train.shard_lengths is None


@pytest.mark.parametrize("words", [
    ["{000..002}.tar"], ["{000,001}.tar", "002.tar"], ["*.tar"], ["00[0-2].tar"],
    ["000.tar", "001.tar", "002.tar"], ["00{0..2}.tar"],
])  # fmt: skip
def test_words_for_shards(tmp_path, words):
    write_shards(tmp_path)
    assert len(open_tars([tmp_path / word for word in words]).train) == 12


@pytest.mark.parametrize("word, expected", [
    ("{8..11}", ["8", "9", "10", "11"]), ("{08..10}", ["08", "09", "10"]),
    ("{a,b}{0..1}", ["a0", "a1", "b0", "b1"]), ("x", ["x"]), ("{a}", ["{a}"]),
])  # fmt: skip
def test_braces(word, expected):
    assert without_braces(word) == expected


@pytest.mark.parametrize("word", ["{5..2}.tar", "{0..99999999999999}.tar", "{0..9999}{0..9999}"])
def test_braces_that_name_none_or_too_many_are_refused(word):
    with pytest.raises(UsageError, match="expected 1 to 1,000,000"):
        without_braces(word)


def test_a_folder_of_shards(tmp_path):
    write_shards(tmp_path / "shards")
    assert len(open_tars(tar_files(tmp_path / "shards")).train) == 12


@pytest.mark.parametrize("beside", ["cat/1.png", "train/cat/1.png", "1.png", "val/x"])
def test_tars_beside_what_was_packed_into_them_are_no_shards(tmp_path, beside):
    write_shards(tmp_path)
    (tmp_path / beside).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / beside).write_bytes(encoded(1))
    assert tar_files(tmp_path) == []


@pytest.mark.parametrize("names", [
    ("train-0.tar", "val-0.tar", "test-0.tar"), ("train/0.tar", "val/0.tar", "test/0.tar"),
    ("train_0.tar", "validation_0.tar", "test.tar"),
])  # fmt: skip
def test_splits_by_the_names_of_shards_or_folders(tmp_path, names):
    for number, name in enumerate(names):
        write_tar(tmp_path / name, {"a.png": number * 2 + 1, "a.cls": "0", "b.png": number * 2 + 2,
                                    "b.cls": "1"})  # fmt: skip
    splits = open_tars(tar_files(tmp_path))
    found = [values(part) for part in (splits.train, splits.val, splits.test)]
    assert found == [[1, 2], [3, 4], [5, 6]]
    assert values(open_tars([tmp_path / names[1]]).train) == [3, 4]  # all there is


def test_missing_shards_are_counted_and_named(tmp_path):
    write_shards(tmp_path)
    with pytest.raises(DataError, match=r"2 of 5 shards are not there: .*003.tar, .*004.tar"):
        open_tars([f"{tmp_path}/{{000..004}}.tar"])


def test_a_shard_named_twice_is_an_error(tmp_path):
    write_shards(tmp_path)
    with pytest.raises(DataError, match="1 shards are named twice"):
        open_tars([f"{tmp_path}/*.tar", tmp_path / "001.tar"])


@pytest.mark.parametrize("label, names", [
    ({"cls": "cat"}, ["cat"]), ({"txt": " cat\n"}, ["cat"]), ({"cls": "1\n"}, ["0", "1"]),
    ({"json": '{"label": "cat"}'}, ["cat"]), ({"json": '{"class": 1}'}, ["0", "1"]),
    ({"json": "1"}, ["0", "1"]),
    ({"cls": "1", "txt": "a caption", "json": '{"id": 5}'}, ["0", "1"]),
    ({"json": '{"id": 5}', "txt": "cat"}, ["cat"]), ({"json": '{"label": 1.0}'}, ["0", "1"]),
])  # fmt: skip
def test_labels(tmp_path, label, names):
    members = {"a.png": 1} | {f"a.{kind}": text for kind, text in label.items()}
    train = open_tars([write_tar(tmp_path / "0.tar", members)]).train
    assert train.class_names == names
    assert train.target(0) == len(names) - 1


def test_several_labels_an_image(tmp_path):
    members = {"a.png": 1, "a.json": '{"labels": [2, 0]}', "b.png": 2, "b.json": '{"labels": []}',
               "c.png": 3, "c.json": '{"labels": [1]}'}  # fmt: skip
    write_tar(tmp_path / "0.tar", members)
    write_tar(tmp_path / "1.tar", {"d.png": 4, "d.json": '{"labels": [1, 2]}'})
    train = open_tars(tar_files(tmp_path)).train
    assert train.multi_label
    assert [train.target(row).tolist() for row in range(4)] == [
        [1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 1, 1],
    ]  # fmt: skip


@pytest.mark.parametrize("name, content", [
    ("classes.txt", "cat\ndog\n\n"), ("class_names.json", '["cat", "dog"]'),
    ("class_names.json", '{"0": "cat", "1": "dog"}'), ("../classes.txt", "cat\ndog"),
])  # fmt: skip
def test_names_of_classes_beside_the_shards(tmp_path, name, content):
    paths = write_shards(tmp_path / "train", shards=1)
    (tmp_path / "train" / name).write_text(content)
    assert open_tars(paths).train.class_names == ["cat", "dog"]


def test_changed_names_of_classes_are_noticed(tmp_path):
    paths = write_shards(tmp_path, shards=1)
    for names in (["a", "b"], ["c", "d"]):
        (tmp_path / "classes.txt").write_text("\n".join(names))
        assert open_tars(paths).train.class_names == names


@pytest.mark.parametrize("content", ["[", "3", '{"0": "a", "2": "b"}', "[1]", "[" * 99999])
def test_names_of_classes_that_are_none(tmp_path, content):
    paths = write_shards(tmp_path, shards=1)
    (tmp_path / "class_names.json").write_text(content)
    with pytest.raises(DataError, match="expected the names of the classes"):
        open_tars(paths)


@pytest.mark.parametrize("top", ["", "train/", "./", "data/imagenet/"])
def test_class_folders_in_tars(tmp_path, top):
    names = ("n01/a.JPEG", "n01/b.1.JPEG", "n01/b.2.JPEG", "n02/deep/a.JPEG")
    write_tar(tmp_path / "0.tar", {top + name: place + 1 for place, name in enumerate(names)})
    train = open_tars([tmp_path / "0.tar"]).train
    assert values(train) == [1, 2, 3, 4]
    assert train.class_names == ["n01", "n02"]
    assert train.labels.tolist() == [0, 0, 0, 1]
    assert train.key(1) == top.removeprefix("./") + "n01/b.1.JPEG"


def test_other_members_are_passed_over(tmp_path):
    members = {"README.txt": "hello there", "._a.png": 9, "a.png": 1, "a.mask.png": 2, "a.cls": "0",
               "a.json": '{"x": 1}', "__MACOSX/a.png": 9, "b.seg.png": 3, "b.cls": "1",
               "b.npy": "x"}  # fmt: skip
    assert values(open_tars([write_tar(tmp_path / "0.tar", members)]).train) == [1, 3]


def test_members_of_a_name_need_not_be_neighbours(tmp_path):
    members = {"b.cls": "1", "a.png": 1, "b.png": 2, "a.cls": "0"}
    assert open_tars([write_tar(tmp_path / "0.tar", members)]).train.labels.tolist() == [0, 1]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names(tmp_path, format):
    name = "d/" * 60 + "ünïcode" * 30
    members = {f"{name}.png": 5, f"{name}.cls": "0"}
    train = open_tars([write_tar(tmp_path / "0.tar", members, format)]).train
    assert train.key(0) == name
    assert values(train) == [5]


# What is refused


def test_links_devices_and_names_that_lead_out_are_counted_and_named(tmp_path):
    members = [("a.png", 1), ("a.cls", "0"), ("", special("soft.png", tarfile.SYMTYPE, "/etc/x")),
               ("", special("hard.png", tarfile.LNKTYPE, "a.png")),
               ("", special("pipe.png", tarfile.FIFOTYPE)), ("", special("dev", tarfile.CHRTYPE)),
               ("../../evil.png", 2), ("/abs.png", 3), ("x/../y.png", 4)]  # fmt: skip
    path = write_tar(tmp_path / "0.tar", members)
    refused(path, r"2 links \(.*soft.png, .*hard.png\); 2 devices or other special files "
                  r"\(.*pipe.png, .*dev\); 3 names that lead out of the tar file")  # fmt: skip


def test_sparse_members_are_refused(tmp_path):
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,512",
                        "GNU.sparse.size": "9999"}  # fmt: skip
    info.size = 0
    refused(write_tar(tmp_path / "0.tar", [("a.png", info)]), "1 sparse files")


@pytest.mark.parametrize("name, pack", [("0.tar.gz", gzip.compress), ("0.tgz", gzip.compress)])
def test_compressed_tars_are_refused_with_what_to_do(tmp_path, name, pack):
    plain = write_tar(tmp_path / "0.tar", {"a.png": 1, "a.cls": "0"})
    (tmp_path / name).write_bytes(pack(plain.read_bytes()))
    assert is_tar(tmp_path / name)
    refused(tmp_path / name, "compressed tar file.*gunzip")
    plain.write_bytes(pack(plain.read_bytes()))
    refused(plain, "compressed with gzip.*run `gunzip`")


def test_missing_labels_are_counted_and_named(tmp_path):
    members = {"a.png": 1, "a.cls": "0", "b.png": 2, "c.png": 3, "d.png": 4, "d.cls": " "}
    refused(
        write_tar(tmp_path / "0.tar", members),
        r"3 images without a label \(.*0.tar b, .* c, .* d\)",
    )


def test_a_shard_without_labels_among_others_is_an_error(tmp_path):
    write_shards(tmp_path, shards=1)
    write_tar(tmp_path / "9.tar", {"x/e.png": 1, "x/f.png": 2})
    with pytest.raises(DataError, match="2 images without a label"):
        open_tars(tar_files(tmp_path))


def test_a_test_split_without_labels_is_passed_over(tmp_path):
    write_tar(tmp_path / "train-0.tar", {"a.png": 1, "a.cls": "0", "b.png": 2, "b.cls": "1"})
    write_tar(tmp_path / "test-0.tar", {"a.png": 3, "b.png": 4})
    with pytest.warns(UserWarning, match="the test split is passed over"):
        splits = open_tars(tar_files(tmp_path))
    assert values(splits.train) == [1, 2]
    assert splits.test is None


def test_splits_within_a_tar_are_not_taken_for_classes(tmp_path):
    members = {"x/train/cat/1.png": 1, "x/train/dog/2.png": 2, "x/val/cat/3.png": 3}
    refused(write_tar(tmp_path / "0.tar", members), "pack each split into shards of its own")


def test_images_without_labels_and_folders_are_an_error(tmp_path):
    refused(write_tar(tmp_path / "0.tar", {"a.png": 1, "b.png": 2}), "2 images without a label")


def test_names_that_come_twice_are_an_error_within_a_split(tmp_path):
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        write_tar(tmp_path / name, {"a.png": 1, "a.cls": "0"})
    with pytest.raises(DataError, match=r"1 names that come twice \(.*train-1.tar a\)"):
        open_tars(tar_files(tmp_path))
    os.remove(tmp_path / "train-1.tar")
    assert len(open_tars(tar_files(tmp_path)).val) == 1


@pytest.mark.parametrize("members, words", [
    ({"a.png": 1, "a.cls": "0", "a.jpg": 2}, "1 names with several images"),
    ({"a.png": 1, "a.cls": "0", "b.cls": "1"}, "1 labels without an image"),
    ({"a.png": 1, "a.json": "{"}, "1 labels that cannot be read"),
    ({"a.png": 1, "a.json": '{"label": NaN}'}, "1 labels that cannot be read"),
    ({"a.png": 1, "a.json": '{"label": true}'}, "1 labels that cannot be read"),
    ({"a.png": 1, "a.json": "[" * 9999}, "1 labels that cannot be read"),
    ({"a.png": 1, "a.cls": b"\xff\xfe"}, "1 labels that cannot be read"),
    ({"a.png": 1, "a.cls": "x" * 5000}, "1 labels of more than 4096 bytes"),
    ({"a.png": 1, "a.cls": "-1"}, "1 labels are out of range, -1"),
    ({"a.png": 1, "a.cls": "999999"}, "1 labels are out of range, 999999"),
    ({"a.png": 1, "a.cls": "0", "b.png": 2, "b.cls": "cat"}, "some labels are names"),
    ({"a.png": 1, "a.cls": "0", "b.png": 2, "b.json": "[1]"}, "only some of the labels are lists"),
    ({"a.npy": "x"}, "found no images"),
])  # fmt: skip
def test_what_a_set_must_not_hold(tmp_path, members, words):
    refused(write_tar(tmp_path / "0.tar", members), words)


def test_names_beside_that_lack_a_label_are_an_error(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.png": 1, "a.cls": "cat", "b.png": 2, "b.cls": "cow"})
    (tmp_path / "classes.txt").write_text("cat\ndog")
    refused(tmp_path / "0.tar", "1 labels are not among the names of the classes: cow")


def test_captions_are_not_taken_for_classes(tmp_path):
    members = {}
    for number in range(1100):
        members |= {f"{number}.png": b"x", f"{number}.txt": f"a photo, number {number} of many"}
    refused(write_tar(tmp_path / "0.tar", members), "captions perhaps")


def damaged(path, how):
    data = bytearray(path.read_bytes())
    if how == "cut in a file":
        data = data[:1200]
    elif how == "end missing":
        data = data[: data.rindex(b"0" + bytes(511)) + 512]
    elif how == "header":
        data[1024:1536] = bytes(range(256)) * 2
    elif how == "two in one":
        data = data + data
    elif how == "text":
        data = b"not a tar file at all " * 100
    elif how == "empty":
        data = b""
    path.write_bytes(data)


@pytest.mark.parametrize(
    "how", ["cut in a file", "end missing", "header", "two in one", "text", "empty"]
)
def test_damaged_tars_are_refused(tmp_path, how):
    path = write_tar(tmp_path / "0.tar", {"a.cls": "0", "a.png": 1, "b.png": 2, "b.cls": "1"})
    damaged(path, how)
    refused(path, "damaged tar file")


def header(name, size, kind=b"0"):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, 0
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_gigabyte_of_header_costs_no_memory(tmp_path, kind):
    path = tmp_path / "0.tar"
    path.write_bytes(header("a", b"%011o\0" % 2**30, kind))
    os.truncate(path, 2**30 + 10240)  # sparse on disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, "a header of more than 1048576 bytes")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\xff" + b"\xff" * 9 + b"\xfc\x00"])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L"])
def test_negative_sizes_end_and_are_refused(tmp_path, size, kind):
    path = tmp_path / "0.tar"
    path.write_bytes(header("a.png", size, kind) + bytes(4096))
    refused(path, "damaged tar file")


def test_a_sparse_file_of_negative_size_does_not_go_round_for_ever(tmp_path):
    path = tmp_path / "0.tar"
    first = header("a.png", b"%011o\0" % 512) + bytes(512)
    path.write_bytes(first + header("b.png", b"\xff" * 10 + b"\xfe\x00", b"S") + bytes(4096))
    refused(path, "damaged tar file|sparse")


def test_mutated_tars_raise_only_sentences(tmp_path):
    path = write_shards(tmp_path, shards=1, each=3)[0]
    good = path.read_bytes()
    for place in range(0, len(good), 37):
        data = bytearray(good)
        data[place] ^= 0xFF
        path.write_bytes(data)
        try:
            train = open_tars([path]).train
        except DataError:
            continue
        for index in range(len(train)):
            train.encoded(index)


# The index that is made of them


def test_only_the_first_opening_reads_the_shards(tmp_path, monkeypatch):
    paths = write_shards(tmp_path)
    first = open_tars(paths).train
    monkeypatch.setattr(tar_shards, "make_index", None)
    again = open_tars(paths).train
    assert values(again) == values(first)
    assert again.fingerprint() == first.fingerprint()


def test_a_shard_that_changed_is_read_again(tmp_path, cache):
    paths = write_shards(tmp_path)
    before = open_tars(paths).train.fingerprint()
    write_tar(paths[1], {"new.png": 77, "new.cls": "1"})
    after = open_tars(paths).train
    assert values(after) == [1, 2, 3, 4, 77, 9, 10, 11, 12]
    assert after.fingerprint() != before
    assert len(list((cache / "indexes").glob("*.index"))) == 1


def test_a_damaged_index_in_the_cache_is_made_again(tmp_path, cache):
    paths = write_shards(tmp_path)
    open_tars(paths)
    (index,) = (cache / "indexes").glob("*.index")
    (index / "labels.npy").write_bytes(b"")
    assert len(open_tars(paths).train) == 12
    (index / "index.json").write_bytes(b"{")
    assert len(open_tars(paths).train) == 12


def test_the_same_shards_elsewhere_have_the_same_fingerprint(tmp_path):
    one = open_tars(write_shards(tmp_path / "a")).train
    other = open_tars(write_shards(tmp_path / "b")).train
    assert one.fingerprint() == other.fingerprint()


def test_only_headers_and_labels_are_read(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "0.tar", {"a.png": b"x" * 10_000_000, "a.cls": "0"})
    read = []
    monkeypatch.setattr(tar_samples.FILES, "read",
                        lambda path, size, offset: read.append(size) or b"0")  # fmt: skip
    open_tars([path])
    assert read == [1]


def test_an_index_of_chosen_members_of_tars(tmp_path):
    train = open_tars(write_shards(tmp_path / "shards")).train
    chosen = Splits("chosen", Without(train, [0, 5, 6]), Subset(train, [6, 0]))
    index = write_index(tmp_path / "chosen.index", chosen, hash=True)
    opened = open_index(index)
    assert values(opened.train) == [2, 3, 4, 5, 8, 9, 10, 11, 12]
    assert keys(opened.train) == keys(chosen.train)
    assert values(opened.val) == [1, 7]  # by shard
    shards = json.loads((index / "index.json").read_text())["shards"]
    assert [len(shard["sha256"]) for shard in shards] == [64] * 3


def test_an_index_of_tars_joined_from_several_sets(tmp_path):
    one = open_tars(write_shards(tmp_path / "a", shards=2)).train
    other = open_tars(write_shards(tmp_path / "b", shards=1, start=51)).train
    joined = Splits("joined", Concatenated([one, other]))
    opened = open_index(write_index(tmp_path / "joined.index", joined))
    assert values(opened.train) == [1, 2, 3, 4, 5, 6, 7, 8, 51, 52, 53, 54]


@pytest.mark.parametrize("what", ["gone", "cut", "rewritten"])
def test_an_index_whose_shards_changed_is_refused(tmp_path, what):
    paths = write_shards(tmp_path / "shards")
    open_tars(paths)
    index = build_index(paths, tmp_path / "a.index")
    if what == "gone":
        paths[1].unlink()
    elif what == "cut":
        os.truncate(paths[1], 2048)
    else:
        write_tar(
            paths[1], {f"{n}.png": n for n in range(5, 9)} | {f"{n}.cls": "0" for n in range(4)}
        )
        os.truncate(paths[1], paths[0].stat().st_size)
    with pytest.raises(DataError, match=r"1 of 3 shards are .*001.tar first"):
        open_index(index)


def test_an_index_of_copied_shards_is_taken(tmp_path):
    paths = write_shards(tmp_path / "shards")
    index = build_index(paths, tmp_path / "a.index")
    for path in paths:
        os.utime(path, ns=(0, 0))
    assert len(open_index(index).train) == 12


def test_held_out_images_of_shards(tmp_path):
    splits = held_out(open_tars(write_shards(tmp_path)).train, "shards", share=0.5)
    assert sorted(values(splits.train) + values(splits.val)) == list(range(1, 13))


def test_many_threads_read_with_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "FILES", shard_files.OpenFiles(limit=2))
    paths = write_shards(tmp_path, shards=8)
    train = open_tars(paths).train
    wrong = []

    def read(offset):
        for place in range(64):
            index = (place * 7 + offset) % 32
            if value_of(train, index) != index + 1:
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(shard_files.FILES.files) <= 3


def test_a_shard_that_is_cut_while_in_use_is_an_error(tmp_path):
    paths = write_shards(tmp_path, shards=1)
    train = open_tars(paths).train
    os.truncate(paths[0], 600)
    with pytest.raises(OSError, match="ends before byte"):
        train.encoded(3)


@pytest.mark.parametrize("word", ["{000..002}.tar", "", "*.tar"])
def test_data_may_be_shards(tmp_path, word):
    write_shards(tmp_path / "shards")
    splits = open_data(tmp_path / "shards" / word)
    assert values(splits.train) == list(range(1, 13))
    assert splits.val is None


def test_several_words_for_shards_are_one_set(tmp_path):
    paths = write_shards(tmp_path)
    assert keys(open_data([str(path) for path in paths]).train)[4] == "0005"


def test_an_index_of_members_with_several_labels(tmp_path):
    members = {}
    for number, labels in enumerate([[2], [0, 1], [], [1, 2]]):
        members |= {f"{number}.png": number + 1, f"{number}.json": json.dumps({"labels": labels})}
    train = open_tars([write_tar(tmp_path / "0.tar", members)]).train
    opened = open_data(write_index(tmp_path / "a.index", Splits("", Subset(train, [3, 1, 2]))))
    assert values(opened.train) == [2, 3, 4]
    targets = [opened.train.target(index).tolist() for index in range(3)]
    assert targets == [[1, 1, 0], [0, 0, 0], [0, 1, 1]]


def test_a_cache_that_cannot_be_used_says_what_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("VITKIT_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(DataError, match="set VITKIT_CACHE to a folder"):
        open_tars(write_shards(tmp_path))
