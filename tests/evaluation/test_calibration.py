"""Calibration beside torchmetrics, and on probabilities that are known to be right or wrong."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from vitkit.evaluation.calibration import FEWEST, calibration, reliability, temperature

RANDOM = np.random.default_rng(0)


def honest(images=4000, classes=6, sharpness=2.0):
    """Logits, and labels drawn by their own softmax: so the probabilities mean what they say."""
    logits = torch.from_numpy(RANDOM.normal(size=(images, classes)) * sharpness).float()
    labels = torch.multinomial(logits.softmax(1), 1, generator=torch.manual_seed(0))[:, 0]
    return logits, labels


@pytest.mark.parametrize("factor", [0.1, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("images", [1, 7, 4000])
def test_the_error_is_that_of_torchmetrics(factor, images):
    logits, labels = honest()
    logits, labels = logits[:images] * factor, labels[:images]
    theirs = MulticlassCalibrationError(6, n_bins=15, norm="l1")(logits.softmax(1), labels)
    assert reliability(logits, labels).ece == pytest.approx(
        float(theirs), abs=1e-5
    )  # it sums in float32


def test_confidence_at_an_edge_and_of_one_lies_in_a_bin_as_in_torchmetrics():
    logits = torch.tensor([[0.0, 0.0], [0.0, 200.0], [0.0, 0.0], [0.0, 300.0]])
    labels = torch.tensor([0, 1, 1, 0])
    found = reliability(logits, labels, bins=4)
    assert found.images.tolist() == [0, 0, 2, 2]
    theirs = MulticlassCalibrationError(2, n_bins=4, norm="l1")(logits.softmax(1), labels)
    assert found.ece == pytest.approx(float(theirs), abs=1e-7)


def test_bins_hold_mean_confidence_and_accuracy_and_nan_where_nothing_lies():
    logits = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]).log()
    found = reliability(logits, torch.tensor([0, 1, 1]), bins=2)
    assert found.images.tolist() == [0, 3]
    np.testing.assert_allclose(found.confidence, [np.nan, (0.9 + 0.8 + 0.6) / 3], rtol=1e-6)
    np.testing.assert_allclose(found.accuracy, [np.nan, 2 / 3])
    assert found.ece == pytest.approx(abs((0.9 + 0.8 + 0.6) / 3 - 2 / 3), abs=1e-6)


def test_the_temperature_is_where_the_likelihood_is_largest():
    logits, labels = honest()
    assert temperature(logits, labels) == pytest.approx(1, abs=0.1)
    found = temperature(3 * logits, labels)
    assert found == pytest.approx(3 * temperature(logits, labels), rel=1e-3)
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits.double() * 3 / found * inverse, labels)
    (slope,) = torch.autograd.grad(loss, inverse)
    assert abs(float(slope)) < 1e-3  # nothing is gained on either side


def test_one_temperature_mends_probabilities_that_are_too_sure_on_images_it_never_saw():
    logits, labels = honest()
    found = calibration(4 * logits, labels)
    assert found.temperature == pytest.approx(4, rel=0.1)
    assert found.apart_before.images.sum() == found.apart_after.images.sum() == 2000
    assert found.apart_after.ece < 0.03 < 0.1 < found.apart_before.ece
    assert found.before.images.sum() == 4000


def test_too_few_images_get_no_temperature():
    logits, labels = honest()
    assert calibration(logits[:FEWEST], labels[:FEWEST]).temperature is not None
    found = calibration(logits[: FEWEST - 1], labels[: FEWEST - 1])
    assert (found.temperature, found.apart_before, found.apart_after) == (None, None, None)
    assert found.before.images.sum() == FEWEST - 1
