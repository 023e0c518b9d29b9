"""top_k: every image counts once, whatever the batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import Tensor

from vitkit.data.pipeline import Batch
from vitkit.evaluation.topk import features_of, top_k


def batches_of(logits: Tensor, labels: Tensor, size: int) -> list[Batch]:
    """Batches whose images are the logits, to be predicted by `flat`."""
    images = logits[:, None, None]
    return [
        Batch(images[start : start + size], labels[start : start + size])
        for start in range(0, len(labels), size)
    ]


def flat(images: Tensor) -> Tensor:
    return images.flatten(1)


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
    assert set(result) == {"top1", "top3", "loss", "images"}
    assert result["top3"] == pytest.approx(top_k_accuracy_score(labels, logits, k=3))


def test_bfloat16_logits_are_compared_and_summed_in_float32():
    logits, labels = random_case(64, 9, seed=2)
    rounded = logits.bfloat16()
    half = top_k(flat, batches_of(rounded, labels, 64))
    assert half == pytest.approx(top_k(flat, batches_of(rounded.float(), labels, 64)), rel=1e-6)


def test_no_images_are_an_error():
    with pytest.raises(ValueError, match="no images to evaluate"):
        top_k(flat, [])


def test_features_come_with_their_labels_in_order_and_in_float32():
    logits, labels = random_case(23, 6, seed=3)
    features, found = features_of(flat, batches_of(logits.bfloat16(), labels, 5))
    assert features.dtype == torch.float32
    assert torch.equal(features, logits.bfloat16().float())
    assert torch.equal(found, labels)
