"""k-NN: scikit-learn's predictions, by the fast way as by the fine one."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from vitkit.evaluation import knn as module
from vitkit.evaluation.knn import knn, nearest

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def one_thread():
    with threadpool_limits(1):
        yield


def drawn(kind, train=1200, queries=300, width=48, classes=7):
    """Features of a kind, and labels that the features hardly tell: so votes are often equal."""
    number = train + queries
    labels = RANDOM.integers(0, classes, number)
    x = RANDOM.normal(size=(number, width))
    if kind == "in clusters":
        x = RANDOM.normal(size=(classes, width))[labels] + 2 * x
    elif kind == "far from the origin":
        x = 5 + 0.01 * x
    elif kind == "of very different lengths":
        x *= np.exp(RANDOM.normal(size=(number, 1)))
    elif kind == "each five times":
        x = np.repeat(x[: number // 5], 5, axis=0)
    x = x.astype(np.float32)
    return x[:train], labels[:train], x[train:]


def scikit_learns(x, y, queries, k, metric):
    classifier = KNeighborsClassifier(k, metric=metric, algorithm="brute")
    return classifier.fit(x.astype(np.float64), y).predict(queries.astype(np.float64))


KINDS = ("without structure", "in clusters", "far from the origin", "of very different lengths")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 2, 10, 25])
def test_predictions_are_those_of_scikit_learn(kind, metric, k):
    x, y, queries = drawn(kind)
    np.testing.assert_array_equal(
        knn(x, y, queries, k, metric), scikit_learns(x, y, queries, k, metric)
    )


def test_equal_votes_go_to_the_smallest_label_as_in_scikit_learn():
    x, y, queries = drawn("without structure")
    indices = nearest(x, queries, 2, "cosine").numpy()
    assert (y[indices[:, 0]] != y[indices[:, 1]]).sum() > 200
    np.testing.assert_array_equal(knn(x, y, queries, 2, "cosine"), y[indices].min(1))
    np.testing.assert_array_equal(y[indices].min(1), scikit_learns(x, y, queries, 2, "cosine"))


@pytest.mark.parametrize("k", [5, 10])
def test_rows_at_one_distance_vote_alike_whatever_their_order(k):
    x, y, queries = drawn("each five times")
    for metric in ("cosine", "euclidean"):
        expected = scikit_learns(x, y, queries, k, metric)
        np.testing.assert_array_equal(knn(x, y, queries, k, metric), expected)


def test_of_rows_at_one_distance_the_first_are_nearer():
    x = np.repeat(RANDOM.normal(size=(5, 16)), 60, axis=0)[RANDOM.permutation(300)]
    x = x.astype(np.float32)
    for metric in ("cosine", "euclidean"):
        found = nearest(x, x[:3], 8, metric).numpy()
        for query, indices in zip(x[:3], found, strict=True):
            assert indices.tolist() == np.flatnonzero((x == query).all(1))[:8].tolist()


@pytest.mark.parametrize("first", [torch.bfloat16, torch.float32])
def test_every_kind_of_product_finds_the_same(first, monkeypatch):
    monkeypatch.setattr(module, "kinds", lambda: [first])
    monkeypatch.setattr(module, "AT_ONCE", 5000)  # several parts of everything
    x, _, queries = drawn("in clusters")
    found = nearest(x, queries, 10, "cosine")
    rows = torch.nn.functional.normalize(torch.from_numpy(x).double(), dim=1)
    asked = torch.nn.functional.normalize(torch.from_numpy(queries).double(), dim=1)
    assert torch.equal(found, (asked @ rows.T).topk(10, dim=1).indices)


def test_rows_that_are_too_alike_for_coarse_products_are_looked_at_again():
    x = (1 + 1e-7 * RANDOM.normal(size=(400, 16))).astype(np.float64)
    found = nearest(x, x[:50], 3, "euclidean")
    distances = ((x[:50, None] - x[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(found[:, 0], np.arange(50))
    np.testing.assert_array_equal(
        np.take_along_axis(distances, found.numpy(), 1), np.sort(distances, axis=1)[:, :3]
    )


def test_a_row_of_zeros_is_at_the_cosine_distance_1_from_all():
    x = np.array([[1, 0], [0, 0], [-1, 0], [0.1, 1]], np.float32)
    assert nearest(x, np.array([[2, 0.0]], np.float32), 4, "cosine").tolist() == [[0, 3, 1, 2]]
    assert nearest(x, np.zeros((1, 2), np.float32), 2, "cosine").tolist() == [[0, 1]]


def test_zeros_among_many_rows_are_at_distance_1_by_coarse_products_too():
    x, _, queries = drawn("without structure")
    x[::7], queries[::11] = 0, 0
    found = nearest(x, queries, 5, "cosine")
    assert not (x[found[1::11].numpy()] == 0).all(-1).any()
    assert found[::11].tolist() == [[0, 1, 2, 3, 4]] * len(found[::11])


def test_more_neighbours_than_rows_are_refused():
    with pytest.raises(ValueError, match="k is 4; expected 1 to 3"):
        nearest(np.eye(3), np.eye(3), 4, "cosine")
