"""The images that a net got wrong by the most, with small pictures of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitkit.data.source import Source
from vitkit.evaluation.findings import Mistake
from vitkit.workflows.pictures import picture

EACH = 12


def mistakes(
    logits: Tensor, labels: Tensor, source: Source, class_names: Sequence[str]
) -> tuple[tuple[Mistake, ...], tuple[Mistake, ...]]:
    """Of the wrong ones those whose true class had the smallest probability, and those whose wrong
    class had the largest; logits (N, K), labels (N,) and names of the net's numbering."""
    shares = logits.softmax(1)
    largest, best = shares.max(1)
    true = shares.gather(1, labels[:, None])[:, 0]
    wrong = torch.nonzero(best != labels)[:, 0]

    def mistake(index: int) -> Mistake:
        return Mistake(
            source.name(index), class_names[int(labels[index])], class_names[int(best[index])],
            float(largest[index]), float(true[index]), picture(source, index),
        )  # fmt: skip

    by_true = wrong[true[wrong].argsort(stable=True)[:EACH]].tolist()
    by_wrong = wrong[largest[wrong].argsort(descending=True, stable=True)[:EACH]].tolist()
    return tuple(map(mistake, by_true)), tuple(map(mistake, by_wrong))
