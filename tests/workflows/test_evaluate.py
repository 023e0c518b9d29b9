"""What is found of a net on images, protocol by protocol, and what is kept between two times."""

import io
import math
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import vitkit
from vitkit.data.checks import DataError
from vitkit.data.opening import digits, open_data
from vitkit.data.pipeline import evaluation_batches
from vitkit.data.source import ArraySource, Splits, Subset, only_classes
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError, VitkitError
from vitkit.evaluation.topk import features_of
from vitkit.models.variants import build
from vitkit.models.vit import VisionTransformer
from vitkit.prediction import feature_cache
from vitkit.prediction.model import Model
from vitkit.workflows.evaluate import PROTOCOLS, evaluate, found
from vitkit.workflows.protocols import few_shot, job
from vitkit.workflows.protocols.options import ProtocolOptions, require_read


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITKIT_CACHE", str(tmp_path / "cache"))
    with threadpool_limits(1):
        yield tmp_path / "cache" / "features"


def fresh(seed=0):
    """An untrained net: its features still tell digits apart."""
    torch.manual_seed(seed)
    net = build("ViT-Femto/2", 10, (8, 8))
    torch.nn.init.normal_(net.head.weight)
    return Model(net, [str(n) for n in range(10)], Preprocessing.direct((8, 8)))


def few(train=300, val=200):
    splits = digits()
    return Splits(
        "digits", Subset(splits.train, np.arange(train)), Subset(splits.val, np.arange(val))
    )


def counted(model):
    """How many images the net is given from now on."""
    seen, run = [], model.run

    def counting(function, images):
        seen.append(len(images))
        return run(function, images)

    model.run = counting
    return seen


# What is kept


def test_the_second_time_the_net_is_given_no_image_and_the_result_is_the_same():
    model = fresh()
    seen = counted(model)
    first = evaluate(model, few(), "few-shot", shots=(5,))["metrics"]
    assert sum(seen) == 500
    assert evaluate(model, few(), "few-shot", shots=(5,))["metrics"] == first
    evaluate(fresh(), few(), "knn")  # the same weights in another net
    assert sum(seen) == 500


def test_logits_are_not_taken_for_features():
    model = fresh()
    seen = counted(model)
    evaluate(model, few())
    evaluate(model, few(), "knn")
    assert sum(seen) == 200 + 300 + 200


@pytest.mark.parametrize("change", ["weights", "images", "labels", "preprocessing", "net"])
def test_what_changes_the_values_is_computed_anew(change):
    model, data = fresh(), few()
    before = evaluate(model, data)["metrics"]["loss"]
    if change == "weights":
        with torch.no_grad():
            model.net.head.bias[3] += 1
    elif change == "images":
        data = Splits("digits", data.train, Subset(digits().val, np.arange(1, 201)))
    elif change == "labels":
        data.val.labels = (data.val.labels + 1) % 10
    elif change == "preprocessing":
        shape = Preprocessing(image_size=(8, 8), mean=(0.4,) * 3)
        model = Model(model.net, model.class_names, shape)
    else:
        other = VisionTransformer(replace(model.net.config, norm_eps=0.1))
        other.load_state_dict(model.net.state_dict())
        model = Model(other, model.class_names, model.preprocessing)
    again = evaluate(model, data)["metrics"]["loss"]
    assert again != before
    assert again == evaluate(model, data, cache=False)["metrics"]["loss"]


def test_without_the_cache_nothing_is_read_or_written(cache):
    model = fresh()
    seen = counted(model)
    for _ in range(2):
        evaluate(model, few(), cache=False)
    assert sum(seen) == 400 and not cache.exists()


def test_a_damaged_file_is_computed_again(cache):
    model = fresh()
    expected = evaluate(model, few())["metrics"]
    [path] = cache.iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    assert evaluate(model, few())["metrics"] == expected
    [path] = cache.iterdir()
    assert feature_cache.read(path, 200, 10) is not None


