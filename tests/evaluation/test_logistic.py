"""Logistic regression on features: what scikit-learn finds, for features as they come."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch.nn import functional as F

from vitkit.evaluation.logistic import fit_logistic
from vitkit.objectives.supervised import class_weights

DIGITS = load_digits()
X = torch.tensor(DIGITS.data, dtype=torch.float32)  # (1797, 64); some pixels are always 0
Y = torch.tensor(DIGITS.target)
FIT, APART = slice(0, 600), slice(600, None)


@pytest.fixture(autouse=True)
def one_thread():
    """Those of scikit-learn spin, and wait for each other where cores are shared."""
    with threadpool_limits(1):
        yield


def standardised():
    scaler = StandardScaler().fit(X[FIT].numpy())
    return scaler.transform(X[FIT].numpy()), scaler.transform(X[APART].numpy())


def scikit_learns(l2, **options) -> LogisticRegression:
    return LogisticRegression(C=1 / (600 * l2), max_iter=5000, tol=1e-8, **options)


@pytest.mark.parametrize("l2", [1e-1, 1e-2, 1e-3])
def test_softmax_predicts_what_scikit_learn_predicts(l2):
    [(weight, bias)] = fit_logistic(X[FIT], Y[FIT], 10, penalties=[l2])
    rows, apart = standardised()
    theirs = scikit_learns(l2).fit(rows, Y[FIT].numpy())
    logits = X[APART] @ weight.T + bias
    np.testing.assert_array_equal(logits.argmax(1), theirs.predict(apart))
    np.testing.assert_allclose(logits.softmax(1), theirs.predict_proba(apart), atol=5e-3)


def test_sigmoid_fits_one_class_against_the_rest_for_each_of_several_labels():
    several = torch.stack([Y % 2 == 0, Y < 5, Y > 7], dim=1)
    [(weight, bias)] = fit_logistic(X[FIT], several[FIT].float(), 3, "sigmoid", [1e-2])
    rows, apart = standardised()
    logits = X[APART] @ weight.T + bias
    for number in range(3):
        theirs = scikit_learns(1e-2).fit(rows, several[FIT, number].numpy())
        shares = theirs.predict_proba(apart)[:, 1]
        np.testing.assert_allclose(logits[:, number].sigmoid(), shares, atol=5e-3)


def test_numbers_of_classes_and_rows_of_ones_are_fitted_alike():
    [(a, _)] = fit_logistic(X[FIT], Y[FIT], 10, "sigmoid", [1e-2])
    [(b, _)] = fit_logistic(X[FIT], F.one_hot(Y[FIT]), 10, "sigmoid", [1e-2])
    torch.testing.assert_close(a, b)


def test_each_penalty_gives_the_fit_that_it_would_give_alone():
    several = fit_logistic(X[FIT], Y[FIT], 10, penalties=[1e-1, 1e-2])
    [(alone, _)] = fit_logistic(X[FIT], Y[FIT], 10, penalties=[1e-2])
    torch.testing.assert_close(several[1][0], alone, atol=5e-3, rtol=0)
    assert several[0][0].norm() < several[1][0].norm()


def test_rows_worked_through_in_parts_give_the_same_fit(monkeypatch):
    [(whole, _)] = fit_logistic(X[FIT], Y[FIT], 10, penalties=[1e-2])
    monkeypatch.setattr("vitkit.evaluation.logistic.AT_ONCE", 250)
    [(parts, _)] = fit_logistic(X[FIT], Y[FIT], 10, penalties=[1e-2])
    torch.testing.assert_close(parts, whole, atol=5e-3, rtol=0)


def test_weighted_classes_are_fitted_as_scikit_learn_weights_them():
    rare = torch.cat([torch.where(Y[FIT] != 3)[0], torch.where(Y[FIT] == 3)[0][:4]])
    weights = class_weights(Y[rare].bincount().tolist(), 1.0)
    [(weight, bias)] = fit_logistic(X[rare], Y[rare], 10, penalties=[1e-2], class_weights=weights)
    scaler = StandardScaler().fit(X[rare].numpy())
    theirs = LogisticRegression(
        C=1 / (len(rare) * 1e-2), max_iter=5000, tol=1e-8,
        class_weight=dict(enumerate(weights.tolist())),
    ).fit(scaler.transform(X[rare].numpy()), Y[rare].numpy())  # fmt: skip
    shares = theirs.predict_proba(scaler.transform(X[APART].numpy()))
    np.testing.assert_allclose((X[APART] @ weight.T + bias).softmax(1), shares, atol=5e-3)
