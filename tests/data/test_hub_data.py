"""Data sets of Hugging Face: copies on disk, and the Hub behind a stand-in."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from vitkit.data.checks import DataError
from vitkit.data.opening import open_data
from vitkit.data.source import Source
from vitkit.errors import UsageError

datasets = pytest.importorskip("datasets")


def encoded(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def value_of(source: Source, index: int) -> int:
    return int(source.image(index)[0, 0, 0])


def dataset(values, labels, names=("cat", "dog"), label=None):
    """A data set of images of one colour each."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": label or datasets.ClassLabel(names=list(names))}
    )
    rows = {"image": [{"bytes": encoded(v), "path": None} for v in values], "label": labels}
    return datasets.Dataset.from_dict(rows, features=features)


def both_splits():
    return datasets.DatasetDict(
        train=dataset([1, 2, 3], [1, 0, 1]), validation=dataset([4, 5], [0, 1])
    )


@pytest.fixture
def hub(monkeypatch):
    """What `load_dataset` gives, and the calls of it."""
    state = {"given": both_splits(), "calls": []}

    def load(*args, **kwargs):
        state["calls"].append((args, kwargs))
        if isinstance(state["given"], Exception):
            raise state["given"]
        return state["given"]

    monkeypatch.setattr(datasets, "load_dataset", load)
    return state


# Copies on disk, which need nothing but pyarrow


def test_a_copy_on_disk_is_a_folder_of_splits(tmp_path):
    both_splits().save_to_disk(tmp_path / "copy", num_shards={"train": 2, "validation": 1})
    splits = open_data(tmp_path / "copy")
    assert splits.val is not None
    assert splits.train.class_names == ["cat", "dog"]
    assert splits.train.labels.tolist() == [1, 0, 1]
    assert [value_of(splits.train, n) for n in range(3)] == [1, 2, 3]
    assert [value_of(splits.val, n) for n in range(2)] == [4, 5]
    assert splits.train.key(2) == "train/data-00001-of-00002.arrow:0"


def test_a_copy_of_a_single_split_is_to_train_on(tmp_path):
    dataset([7, 8], [0, 1]).save_to_disk(tmp_path / "copy")
    splits = open_data(tmp_path / "copy")
    assert (len(splits.train), splits.val, splits.test) == (2, None, None)


def test_what_datasets_caches_beside_a_copy_is_not_read(tmp_path):
    dataset([7, 8], [0, 1]).save_to_disk(tmp_path)
    (tmp_path / "cache-0123.arrow").write_bytes(b"x")
    (tmp_path / "other.arrow").write_bytes(b"x")
    assert len(open_data(tmp_path).train) == 2


def test_arrow_files_alone_are_read_but_for_cached_ones(tmp_path):
    dataset([7, 8], [0, 1]).save_to_disk(tmp_path)
    (tmp_path / "state.json").unlink()
    (tmp_path / "cache-0123.arrow").write_bytes(b"x")
    assert len(open_data(tmp_path).train) == 2


def test_a_copy_of_which_files_are_missing_is_an_error(tmp_path):
    dataset([1, 2, 3], [0, 1, 0]).save_to_disk(tmp_path, num_shards=3)
    (tmp_path / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(
        DataError, match=r"1 of 3 arrow files are missing: data-00001-of-00003\.arr"
    ):
        open_data(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"_data_files": 3}', '{"_data_files": ["a"]}'])
def test_a_damaged_state_is_named(tmp_path, text):
    dataset([1, 2], [0, 1]).save_to_disk(tmp_path)
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(
        DataError, match=r"state\.json: not as `save_to_disk` of datasets writes it"
    ):
        open_data(tmp_path)


def test_a_state_cannot_lead_elsewhere(tmp_path):
    dataset([1, 2], [0, 1]).save_to_disk(tmp_path / "in")
    (tmp_path / "in" / "data-00000-of-00001.arrow").rename(tmp_path / "x.arrow")
    state = {"_data_files": [{"filename": "../x.arrow"}]}
    (tmp_path / "in" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=r"1 of 1 arrow files are missing: \.\./x\.arrow"):
        open_data(tmp_path / "in")


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_a_cut_arrow_file_is_named(tmp_path, kept):
    dataset(range(50), [0, 1] * 25).save_to_disk(tmp_path)
    file = tmp_path / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * kept)])
    with pytest.raises(DataError, match=r"arrow: not readable as arrow"):
        open_data(tmp_path)


def test_lists_of_classes_are_several_labels(tmp_path):
    kind = datasets.List(datasets.ClassLabel(names=["a", "b", "c"]))
    dataset([1, 2, 3], [[0, 2], [], [1, 1]], label=kind).save_to_disk(tmp_path)
    source = open_data(tmp_path).train
    assert source.multi_label
    assert source.class_names == ["a", "b", "c"]
    assert source.labels.toarray().astype(int).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    target = source.target(2)
    assert isinstance(target, np.ndarray)
    assert target.tolist() == [0, 1, 0]