def test_a_bad_image_is_an_error_and_nothing_is_kept_of_the_others(tmp_path, cache):
    for number in range(6):
        folder = tmp_path / "data" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(DataError, match=r"bad\.png"):
            evaluate(fresh(), tmp_path / "data")
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("protocol", ["top-k", "few-shot", "knn", "linear", "corruptions",
                                      "translations"])  # fmt: skip
def test_what_is_not_finite_is_no_accuracy(protocol, cache):
    model, data = fresh(), few(40, 40)
    with torch.no_grad():
        next(model.net.parameters()).fill_(torch.nan)
    for _ in range(2):
        with pytest.raises(VitkitError, match="of 40 of 40 images are not finite"):
            evaluate(model, data, protocol)
    assert not cache.exists() or not list(cache.iterdir())


def test_one_image_that_is_not_finite_is_told_though_it_was_kept(monkeypatch):
    model, data = fresh(), few()
    run = model.run
    model.run = lambda function, images: run(function, images).index_fill(
        0, torch.tensor([3]), torch.inf
    )
    check = job.finite
    monkeypatch.setattr(job, "finite", lambda values, what: values)
    evaluate(model, data)
    monkeypatch.setattr(job, "finite", check)
    with pytest.raises(VitkitError, match="logits of 1 of 200 images are not finite"):
        evaluate(model, data)


# What is learned from is not scored


LEARNING = ("few-shot", "knn", "linear")


def digit_files(folder, numbers):
    """Digits of the validation split as files in folders of their classes."""
    val = digits().val
    for n in numbers:
        path = folder / val.class_names[val.labels[n]] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(val.image(n).permute(1, 2, 0).numpy()).save(path)
    return folder


@pytest.mark.parametrize("protocol", LEARNING)
def test_images_to_learn_from_are_not_scored(protocol, tmp_path, monkeypatch):
    data = digit_files(tmp_path / "data", range(60))
    monkeypatch.chdir(tmp_path)
    for same in (data, "data", str(tmp_path / "data/../data")):
        with pytest.raises(DataError, match=rf"{protocol}: 60 of the 60 images .* leave it out"):
            evaluate(fresh(), data, protocol, train=same)
    assert (
        evaluate(fresh(), data, protocol, **few_of(protocol))["images"] < 60
    )  # half is held apart


def few_of(protocol):
    return {"knn": {"k": 3}, "few-shot": {"shots": (1,)}}.get(protocol, {})


def test_some_images_that_are_in_both_are_counted(tmp_path):
    data = digit_files(tmp_path / "data", range(60))
    part = Subset(open_data(data).train, np.arange(20, 60))
    with pytest.raises(DataError, match="40 of the 40 images to score"):
        evaluate(fresh(), part, "knn", train=data)
    with pytest.raises(DataError, match="40 of the 60 images to score"):
        evaluate(fresh(), data, "knn", train=part)
    with pytest.raises(DataError, match=r"20 of the 40 images .* give splits that share none"):
        shared = Subset(part.source, np.arange(40))
        evaluate(fresh(), Splits("mine", part, shared), "knn")


@pytest.mark.parametrize("stored", ["arrays", "parquet"])
def test_images_without_a_file_of_their_own_are_told_apart_as_well(stored, tmp_path):
    def source(begin, title):
        labels = digits().val.labels[begin : begin + 60]
        pixels = [digits().val.image(i).permute(1, 2, 0).numpy() for i in range(begin, begin + 60)]
        if stored == "arrays":
            return ArraySource(np.stack(pixels), labels, list("0123456789"))
        files = [io.BytesIO() for _ in pixels]
        for file, image in zip(files, pixels, strict=True):
            Image.fromarray(image).save(file, "PNG")
        rows = {"image": [{"bytes": f.getvalue()} for f in files], "label": labels.tolist()}
        pq.write_table(pa.table(rows), tmp_path / f"{title}.parquet")
        return tmp_path / f"{title}.parquet"

    data, other, copy = source(0, "a"), source(60, "b"), source(0, "c")
    for train in (data, copy):
        with pytest.raises(DataError, match="60 of the 60 images to score"):
            evaluate(fresh(), data, "knn", train=train)
    assert evaluate(fresh(), data, "knn", train=other)["images"] == 60  # though called alike


