"""top_k: every image and every class counts, whatever the batches and however many the labels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    log_loss,
    recall_score,
    top_k_accuracy_score,
)
from torch import Tensor
from torch.nn import functional as F

from vitkit.data.checks import DataError
from vitkit.data.pipeline import Batch
from vitkit.evaluation.topk import average_precision, features_of, top_k


def batches_of(logits: Tensor, labels: Tensor, size: int) -> list[Batch]:
    """Batches whose images are the logits, to be predicted by `flat`."""
    images = logits[:, None, None]
    return [
        Batch(images[start : start + size], labels[start : start + size])
        for start in range(0, len(labels), size)
    ]


def flat(images: Tensor) -> Tensor:
    return images.flatten(1)


def numbers(found: dict) -> dict[str, float]:
    return {name: value for name, value in found.items() if not isinstance(value, list)}


def random_case(images: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator)
    return logits, torch.randint(classes, (images,), generator=generator)


@given(
    images=st.integers(1, 60), classes=st.integers(6, 12), size=st.integers(1, 70),
    seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_shares_and_loss_are_those_of_scikit_learn_for_any_batch_size(images, classes, size, seed):
    logits, labels = random_case(images, classes, seed)
    result = top_k(flat, batches_of(logits, labels, size))
    names = np.arange(classes)
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=names)
        assert result[f"top{k}"] == pytest.approx(expected)
    expected_loss = log_loss(labels, logits.double().softmax(1).numpy(), labels=names)
    assert result["loss"] == pytest.approx(expected_loss, rel=1e-4)
    assert result["images"] == images


def test_the_images_of_a_partial_last_batch_count_like_all_others():
    logits, labels = torch.eye(7), torch.arange(7)
    labels[6] = 0  # the only image of the last batch, and the only wrong one
    result = top_k(flat, batches_of(logits, labels, 3))
    assert result["top1"] == pytest.approx(6 / 7)
    assert result["images"] == 7


def test_with_fewer_classes_than_five_top_5_is_one():
    logits, labels = random_case(20, 3, seed=0)
    result = top_k(flat, batches_of(logits, labels, 8))
    assert result["top5"] == 1
    assert result["top1"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))


def test_other_numbers_of_guesses_can_be_asked_for():
    logits, labels = random_case(50, 9, seed=1)
    result = top_k(flat, batches_of(logits, labels, 8), ks=(1, 3))
    assert {"top1", "top3", "loss", "images"} < set(result) and "top5" not in result
    assert result["top3"] == pytest.approx(top_k_accuracy_score(labels, logits, k=3))


def test_bfloat16_logits_are_compared_and_summed_in_float32():
    logits, labels = random_case(64, 9, seed=2)
    rounded = logits.bfloat16()
    half = top_k(flat, batches_of(rounded, labels, 64))
    whole = top_k(flat, batches_of(rounded.float(), labels, 64))
    assert numbers(half) == pytest.approx(numbers(whole), rel=1e-6)
    assert half["class_recall"] == whole["class_recall"]


def test_no_images_are_an_error():
    with pytest.raises(ValueError, match="no images to evaluate"):
        top_k(flat, [])


def test_features_come_with_their_labels_in_order_and_in_float32():
    logits, labels = random_case(23, 6, seed=3)
    features, found = features_of(flat, batches_of(logits.bfloat16(), labels, 5))
    assert features.dtype == torch.float32
    assert torch.equal(features, logits.bfloat16().float())
    assert torch.equal(found, labels)


# The recall of each class


@given(
    images=st.integers(1, 60), classes=st.integers(2, 12), size=st.integers(1, 70),
    seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_the_recall_of_each_class_is_scikit_learns_over_the_classes_that_occur(
    images, classes, size, seed
):
    logits, labels = random_case(images, classes, seed)
    result = top_k(flat, batches_of(logits, labels, size))
    names = np.arange(classes)
    expected = recall_score(
        labels, logits.argmax(1), labels=names, average=None, zero_division=np.nan
    )
    assert result["class_recall"] == [
        None if np.isnan(share) else pytest.approx(share) for share in expected
    ]
    assert result["class_images"] == np.bincount(labels, minlength=classes).tolist()
    assert result["mean_class_recall"] == pytest.approx(np.nanmean(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_recalls_weighted_by_their_images_are_the_top_1_share_also_where_classes_are_equal(
    dtype,
):
    logits, labels = random_case(300, 4, seed=5)
    result = top_k(flat, batches_of(logits.round().to(dtype), labels, 64))
    shares = np.average(result["class_recall"], weights=result["class_images"])
    assert shares == pytest.approx(result["top1"])


@given(images=st.integers(1, 60), size=st.integers(1, 70), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_of_several_labels_each_is_found_where_its_sigmoid_is_above_a_half(images, size, seed):
    logits, labels = several_labels(images, 7, seed)
    result = top_k(flat, batches_of(logits, labels, size))
    found = logits.sigmoid() > 0.5
    expected = recall_score(labels, found, average=None, zero_division=np.nan)
    assert result["class_recall"] == [
        None if np.isnan(share) else pytest.approx(share) for share in expected
    ]
    assert result["mean_class_recall"] == pytest.approx(np.nanmean(expected))


# Several labels for an image


def several_labels(images: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scores with ties, of images with none to many labels, one at least."""
    generator = torch.Generator().manual_seed(seed)
    logits = (2 * torch.randn(images, classes, generator=generator)).round() / 2
    labels = (torch.rand(images, classes, generator=generator) < 0.3).float()
    labels[0, 0] = 1
    return logits, labels