def test_parquet_files_may_have_lists_of_labels(tmp_path):
    kind = datasets.List(datasets.ClassLabel(names=["a", "b", "c"]))
    dataset([1, 2], [[0, 2], [1]], label=kind).to_parquet(tmp_path / "train.parquet")
    source = open_data(tmp_path / "train.parquet").train
    assert source.class_names == ["a", "b", "c"]
    assert source.labels.toarray().astype(int).tolist() == [[1, 0, 1], [0, 1, 0]]


def test_a_snapshot_of_a_repository_has_its_files_in_data(tmp_path):
    (tmp_path / "README.md").write_text("x")
    for split, name in (("train", "train"), ("validation", "validation")):
        (tmp_path / "data").mkdir(exist_ok=True)
        both_splits()[split].to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    splits = open_data(tmp_path)
    assert splits.val is not None
    assert (len(splits.train), len(splits.val)) == (3, 2)


# The Hub


def test_the_hub_gives_splits_with_class_names(hub):
    splits = open_data("hf:owner/name")
    assert splits.name == "hf:owner/name"
    assert splits.val is not None
    assert splits.train.class_names == ["cat", "dog"]
    assert [value_of(splits.train, n) for n in range(3)] == [1, 2, 3]
    assert splits.val.labels.tolist() == [0, 1]
    assert (splits.train.key(1), splits.val.name(1)) == (
        "train:1",
        "hf:owner/name validation row 1",
    )


@pytest.mark.parametrize(
    ("word", "name", "config", "revision"),
    [
        ("hf:owner/na.me-1", "owner/na.me-1", None, None),
        ("hf:cifar10", "cifar10", None, None),
        ("hf:owner/name@v1.0", "owner/name", None, "v1.0"),
        ("hf:owner/name@refs/convert/parquet", "owner/name", None, "refs/convert/parquet"),
        ("hf:owner/name:small", "owner/name", "small", None),
        ("hf:owner/name@main:small", "owner/name", "small", "main"),
    ],
)
def test_words_have_a_revision_and_a_config(hub, word, name, config, revision):
    open_data(word)
    assert hub["calls"] == [((name, config), {"revision": revision})]  # and no remote code


@pytest.mark.parametrize("word", ["hf:", "hf:a/b/c", "hf:a b", "hf:a/b@", "hf:../x", "hf:a/b:c:d"])
def test_words_of_another_form_are_an_error(hub, word):
    with pytest.raises(UsageError, match=r"expected hf:owner/name, with @revision and :config"):
        open_data(word)
    assert hub["calls"] == []


def test_nothing_is_fetched_for_other_words(hub, tmp_path):
    both_splits().save_to_disk(tmp_path)
    open_data(tmp_path)
    assert hub["calls"] == []


def test_images_that_are_files_are_read_from_the_cache_alone(hub, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    for path in (cache / "1.png", tmp_path / "2.png"):
        path.write_bytes(encoded(9))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = {"image": [str(cache / "1.png"), str(tmp_path / "2.png")], "label": ["x", "y"]}
    hub["given"] = datasets.DatasetDict(train=datasets.Dataset.from_dict(rows, features=features))
    source = open_data("hf:owner/name").train
    assert value_of(source, 0) == 9
    assert source.encoded(1) == b""


def test_chosen_rows_are_the_rows(hub):
    hub["given"] = datasets.DatasetDict(train=both_splits()["train"].select([2, 0]))
    source = open_data("hf:owner/name").train
    assert [value_of(source, n) for n in range(2)] == [3, 1]


def test_other_splits_are_passed_over_and_a_lone_one_is_to_train_on(hub):
    hub["given"] = datasets.DatasetDict(both_splits(), extra=dataset([1], [0]))
    with pytest.warns(UserWarning, match="hf:owner/name: the splits extra are passed over"):
        assert len(open_data("hf:owner/name").train) == 3
    hub["given"] = datasets.DatasetDict(everything=dataset([1, 2], [0, 1]))
    assert len(open_data("hf:owner/name").train) == 2
    hub["given"] = datasets.DatasetDict(a=dataset([1], [0]), b=dataset([1], [0]))
    with pytest.raises(DataError, match="found the splits a, b; expected train"):
        open_data("hf:owner/name")


def test_a_test_split_without_labels_is_passed_over(hub):
    hub["given"] = datasets.DatasetDict(both_splits(), test=dataset([1, 2], [-1, -1]))
    with pytest.warns(UserWarning, match="the test split is passed over: .*first is -1"):
        assert open_data("hf:owner/name").test is None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("no network"), "cannot be fetched: no network"),
        (ValueError("Config name is missing.\nPick one"), r"\(name one of its configs after a col"),
    ],
)
def test_what_cannot_be_fetched_is_named(hub, error, message):
    hub["given"] = error
    with pytest.raises(DataError, match=message):
        open_data("hf:owner/name")


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"need the extra hub; pip install 'vitkit\[hub\]'"):
        open_data("hf:owner/name")


def test_the_fingerprint_changes_with_images_and_labels(hub):
    prints = []
    for values, labels in (([1, 2], [0, 1]), ([1, 2], [0, 1]), ([1, 3], [0, 1]), ([1, 2], [1, 0])):
        hub["given"] = datasets.DatasetDict(train=dataset(values, labels))
        prints.append(open_data("hf:owner/name").train.fingerprint())
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