def test_other_splits_of_the_same_data_may_be_learned_from(tmp_path):
    digit_files(tmp_path / "train", range(100))
    digit_files(tmp_path / "test", range(100, 160))
    found = [evaluate(fresh(), tmp_path, "knn", train=train, k=3)["metrics"]
             for train in (None, tmp_path, tmp_path / "train")]  # fmt: skip
    assert found[0] == found[1] == found[2]


# top-k


def test_top_k_tells_confusions_calibration_and_mistakes():
    model, data = fresh(), few()
    _, findings = found(model, data, "top-k")
    rows = torch.cat([data.val.image(i)[None] for i in range(200)])
    batch = torch.stack([model.preprocessing(image) for image in rows])
    logits, labels = model.run(model.net, batch), torch.from_numpy(data.val.labels)
    right = logits.argmax(1) == labels
    assert findings.confusion.class_names == tuple(map(str, range(10)))
    assert findings.confusion.counts.sum() == 200
    assert np.trace(findings.confusion.counts) == int(right.sum())
    assert findings.calibration.before.images.sum() == 200
    assert findings.calibration.temperature is not None
    shares = logits.softmax(1)
    true = shares[torch.arange(200), labels]
    lowest = torch.sort(true[~right]).values[:12]
    assert [m.true_probability for m in findings.worst] == pytest.approx(lowest.tolist(), abs=1e-6)
    highest = torch.sort(shares.max(1).values[~right], descending=True).values[:12]
    assert [m.probability for m in findings.confident] == pytest.approx(highest.tolist(), abs=1e-6)
    names = {data.val.name(i): i for i in range(200)}
    for mistake in findings.worst:
        index = names[mistake.name]
        assert mistake.true == str(int(labels[index])) != mistake.predicted
        np.testing.assert_array_equal(mistake.picture, rows[index].permute(1, 2, 0).numpy())


def test_a_large_picture_is_made_small():
    images = np.random.default_rng(0).integers(0, 255, (6, 50, 200, 3), np.uint8)
    data = ArraySource(images, [3] * 3 + [4] * 3, [str(n) for n in range(10)])
    _, findings = found(fresh(), data, "top-k")
    assert all(m.picture.shape == (24, 96, 3) for m in findings.worst)
    assert all(m.picture.dtype == np.uint8 for m in findings.worst)


def test_images_of_one_class_have_a_top_1_and_nothing_to_learn_from():
    one = only_classes(digits().val, ["7"])
    result = evaluate(fresh(), one)
    assert result["images"] == len(one)
    assert result["class_recall"]["7"] == result["metrics"]["top1"]
    for protocol in ("few-shot", "knn", "linear"):
        with pytest.raises(DataError, match=rf"{protocol}.*at least two classes"):
            evaluate(fresh(), Splits("one", one, one), protocol)


def test_few_images_have_no_temperature_and_a_note_says_so():
    _, findings = found(fresh(), few(val=19), "top-k")
    assert findings.calibration.temperature is None
    assert any("19 images are too few" in note for note in findings.notes)


# few-shot


def test_few_shot_gives_a_table_with_deviations_and_a_curve():
    _, findings = found(fresh(), few(), "few-shot", shots=(1, 5), seeds=4)
    assert list(findings.metrics) == ["1shot", "5shot"]
    [table], [curve] = findings.tables, findings.curves
    assert table.header == ("shots", "accuracy", "deviation",
                            "seed 0", "seed 1", "seed 2", "seed 3", "l2")  # fmt: skip
    seeds = np.array([[float(cell[:-1]) for cell in row[3:7]] for row in table.rows]) / 100
    for row, values in zip(table.rows, seeds, strict=True):
        assert float(row[1][:-1]) / 100 == pytest.approx(values.mean(), abs=1e-4)
        assert float(row[2][:-1]) / 100 == pytest.approx(values.std(), abs=1e-4)
        assert row[-1] == "1024"
    assert curve.x.tolist() == [1, 5]
    np.testing.assert_allclose(curve.lines["mean"], seeds.mean(1), atol=1e-4)


