"""Few-shot accuracy: least squares in closed form, against solvers that share no code with it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

import vitkit.evaluation.fewshot as module
from vitkit.errors import UsageError, VitkitError
from vitkit.evaluation.fewshot import few_shot, few_shot_accuracies, least_squares_accuracy, ridge

Case = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def clusters(
    train: int, width: int, classes: int = 4, noise: float = 2.0, seed: int = 0, often: int = 1
) -> Case:
    """Features around a centre for each class, hard to tell apart; the first class comes often."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, width))

    def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.maximum(np.arange(number) % (classes + often - 1) - often + 1, 0)
        features = centres[labels] + noise * random.normal(size=(number, width))
        return (3 + 5 * features).astype(np.float32), labels

    return *draw(train), *draw(300)


def prepared(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardised train and test features with 100 at the end, and targets -1 and +1."""
    train, labels, test, _ = (part.astype(np.float64) for part in case)
    scaled = [(part - train.mean(0)) / (train.std(0) + 1e-5) for part in (train, test)]
    with_constant = [np.column_stack([part, np.full(len(part), 100.0)]) for part in scaled]
    targets = 2.0 * (labels[:, None] == np.unique(labels)) - 1
    return *with_constant, targets


def by_normal_equations(case: Case, l2: float) -> float:
    x, x_test, targets = prepared(case)
    weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ targets)
    return float(np.mean((x_test @ weights).argmax(1) == case[3]))


def by_scikit_learn(case: Case, l2: float) -> float:
    x, x_test, targets = prepared(case)
    scores = Ridge(alpha=l2, fit_intercept=False, solver="svd").fit(x, targets).predict(x_test)
    return float(np.mean(scores.argmax(1) == case[3]))


SHAPES = [(200, 10), (60, 59), (60, 60), (12, 100)]  # more images than features, and fewer


@pytest.mark.parametrize(("train", "width"), SHAPES)
@pytest.mark.parametrize("l2", [1.0, 2.0**10, 2.0**20])
@pytest.mark.parametrize("often", [1, 4])
def test_the_accuracy_is_that_of_ridge_regression_with_the_constant_in_the_penalty(
    train, width, l2, often
):
    case = clusters(train, width, often=often)
    accuracy = least_squares_accuracy(*case, l2)
    assert accuracy == by_normal_equations(case, l2)
    assert accuracy == by_scikit_learn(case, l2)
    assert 0.25 < accuracy < 1


@pytest.mark.parametrize(("train", "width"), SHAPES)
def test_the_weights_of_primal_and_dual_form_solve_the_same_equations(train, width):
    x, _, targets = prepared(clusters(train, width))
    for l2, weights in zip([1.0, 1024.0], ridge(x, targets, np.array([1.0, 1024.0])), strict=True):
        left = x.T @ (x @ weights) + l2 * weights
        np.testing.assert_allclose(left, x.T @ targets, rtol=1e-6, atol=1e-6)


def test_the_penalty_holds_the_constant_too():
    """With a constant feature outside the penalty, images of a rare class would win more often."""
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 3))
    labels = np.array([0] * 36 + [1] * 4)
    x, _, targets = prepared((features, labels, features, labels))
    (weights,) = ridge(x, targets, np.array([1e6]))
    expected = targets.mean(0) / 100 / (1 + 1e6 / (40 * 100**2))
    np.testing.assert_allclose(weights[-1], expected, rtol=1e-6)


def test_one_penalty_gives_a_float_and_several_an_array_of_as_many():
    case = clusters(80, 20)
    strengths = [2.0**power for power in (-10, 0, 10, 20)]
    accuracies = least_squares_accuracy(*case, strengths)
    assert isinstance(accuracies, np.ndarray)
    assert accuracies.tolist() == [least_squares_accuracy(*case, l2) for l2 in strengths]
    assert isinstance(least_squares_accuracy(*case, 1.0), float)
    assert len(set(accuracies.tolist())) > 1


@given(scale=st.floats(0.01, 100), shift=st.floats(-100, 100), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_features_may_have_any_scale_and_offset(scale, shift, seed):
    train, labels, test, test_labels = clusters(60, 8, seed=seed)
    plain = least_squares_accuracy(train, labels, test, test_labels, 1.0)
    moved = [part.astype(np.float64) * scale + shift for part in (train, test)]
    other = least_squares_accuracy(moved[0], labels, moved[1], test_labels, 1.0)
    assert other == pytest.approx(plain, abs=0.011)  # 1e-5 beside the deviation is not scaled


def test_labels_need_not_start_at_zero_nor_follow_each_other():
    train, labels, test, test_labels = clusters(60, 8)
    names = np.array([7, 3, 100, 41])
    expected = least_squares_accuracy(train, labels, test, test_labels, 1.0)
    assert least_squares_accuracy(train, names[labels], test, names[test_labels], 1.0) == expected


def test_a_test_image_of_a_class_that_was_never_shown_is_wrong():
    train, labels, test, test_labels = clusters(60, 8, noise=0.01)
    shown = labels != 3
    accuracy = least_squares_accuracy(train[shown], labels[shown], test, test_labels, 1.0)
    assert accuracy == pytest.approx(0.75)


def test_a_feature_that_never_changes_does_no_harm():
    train, labels, test, test_labels = clusters(60, 8, noise=0.1)
    dead = [np.column_stack([part, np.full(len(part), 5.0)]) for part in (train, test)]
    assert least_squares_accuracy(dead[0], labels, dead[1], test_labels, 1.0) > 0.99


@pytest.mark.parametrize("l2", [0.0, -1.0, np.nan, np.inf, [1.0, 0.0]])
def test_a_penalty_is_above_0(l2):
    """Without one the eigenvalues that are 0 would be divided by."""
    with pytest.raises(UsageError, match=r"l2 is .*; it must be above 0"):
        least_squares_accuracy(*clusters(12, 100), l2)


# Shots


def test_shots_become_named_accuracies():
    result = few_shot(*clusters(120, 8, noise=0.01), shots=(1, 5, 25))
    assert result == {"1shot": 1.0, "5shot": 1.0, "25shot": 1.0}


def test_more_shots_help():
    result = few_shot(*clusters(400, 16), shots=(1, 10, 100))
    assert result["1shot"] < result["10shot"] < result["100shot"]


def recorded(monkeypatch, labels: np.ndarray, **options) -> list[list[int]]:
    """The numbers of the training images that each solve was given."""
    given_images = []

    def record(train_features, *_):
        given_images.append(train_features[:, 0].astype(int).tolist())
        return 0.5

    monkeypatch.setattr(module, "least_squares_accuracy", record)
    numbers = np.arange(len(labels))[:, None].astype(float)
    few_shot(numbers, labels, numbers, labels, **options)
    return given_images


def test_every_class_is_shown_as_often_as_there_are_shots(monkeypatch):
    labels = np.arange(60) % 3
    chosen = recorded(monkeypatch, labels, shots=(1, 5, 10), seeds=(0, 1))
    counts = [np.bincount(labels[numbers]).tolist() for numbers in chosen]
    assert counts == [[1] * 3, [5] * 3, [10] * 3] * 2
    assert all(len(set(numbers)) == len(numbers) for numbers in chosen)


def test_more_shots_contain_the_fewer_ones(monkeypatch):
    few, more, most = recorded(monkeypatch, np.arange(60) % 3, shots=(1, 5, 10), seeds=(4,))
    assert set(few) < set(more) < set(most)


def test_seeds_choose_other_images_and_the_same_seed_the_same_ones(monkeypatch):
    labels = np.arange(300) % 3
    one, other, again = recorded(monkeypatch, labels, shots=(5,), seeds=(0, 1, 0))
    assert one == again
    assert set(one) != set(other)


def test_the_accuracy_is_the_mean_over_the_seeds():
    case = clusters(60, 8)
    each = [few_shot(*case, shots=(2,), seeds=(seed,))["2shot"] for seed in (0, 1, 2)]
    assert few_shot(*case, shots=(2,), seeds=(0, 1, 2))["2shot"] == pytest.approx(np.mean(each))
    assert len(set(each)) > 1
    assert few_shot(*case, shots=(2,)) == few_shot(*case, shots=(2,))


def test_shots_that_some_class_has_too_few_images_for_are_left_out():
    train, _, test, test_labels = clusters(60, 8)
    labels = np.array([0] * 25 + [1] * 25 + [2] * 5 + [3] * 5)
    assert set(few_shot(train, labels, test, test_labels)) == {"1shot", "5shot"}


def test_no_possible_shots_are_an_error_that_says_how_many_images_there_are():
    train, labels, test, test_labels = clusters(8, 8)
    with pytest.raises(VitkitError, match="smallest class has 2 training images; 5 are needed"):
        few_shot(train, labels, test, test_labels, shots=(5, 10))


@pytest.mark.parametrize(("train", "width"), SHAPES)
@pytest.mark.parametrize("l2", [1.0, 2.0**10])
def test_the_weights_are_those_of_scikit_learns_ridge_without_an_intercept(train, width, l2):
    x, _, targets = prepared(clusters(train, width))
    theirs = Ridge(alpha=l2, fit_intercept=False, solver="svd").fit(x, targets).coef_.T
    np.testing.assert_allclose(ridge(x, targets, np.array([l2]))[0], theirs, atol=1e-8)


def test_several_penalties_and_seeds_give_an_accuracy_each():
    case = clusters(120, 8)
    found = few_shot_accuracies(*case, [1, 5], [0, 1, 2], [1.0, 100.0])
    assert {shot: values.shape for shot, values in found.items()} == {1: (3, 2), 5: (3, 2)}
    assert found[5][:, 1].mean() == few_shot(*case, [5], [0, 1, 2], 100.0)["5shot"]
