"""What is found of a net on images, protocol by protocol, and what is kept between two times."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import vitkit
from vitkit.data.checks import DataError
from vitkit.data.opening import digits
from vitkit.data.pipeline import evaluation_batches
from vitkit.data.source import ArraySource, Splits, Subset, only_classes
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError, VitkitError
from vitkit.evaluation.topk import features_of
from vitkit.models.variants import build
from vitkit.models.vit import VisionTransformer
from vitkit.prediction import feature_cache
from vitkit.prediction.model import Model
from vitkit.workflows.evaluate import evaluate, found


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


def test_features_that_are_not_finite_teach_nothing():
    model = fresh()
    with torch.no_grad():
        model.net.head.weight.fill_(0)
        next(model.net.parameters()).fill_(torch.nan)
    with pytest.raises(VitkitError, match="not finite"):
        evaluate(model, few(), "knn")


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
    images = digits().val
    several = np.stack([images.labels % 2 == 0, images.labels < 5], axis=1)
    pixels = np.stack([images.image(i).permute(1, 2, 0).numpy() for i in range(200)])
    data = ArraySource(pixels, several[:200].astype(int), ["even", "low"])
    _, findings = found(fresh(), Splits("both", data, data), "linear")
    assert findings.metrics["mean_average_precision"] > 0.8
    assert findings.confusion is None and findings.calibration is None
    assert any("several labels" in note for note in findings.notes)
    for protocol in ("few-shot", "knn"):
        with pytest.raises(DataError, match="several labels"):
            evaluate(fresh(), Splits("both", data, data), protocol)


def test_what_cannot_be_is_refused_before_anything_is_opened():
    for options, said in [
        ({"shots": ()}, "shots is"), ({"shots": (0, 1)}, "shots is"), ({"seeds": 0}, "seeds is 0"),
        ({"k": 0}, "k is 0"), ({"l2": -1.0}, "l2 is -1"), ({"metric": "cosin"}, "metric is"),
        ({"kk": 3}, "kk"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=said):
            vitkit.evaluate(fresh(), "nowhere", **options)
    with pytest.raises(UsageError, match="few-shot"):
        vitkit.evaluate(fresh(), "nowhere", "fewshot")