def test_shots_that_a_class_has_not_enough_images_for_are_left_out_with_a_note():
    data = few(train=300)
    fewest = np.bincount(data.train.labels).min()
    _, findings = found(fresh(), data, "few-shot", shots=(1, 100))
    assert list(findings.metrics) == ["1shot"]
    assert any("100 images of each class are left out: 0, 1" in note
               and f"the smallest class {fewest}" in note for note in findings.notes)  # fmt: skip
    with pytest.raises(VitkitError, match=f"has {fewest} training images; 100 are needed"):
        evaluate(fresh(), data, "few-shot", shots=(100,))


def test_a_swept_penalty_is_chosen_without_a_look_at_the_scored_images():
    data = few()
    _, findings = found(fresh(), data, "few-shot", shots=(1, 5), sweep_l2=True)
    assert any("training images held apart" in note for note in findings.notes)
    chosen = [row[-1] for row in findings.tables[0].rows]
    assert all(-10 <= np.log2(float(l2)) <= 20 for l2 in chosen)
    # Other labels of the scored images change the accuracy, never the choice.
    data.val.labels = (data.val.labels + 3) % 10
    _, other = found(fresh(), data, "few-shot", shots=(1, 5), sweep_l2=True)
    assert [row[-1] for row in other.tables[0].rows] == chosen
    assert other.metrics != findings.metrics


def test_images_that_a_penalty_is_chosen_by_are_never_shots(monkeypatch):
    """The features being the numbers of the images, what each solve was given shows."""
    data, calls = few(), []

    def numbers(self, source):
        first = 0 if source is data.train else 1000
        return torch.arange(first, first + len(source))[:, None], job.labels_of(source)

    def recorded(x, y, x_test, y_test, shots, seeds, l2):
        truth = np.concatenate([data.train.labels, np.zeros(700, int), data.val.labels])
        assert (truth[x[:, 0]] == y).all() and (truth[x_test[:, 0]] == y_test).all()
        calls.append((set(x[:, 0].tolist()), set(x_test[:, 0].tolist()), l2))
        return {shot: np.full((len(seeds), len(l2)), 0.5) for shot in shots}

    monkeypatch.setattr(job.Job, "features", numbers)
    monkeypatch.setattr(few_shot, "few_shot_accuracies", recorded)
    _, findings = found(fresh(), data, "few-shot", shots=(1, 5), sweep_l2=True)
    (shots, apart, penalties), *scored = calls
    assert penalties == few_shot.SWEEP and len(scored) == 2
    assert shots | apart == set(range(300)) and not shots & apart
    assert 30 <= len(apart) <= 75
    assert any(f"by {len(apart)} training images" in note for note in findings.notes)
    for images, test, _ in scored:
        assert images == shots and test == set(range(1000, 1200))


# knn and linear


def features_on(model, source):
    def extract(images):
        return model.run(model.net.features, images)

    x, y = features_of(extract, evaluation_batches(source, model.preprocessing, 256))
    return x.double().numpy(), y.numpy()


@pytest.mark.parametrize(("metric", "k"), [("cosine", 10), ("euclidean", 3)])
def test_knn_is_scikit_learns_on_the_same_features(metric, k):
    model, data = fresh(), few()
    x, y = features_on(model, data.train)
    x_test, y_test = features_on(model, data.val)
    theirs = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(x, y)
    result = evaluate(model, data, "knn", k=k, metric=metric)
    right = theirs.predict(x_test) == y_test
    assert result["metrics"]["top1"] == right.mean() > 0.3
    assert result["class_recall"]["3"] == right[y_test == 3].mean()


def test_more_neighbours_than_images_are_refused():
    with pytest.raises(DataError, match=r"301 neighbours .* of 300 training images"):
        evaluate(fresh(), few(), "knn", k=301)