@given(
    images=st.integers(1, 60), classes=st.integers(6, 12), size=st.integers(1, 70),
    seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_average_precision_is_scikit_learns_over_the_classes_that_occur(
    images, classes, size, seed
):
    logits, labels = several_labels(images, classes, seed)
    result = top_k(flat, batches_of(logits, labels, size))
    occurs = labels.any(0)
    expected = average_precision_score(labels[:, occurs], logits[:, occurs], average="macro")
    assert result["mean_average_precision"] == pytest.approx(expected)
    assert result["images"] == images


def test_a_guess_is_right_where_it_is_among_the_labels_and_images_without_any_are_left_out():
    best_first = torch.arange(8.0, 0, -1).repeat(5, 1)  # class 0 is the best, class 7 the last
    labels = torch.zeros(5, 8)
    labels[0, [0, 6]] = 1
    labels[1, [4, 7]] = 1
    labels[2, 5] = 1
    labels[3, 0:3] = 1
    result = top_k(flat, batches_of(best_first, labels, 2))
    assert result["top1"] == 2 / 4
    assert result["top5"] == 3 / 4
    assert result["images"] == 5


def test_the_loss_of_several_labels_is_sigmoid_cross_entropy_summed_over_the_classes():
    logits, labels = several_labels(30, 7, seed=1)
    result = top_k(flat, batches_of(logits, labels, 8))
    expected = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / 30
    assert result["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_several_processes_find_what_one_finds():
    logits, labels = several_labels(31, 7, seed=2)
    one = top_k(flat, batches_of(logits, labels, 8))
    shares = [batches_of(logits[rank::3], labels[rank::3], 8) for rank in range(3)]
    told: list[tuple] = []  # what each process counted and kept

    def first_pass(share: list[Batch]) -> None:
        sums: list[Tensor] = []
        everything: list = []
        top_k(flat, share, total=lambda own: sums.append(own) or own,
              of_all=lambda own: everything.append(own) or [own])  # fmt: skip
        told.append((sums[0], everything[0]))

    for share in shares:
        first_pass(share)
    together = top_k(
        flat,
        shares[1],
        total=lambda _: torch.stack([sums for sums, _ in told]).sum(0),
        of_all=lambda _: [kept for _, kept in told],
    )
    assert numbers(together) == pytest.approx(numbers(one))
    assert together["class_recall"] == one["class_recall"]
    assert together["class_images"] == one["class_images"] == labels.sum(0).int().tolist()


def test_a_process_without_images_finds_what_the_others_find():
    logits, labels = several_labels(9, 7, seed=3)
    one = top_k(flat, batches_of(logits, labels, 8))
    kept = [(logits.numpy(), labels.bool().numpy())]
    labelled = int(labels.any(1).sum())
    right = [one[name] * labelled for name in ("top1", "top5")]
    images = torch.tensor(one["class_images"])
    recall = torch.tensor([share or 0.0 for share in one["class_recall"]]).double()
    by_class = [*(recall * images).round().tolist(), *images.tolist()]
    sums = torch.tensor([*right, labelled, 9, 9 * one["loss"], *by_class]).double()
    found = top_k(
        flat,
        [Batch(torch.zeros(0, 1, 1, 7), torch.zeros(0, dtype=torch.int64))],
        total=lambda _: sums,
        of_all=lambda own: [own, kept],
    )
    assert numbers(found) == pytest.approx(numbers(one))
    assert found["class_recall"] == one["class_recall"]


def test_images_without_any_label_are_an_error_that_says_so():
    with pytest.raises(DataError, match="none of the 4 images to evaluate has a label"):
        top_k(flat, batches_of(torch.randn(4, 6), torch.zeros(4, 6), 3))


def test_images_of_one_score_are_found_together():
    assert average_precision(np.zeros(4), np.array([True, False, False, False])) == 0.25
