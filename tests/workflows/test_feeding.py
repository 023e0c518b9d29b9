"""Which images a run trains on, where they are kept, and that no such choice breaks a resume."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

import vitkit
from vitkit.cli import main
from vitkit.data.audit import modes_of_some
from vitkit.data.checks import DataError
from vitkit.data.indexes.index import build_index
from vitkit.data.opening import digits, open_data
from vitkit.data.pipeline import TrainingStream
from vitkit.data.source import ArraySource, Concatenated, Splits
from vitkit.errors import UsageError
from vitkit.training.config import DataConfig, TrainConfig
from vitkit.training.log import bound_by
from vitkit.training.stopping import Interrupted
from vitkit.training.world import World
from vitkit.workflows import feeding
from vitkit.workflows.feeding import choose_keep, loader_threads
from vitkit.workflows.task import open_task

FAST = {"steps": 6, "batch_size": 16, "quiet": True}
CPU = torch.device("cpu")
EVERYTHING = {
    "augment.level": "medium2", "augment.cutmix": 1.0, "augment.erase": 0.3,
    "augment.jitter": (0.2, 0.2, 0.2, 0.1), "data.repeats": 2, "data.balance": 0.5,
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITKIT_CACHE", str(tmp_path / "cache"))


def photos(folder, sizes=((30, 40), (50, 20), (24, 24)), each=12):
    """Two classes of noise, images of several sizes."""
    random = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (folder / kind).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 256, (*sizes[number % len(sizes)], 3), np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{number}.png")
    return folder


def weights(run) -> dict[str, torch.Tensor]:
    return vitkit.load(run.folder / "last").net.state_dict()


def assert_same(a, b) -> None:
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def record(run) -> dict:
    return json.loads((run.folder / "config.json").read_text())


# Crops


def test_crops_that_keep_the_aspect_are_the_same_to_the_bit_wherever_images_are_kept(tmp_path):
    """Others differ by a rounding between the one by one and the batched way."""
    words = FAST | {"augment.crop_aspect": "kept", "augment.crop_area": (0.64, 0.64)}
    device, none = (
        vitkit.pretrain("digits", out=tmp_path / keep, **words, **{"data.keep": keep})
        for keep in ("device", "none")
    )
    assert_same(device, none)
    varied = vitkit.pretrain("digits", out=tmp_path / "varied", **words | {
        "augment.crop_aspect": "varied"})  # fmt: skip
    assert not torch.equal(weights(varied)["patch_embedding.weight"],
                           weights(none)["patch_embedding.weight"])  # fmt: skip


# Where images are kept


def test_small_images_of_one_size_are_kept_on_the_device_unasked_and_that_is_recorded(tmp_path):
    run = vitkit.pretrain("digits", out=tmp_path / "run", **FAST)
    assert record(run)["resolved"]["keep"] == "device"


@pytest.mark.parametrize(
    ("images", "keep"),
    [
        (np.zeros((40, 32, 32, 3), np.uint8), "device"),
        (np.zeros((40, 97, 32, 3), np.uint8), "none"),  # no longer small
        (np.lib.stride_tricks.as_strided(np.zeros((96, 96, 3), np.uint8), (100_000, 96, 96, 3),
                                         (0, 288, 3, 1)), "none"),  # would be 2.8 GB
    ],
)  # fmt: skip
def test_where_images_are_kept_follows_from_their_size_and_number(images, keep, monkeypatch):
    source = ArraySource.__new__(ArraySource)
    source.images = torch.from_numpy(images).permute(0, 3, 1, 2)
    source.labels, source.class_names = np.arange(len(images)) % 2, ["a", "b"]
    assert choose_keep(TrainConfig(), source, CPU, World()) == keep


def test_images_of_several_sizes_are_not_kept_unasked(tmp_path):
    source = open_task(photos(tmp_path / "photos")).train
    assert choose_keep(TrainConfig(), source, CPU, World()) == "none"
    with pytest.raises(DataError, match="images differ in size, so that they cannot be kept on"):
        vitkit.pretrain(
            tmp_path / "photos", out=tmp_path / "run", **FAST, **{"data.keep": "device"}
        )


def test_kept_on_disk_or_decoded_each_time_small_photos_give_the_same_weights(tmp_path):
    data = photos(tmp_path / "photos")
    runs = [
        vitkit.pretrain(data, out=tmp_path / f"{keep} {n}", image_size=32, **FAST,
                        **{"data.keep": keep})
        for keep, n in [("none", 0), ("disk", 0), ("disk", 1)]
    ]  # fmt: skip
    assert_same(runs[0], runs[1])
    assert_same(runs[1], runs[2])  # the second reads what the first one kept
    kept = list((tmp_path / "cache" / "decoded").glob("*/*.pixels"))
    assert len(kept) == 2 and sorted(file.stat().st_size > 0 for file in kept) == [False, True]


def test_photos_kept_on_disk_are_shrunk_to_what_the_run_needs(tmp_path):
    data = photos(tmp_path / "photos", sizes=((300, 400),), each=6)
    vitkit.pretrain(data, out=tmp_path / "run", image_size=64, **FAST, **{"data.keep": "disk"})
    (rows,) = (tmp_path / "cache" / "decoded").glob("*/where.npy")
    sizes = np.load(rows)[:, 2]
    assert {(int(size) >> 32, int(size) & 0xFFFFFFFF) for size in sizes} == {(73, 97)}


# Resuming


@pytest.mark.parametrize("keep", ["none", "device", "disk"])
def test_a_run_with_every_augmentation_resumes_bit_for_bit(tmp_path, monkeypatch, keep):
    fields = {**FAST, **EVERYTHING, "data.keep": keep}
    whole = vitkit.pretrain("digits", out=tmp_path / "whole", **fields)
    batches = TrainingStream.batches

    def stopped(self, first=0):
        for number, batch in enumerate(batches(self, first), first + 1):
            if number == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(TrainingStream, "batches", stopped)
        with pytest.raises(Interrupted):
            vitkit.pretrain("digits", out=tmp_path / "run", **fields)
    resumed = vitkit.pretrain("digits", out=tmp_path / "run", resume="auto", **fields)
    assert_same(whole, resumed)


# Which images


def test_a_subset_is_a_share_of_every_class_and_the_held_out_images_stay(tmp_path):
    whole, some = open_task("digits"), open_task("digits", DataConfig(subset=0.1))
    assert len(some.train) == round(0.1 * len(whole.train))
    assert some.held_out_fingerprint == whole.held_out_fingerprint
    counts = np.bincount(some.train.labels)
    assert counts.max() - counts.min() <= 2
    smaller = open_task("digits", DataConfig(subset=50)).train
    assert set(keys(smaller)) < set(keys(some.train)) < set(keys(whole.train))
    run = vitkit.pretrain("digits", out=tmp_path / "run", **FAST, **{"data.subset": 50})
    assert record(run)["data"]["train_images"] == 50


def keys(source) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def test_quarantined_images_are_neither_trained_on_nor_held_out(tmp_path):
    data = photos(tmp_path / "photos")
    listed = tmp_path / "quarantine.txt"
    listed.write_text("cat/3.png\tcorrupt\ndog/0.png\tduplicate\n")
    task = open_task(data, DataConfig(quarantine=(str(listed),)))
    found = keys(task.train) + keys(task.val)
    assert len(found) == 22 and not {"cat/3.png", "dog/0.png"} & set(found)


def test_a_list_may_name_images_of_any_split(tmp_path):
    for split in ("train", "val"):
        photos(tmp_path / "photos" / split)
    task = open_task(tmp_path / "photos")
    listed = tmp_path / "quarantine.txt"
    listed.write_text(f"{task.val.key(3)}\n{task.train.key(0)}\n{task.train.key(23)}\n")
    fewer = open_task(tmp_path / "photos", DataConfig(quarantine=(str(listed),)))
    assert keys(fewer.train) == keys(task.train)[1:23]
    assert keys(fewer.val) == keys(task.val)[:3] + keys(task.val)[4:]


def test_weights_say_how_much_of_the_stream_each_data_is(tmp_path):
    photos(tmp_path / "many", each=20)
    photos(tmp_path / "few", each=5)
    data = [tmp_path / "many", tmp_path / "few"]
    run = vitkit.pretrain(data, out=tmp_path / "run", **FAST, **{"data.weights": (0.5, 0.5)})
    assert record(run)["config"]["data"]["weights"] == [0.5, 0.5]
    with pytest.raises(DataError, match="names 3 shares for 2 DATA"):
        vitkit.pretrain(data, out=tmp_path / "no", **FAST, **{"data.weights": (1.0, 1.0, 1.0)})
    assert not (tmp_path / "no" / "config.json").exists()


def test_images_of_several_labels_are_learned_by_a_sigmoid(tmp_path):
    splits = digits()
    parts = []
    for part in (splits.train, splits.val):
        images = np.stack([part.image(i).permute(1, 2, 0).numpy() for i in range(len(part))])
        several = np.stack([part.labels % 2 == 0, part.labels < 5], axis=1)
        parts.append(ArraySource(images, several, ["even", "low"]))
    data = Splits("even and low digits", *parts)
    run = vitkit.pretrain(data, out=tmp_path / "run", steps=200, batch_size=32, quiet=True,
                          learning_rate=3e-3)  # fmt: skip
    assert record(run)["config"]["loss"] == "sigmoid"
    assert run.metrics["mean_average_precision"] > 0.75  # chance is 0.5
    with pytest.raises(UsageError, match="several labels each, which a softmax cannot learn"):
        vitkit.pretrain(data, out=tmp_path / "no", loss="softmax", **FAST)


def test_pairs_are_mixed_only_in_batches_of_pairs(tmp_path):
    fields = FAST | {"batch_size": 15}
    with pytest.raises(UsageError, match="mix pairs, but each process has 15 images"):
        vitkit.pretrain("digits", out=tmp_path / "run", **fields, **{"augment.mixup": 0.2})


def test_decoding_on_a_gpu_needs_one(tmp_path):
    with pytest.raises(UsageError, match=r"--data.decode cuda needs a GPU to train on"):
        vitkit.pretrain("digits", out=tmp_path / "run", device="cpu", **FAST,
                        **{"data.decode": "cuda"})  # fmt: skip


# What a run is bound by


def test_metrics_tell_the_share_of_the_time_that_was_spent_waiting_for_images(tmp_path):
    class Slow(ArraySource):
        def image(self, index):
            time.sleep(0.02)
            return super().image(index)

    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8), np.uint8)
    shares = []
    for kind in (ArraySource, Slow):
        source = kind(images, np.arange(64) % 2, ["a", "b"])
        run = vitkit.pretrain(source, out=tmp_path / kind.__name__, steps=8, batch_size=16,
                              quiet=True, threads=1, **{"data.keep": "none"})  # fmt: skip
        lines = (run.folder / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        shares.append(np.mean([row["data_share"] for row in rows if row["kind"] == "train"]))
    assert 0 <= shares[0] < 0.5 < shares[1] <= 1


def test_progress_names_what_takes_most_of_the_time():
    assert bound_by(0.03) == "compute-bound 97%"
    assert bound_by(0.61) == "data-bound 61%"


def test_threads_are_one_a_core_unless_told(monkeypatch):
    monkeypatch.setattr(feeding, "cores", lambda: 12)
    assert loader_threads(TrainConfig(), World()) == 12
    assert loader_threads(TrainConfig(), World(size=8, local_size=4)) == 3
    assert loader_threads(TrainConfig(threads=0), World()) == 0
    monkeypatch.setattr(feeding, "cores", lambda: 200)
    assert loader_threads(TrainConfig(), World()) == 16


# What is said before training starts


def test_images_of_other_modes_are_counted_and_named(tmp_path):
    data = photos(tmp_path / "photos")
    for name, mode in (("cat/1.png", "L"), ("dog/4.png", "L"), ("dog/7.png", "RGBA")):
        Image.open(data / name).convert(mode).save(data / name)
    with pytest.warns(UserWarning, match="modes of 22 images looked at differ") as caught:
        vitkit.pretrain(data, out=tmp_path / "run", **FAST)
    said = str(caught[0].message)
    for words in ("19 colour", "2 grey (", "cat/1.png", "dog/4.png", "1 transparency (", "dog/7"):
        assert words in said


def test_nothing_is_said_of_images_of_one_mode(tmp_path, recwarn):
    data = photos(tmp_path / "photos")
    for path in data.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    vitkit.pretrain(data, out=tmp_path / "run", **FAST)
    assert not [one for one in recwarn if "modes" in str(one.message)]


def test_modes_are_looked_at_in_a_thousand_images_spread_over_a_large_source():
    asked = []

    class Large(ArraySource):
        def encoded(self, index):
            asked.append(index)
            return b"no image"

    images = np.zeros((5000, 1, 1), np.uint8)
    assert modes_of_some(Large(images, np.arange(5000) % 2, ["a", "b"])) == {}
    assert sorted(asked) == list(range(0, 5000, 5))


def test_modes_are_not_looked_at_where_that_would_fetch_or_end_anything():
    class Odd(ArraySource):
        def name(self, index):
            return f"https://x/{index}.jpg" if index % 2 else f"{index}.jpg"

        def encoded(self, index):
            assert index % 2 == 0, "fetched"
            raise DataError("cannot be reached")

    odd = Odd(np.zeros((20, 1, 1), np.uint8), np.arange(20) % 2, ["a", "b"])
    assert modes_of_some(odd) == {}


def test_modes_are_told_beside_data_that_keeps_pixels(tmp_path):
    data = photos(tmp_path / "photos")
    for name in ("cat/1.png", "dog/4.png"):
        Image.open(data / name).convert("L").save(data / name)
    pixels = ArraySource(np.zeros((24, 8, 8), np.uint8), np.arange(24) % 2, ["cat", "dog"])
    both = Concatenated([open_data(data).train, pixels], "ab")
    assert {mode: len(names) for mode, names in modes_of_some(both).items()} == {
        "colour": 22, "grey": 2,
    }  # fmt: skip


def test_classes_without_an_image_are_counted_and_named(tmp_path):
    data = photos(tmp_path / "photos")
    (data / "ant").mkdir()
    with pytest.warns(UserWarning, match="1 of 3 classes have no image to train on: ant"):
        open_task(data)
    with pytest.warns(UserWarning, match="2 of 3 classes have no image to train on: ant, "):
        open_task(data, DataConfig(subset=1e-9 + 1 / 22))


# What must not happen


def test_an_index_replaces_no_folder_and_no_file(tmp_path):
    data = photos(tmp_path / "photos")
    (tmp_path / "keep.csv").write_text("mine")
    for name in ("photos", "keep.csv"):
        with pytest.raises(DataError, match="exists and is no index; give a name that is free"):
            build_index(data, tmp_path / name)
    assert len(list(data.rglob("*.png"))) == 24
    assert (tmp_path / "keep.csv").read_text() == "mine"
    for _ in range(2):  # an older index may be replaced
        build_index(data, tmp_path / "photos.index")


def test_a_net_of_several_labels_is_evaluated_and_predicts_each_class_by_itself(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    labels = np.stack([np.arange(40) % 2, np.arange(40) % 3 > 0, np.arange(40) % 5 > 1], axis=1)
    data = ArraySource(images, labels, ["a", "b", "c"])
    run = vitkit.pretrain(data, out=tmp_path / "run", **FAST)
    fewer = ArraySource(images, labels[:, [2, 0]], ["c", "a"])
    for part in (data, fewer):
        metrics = vitkit.evaluate(run.folder, part)["metrics"]
        assert 0 < metrics["mean_average_precision"] <= 1
    with pytest.raises(DataError, match="few-shot takes images of one class each"):
        vitkit.evaluate(run.folder, data, "few-shot")
    (prediction,) = run.model.predict(images[0], top=3)
    shares = dict(prediction.top)
    assert abs(sum(shares.values()) - 1) > 0.2  # about a half each


def test_quarantine_may_not_leave_a_split_empty_and_splits_may_differ_in_their_classes(tmp_path):
    for split in ("train", "val"):
        photos(tmp_path / "photos" / split)
    (tmp_path / "photos" / "test" / "unknown").mkdir(parents=True)
    image = (tmp_path / "photos" / "train" / "cat" / "0.png").read_bytes()
    (tmp_path / "photos" / "test" / "unknown" / "1.png").write_bytes(image)
    task = open_task(tmp_path / "photos")
    listed = tmp_path / "quarantine.txt"
    listed.write_text(task.train.key(3) + "\n")
    assert len(open_task(tmp_path / "photos", DataConfig(quarantine=(str(listed),))).train) == 23
    listed.write_text("\n".join(keys(task.val)) + "\n")
    with pytest.raises(DataError, match="leave out all 24 images"):
        open_task(tmp_path / "photos", DataConfig(quarantine=(str(listed),)))


def test_a_run_on_shards_afar_is_not_resumed_on_the_same_ones_at_hand(tmp_path):
    data = open_task("digits")
    vitkit.pretrain(data, out=tmp_path / "run", **FAST)
    data.train.shard_lengths = [len(data.train)]
    with pytest.raises(UsageError, match="the order of the data"):
        vitkit.pretrain(data, out=tmp_path / "run", resume="auto", **FAST)


def test_a_dry_run_refuses_what_the_run_would(tmp_path, capsys):
    data = str(photos(tmp_path / "photos"))
    for words in (["--data.keep", "device"], ["--data.repeats", "3", "--batch-size", "8"],
                  ["--data.weights", "1", "2"], ["--data.decode", "cuda"],
                  ["--augment.mixup", "0.2", "--batch-size", "5"]):  # fmt: skip
        words = ["pretrain", data, "--steps", "2", "--device", "cpu", "--dry-run", *words]
        assert main(words) in (1, 2), words
    capsys.readouterr()