def test_linear_is_as_accurate_as_scikit_learns_logistic_regression():
    model, data = fresh(), digits()
    data = Splits("digits", Subset(data.train, np.arange(700)), data.val)
    _, findings = found(model, data, "linear")
    [chosen] = [row for row in findings.tables[0].rows if row[-1] == "chosen"]
    assert len(findings.tables[0].rows) == 6
    x, y = features_on(model, data.train)
    x_test, y_test = features_on(model, data.val)
    scaler = StandardScaler().fit(x)
    theirs = LogisticRegression(C=1 / (700 * float(chosen[0])), max_iter=5000, tol=1e-6)
    theirs.fit(scaler.transform(x), y)
    expected = theirs.score(scaler.transform(x_test), y_test)
    assert findings.metrics["top1"] == pytest.approx(expected, abs=0.002)
    assert findings.metrics["top1"] > 0.5
    assert findings.confusion is not None and findings.calibration is not None


def test_the_penalty_of_the_linear_probe_is_chosen_by_training_images(monkeypatch):
    data = few()
    _, findings = found(fresh(), data, "linear")
    data.val.labels = (data.val.labels + 3) % 10
    _, other = found(fresh(), data, "linear")
    assert findings.tables[0] == other.tables[0]
    assert findings.metrics["top1"] > 0.5 > other.metrics["top1"]


def test_images_of_several_labels_are_scored_by_top_k_and_linear_alone():
    images = digits().train
    several = np.stack([images.labels % 2 == 0, images.labels < 5], axis=1)
    pixels = np.stack([images.image(i).permute(1, 2, 0).numpy() for i in range(900)])
    data = ArraySource(pixels, several[:900].astype(int), ["even", "low"])
    halves = Splits("both", Subset(data, np.arange(700)), Subset(data, np.arange(700, 900)))
    _, findings = found(fresh(), halves, "linear")
    assert findings.metrics["mean_average_precision"] > 0.7  # 0.5 by chance
    assert findings.confusion is None and findings.calibration is None
    assert any("several labels" in note for note in findings.notes)
    for protocol in ("few-shot", "knn"):
        with pytest.raises(DataError, match="several labels"):
            evaluate(fresh(), halves, protocol)


def test_what_cannot_be_is_refused_before_anything_is_opened():
    for options, said in [
        ({"shots": ()}, "shots is"), ({"shots": (0, 1)}, "shots is"), ({"seeds": 0}, "seeds is 0"),
        ({"k": 0}, "k is 0"), ({"l2": -1.0}, "l2 is -1"), ({"l2": 0.0}, "l2 is 0"),
        ({"l2": math.inf}, "l2 is inf"), ({"metric": "cosin"}, "metric is"), ({"kk": 3}, "kk"),
        ({"train": "digits"}, "top-k learns nothing"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=said):
            vitkit.evaluate(fresh(), "nowhere", **options)
    with pytest.raises(UsageError, match="few-shot"):
        vitkit.evaluate(fresh(), "nowhere", "fewshot")


OTHERS = {  # of every option a value that is not its default
    "l2": 1.0, "sweep_l2": True, "shots": (1,), "seeds": 1, "k": 1, "metric": "euclidean",
    "classes": "imagenet-r", "real": "real.json", "corruptions": "fog", "severities": "1",
    "shifts": "1", "seed": 1, "tasks": "dtd", "vtab_method": "finetune", "vtab_steps": 1,
    "vtab_side": 1, "vtab_test": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(ProtocolOptions)])
def test_an_option_is_refused_by_all_protocols_but_those_that_read_it(name):
    given = {name: OTHERS[name]} | ({"vtab_method": "finetune"} if "vtab_" in name else {})
    readers = []
    for protocol, module in PROTOCOLS.items():
        try:
            require_read(ProtocolOptions(**given), protocol)
        except UsageError:
            with pytest.raises(UsageError, match="is for --protocol"):
                evaluate(fresh(), "nowhere", protocol, **given)
            continue
        files = [module, "vtab_methods" if protocol == "vtab" else module]
        folder = Path(job.__file__).parent
        text = "".join((folder / f"{file}.py").read_text() for file in files)
        assert re.search(rf"options\.{name}\b", text), f"{module}.py does not read it"
        readers.append(protocol)
    assert len(readers) == 1
