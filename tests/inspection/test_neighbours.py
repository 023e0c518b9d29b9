"""neighbours: the nearest rows of an index by cosine."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from vitkit.inspection import neighbours


@pytest.mark.parametrize("block", [1, 100, 2**24])
def test_they_are_those_that_sklearn_finds_in_its_order(monkeypatch, block):
    monkeypatch.setitem(neighbours.__globals__, "BLOCK", block)
    rng = np.random.default_rng(0)
    query, index = rng.normal(size=(7, 5)), rng.normal(size=(40, 5)) * rng.uniform(1, 9, (40, 1))
    rows, cosines = neighbours(torch.tensor(query), torch.tensor(index), 6)
    distances, expected = (
        NearestNeighbors(n_neighbors=6, metric="cosine").fit(index).kneighbors(query)
    )
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(cosines, 1 - distances, atol=1e-6)
    assert rows.dtype == torch.int64
    assert cosines.dtype == torch.float32


def test_an_image_is_nearest_to_itself_however_long_its_features_are():
    index = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    rows, cosines = neighbours(3 * index[4:9], index, 1)
    assert rows[:, 0].tolist() == [4, 5, 6, 7, 8]
    torch.testing.assert_close(cosines, torch.ones(5, 1))


def test_there_are_no_more_than_the_index_has():
    index = torch.eye(3)
    rows, _ = neighbours(index[:2], index, 10)
    assert sorted(rows[1].tolist()) == [0, 1, 2]
    assert neighbours(index[:0], index, 2)[0].shape == (0, 2)
    assert neighbours(index, index[:0], 2)[0].shape == (3, 0)


def test_features_of_zeros_are_like_nothing_and_not_nan():
    rows, cosines = neighbours(torch.zeros(1, 3), torch.eye(3), 3)
    assert cosines.tolist() == [[0, 0, 0]]
    assert sorted(rows[0].tolist()) == [0, 1, 2]
