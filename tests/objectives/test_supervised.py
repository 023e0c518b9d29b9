"""Cross-entropy: softmax as PyTorch has it, sigmoid as the authors sum it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from vitkit.objectives.supervised import class_weights, cross_entropy


def random_case(batch: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, generator=generator)
    return logits, torch.randint(classes, (batch,), generator=generator)


def sigmoid_by_hand(logits: Tensor, labels: Tensor, smoothing: float) -> float:
    """-sum over classes of t log p + (1 - t) log (1 - p), mean over the batch."""
    total = 0.0
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        for number, logit in enumerate(row):
            target = (1 - smoothing) * (number == label) + smoothing / len(row)
            share = 1 / (1 + math.exp(-logit))
            total -= target * math.log(share) + (1 - target) * math.log(1 - share)
    return total / len(labels)


cases = {
    "batch": st.integers(1, 8), "classes": st.integers(2, 9), "seed": st.integers(0, 99),
    "smoothing": st.sampled_from([0.0, 0.1, 0.5]),
}  # fmt: skip


@given(**cases)
@settings(max_examples=30, deadline=None)
def test_softmax_is_pytorchs_cross_entropy_smoothed_or_not(batch, classes, seed, smoothing):
    logits, labels = random_case(batch, classes, seed)
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, labels, smoothing=smoothing), expected)


@given(**cases)
@settings(max_examples=30, deadline=None)
def test_sigmoid_sums_over_the_classes_and_averages_over_the_batch(batch, classes, seed, smoothing):
    logits, labels = random_case(batch, classes, seed)
    loss = cross_entropy(logits, labels, "sigmoid", smoothing)
    assert float(loss) == pytest.approx(sigmoid_by_hand(logits, labels, smoothing), rel=1e-5)


def test_softmax_is_the_default():
    logits, labels = random_case(6, 4)
    assert cross_entropy(logits, labels) == cross_entropy(logits, labels, "softmax", 0.0)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_repeating_the_batch_does_not_change_the_loss(loss):
    logits, labels = random_case(6, 4)
    twice = cross_entropy(logits.repeat(2, 1), labels.repeat(2), loss)
    torch.testing.assert_close(twice, cross_entropy(logits, labels, loss))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_loss_is_computed_in_float32_whatever_the_logits_are(loss, dtype):
    logits, labels = random_case(64, 50)
    rounded = logits.to(dtype).requires_grad_()
    value = cross_entropy(rounded, labels, loss)
    assert value.dtype == torch.float32
    assert value.shape == ()
    torch.testing.assert_close(value, cross_entropy(rounded.float(), labels, loss))
    value.backward()
    assert rounded.grad is not None
    assert rounded.grad.dtype == dtype


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_large_logits_give_a_finite_loss(loss):
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    assert cross_entropy(logits, torch.tensor([0, 1]), loss) == 0
    assert cross_entropy(logits, torch.tensor([1, 0]), loss).isfinite()


# Labels as rows of shares


def random_shares(batch: int, classes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, classes, generator=generator).softmax(1)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_hot_rows_give_the_loss_of_the_labels(loss, smoothing):
    logits, labels = random_case(6, 4)
    rows = F.one_hot(labels, 4).float()
    expected = cross_entropy(logits, labels, loss, smoothing)
    torch.testing.assert_close(cross_entropy(logits, rows, loss, smoothing), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_of_shares_is_pytorchs(smoothing):
    logits, _ = random_case(6, 4)
    rows = random_shares(6, 4)
    by_hand = -((rows * (1 - smoothing) + smoothing / 4) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(cross_entropy(logits, rows, "softmax", smoothing), by_hand)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_mixed_row_gives_the_mixed_loss_of_both_labels(loss):
    logits, labels = random_case(6, 4)
    others = labels.roll(1)
    rows = 0.7 * F.one_hot(labels, 4) + 0.3 * F.one_hot(others, 4)
    first, second = cross_entropy(logits, labels, loss), cross_entropy(logits, others, loss)
    torch.testing.assert_close(cross_entropy(logits, rows, loss), 0.7 * first + 0.3 * second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool])
def test_sigmoid_of_several_labels_is_pytorchs_whatever_type_the_rows_have(dtype):
    logits, _ = random_case(6, 4)
    rows = (random_shares(6, 4) > 0.25).to(dtype)
    expected = (
        F.multilabel_soft_margin_loss(logits, rows.float()) * 4
    )  # that is a mean over classes
    torch.testing.assert_close(cross_entropy(logits, rows, "sigmoid"), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_row_without_labels_asks_sigmoid_for_none_of_the_classes(smoothing):
    logits, _ = random_case(3, 4)
    targets = torch.full((3, 4), smoothing / 4)
    expected = F.binary_cross_entropy_with_logits(logits, targets) * 4
    loss = cross_entropy(logits, torch.zeros(3, 4), "sigmoid", smoothing)
    torch.testing.assert_close(loss, expected)


# Classes weighted


def test_class_weights_go_by_a_power_of_the_images_and_have_the_mean_1_over_them():
    weights = class_weights([8, 2, 0], 1.0)
    assert weights.tolist() == pytest.approx([0.625, 2.5, 1.0])  # 8 x 0.625 = 2 x 2.5 = 10 / 2
    half = class_weights([9, 1], 0.5)  # in proportion to 1/3 and 1, 9 a + b = 10
    assert half.tolist() == pytest.approx([5 / 6, 2.5])
    assert class_weights([5, 5, 5], 1.0).tolist() == pytest.approx([1, 1, 1])


def test_softmax_weights_the_loss_of_each_image_and_divides_by_all_of_them():
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])  # shares 3/4, 1/4 and 1/2, 1/2
    weights = torch.tensor([0.5, 2.0])
    loss = cross_entropy(logits, torch.tensor([0, 1]), class_weights=weights)
    assert float(loss) == pytest.approx((0.5 * math.log(4 / 3) + 2 * math.log(2)) / 2)


def test_sigmoid_weights_the_positive_terms_of_each_class():
    logits = torch.tensor([[math.log(3), 0.0]])  # sigmoids 3/4 and 1/2
    weights = torch.tensor([0.5, 2.0])
    several = cross_entropy(logits, torch.tensor([[1.0, 1.0]]), "sigmoid", 0.0, weights)
    assert float(several) == pytest.approx(0.5 * math.log(4 / 3) + 2 * math.log(2))
    none = cross_entropy(logits, torch.tensor([[0.0, 0.0]]), "sigmoid", 0.0, weights)
    assert float(none) == pytest.approx(math.log(4) + math.log(2))  # negatives weigh as ever
    one = cross_entropy(logits, torch.tensor([1]), "sigmoid", 0.0, weights)
    assert float(one) == pytest.approx(math.log(4) + 2 * math.log(2))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mixed_rows_weigh_by_the_shares_of_their_classes(smoothing):
    logits, labels = random_case(6, 4)
    others, weights = labels.roll(1), torch.tensor([0.2, 0.5, 1.0, 3.0])
    rows = 0.7 * F.one_hot(labels, 4) + 0.3 * F.one_hot(others, 4)
    each = F.cross_entropy(logits, rows, reduction="none", label_smoothing=smoothing)
    expected = (each * (0.7 * weights[labels] + 0.3 * weights[others])).mean()
    loss = cross_entropy(logits, rows, "softmax", smoothing, weights)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_of_one_change_nothing(loss, smoothing):
    logits, labels = random_case(6, 4)
    weighted = cross_entropy(logits, labels, loss, smoothing, torch.ones(4))
    torch.testing.assert_close(weighted, cross_entropy(logits, labels, loss, smoothing))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_weighted_losses_of_parts_add_up_to_that_of_the_batch(loss):
    logits, labels = random_case(8, 4)
    weights = torch.tensor([0.2, 0.5, 1.0, 3.0])
    whole = cross_entropy(logits, labels, loss, 0.0, weights)
    pairs = zip(logits.split(3), labels.split(3), strict=True)
    parts = [cross_entropy(x, y, loss, 0.0, weights) * len(x) / 8 for x, y in pairs]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
