"""Images to learn from beside the images to score, for protocols that fit something."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache

import torch

from vitkit.data.checks import DataError, some
from vitkit.data.opening import held_out, require_classes
from vitkit.data.source import Source, Splits
from vitkit.workflows.protocols.job import Job

LOOKED_AT = 16  # images of one name that are compared with each other


def learning_and_scored(job: Job, protocol: str, several: bool = False) -> tuple[Source, Source]:
    """Images to learn from and images to score, of the same classes. DataError for images of one
    class alone, for images that are in both, and unless `several`, for images of several labels
    each."""
    pool, scored = sources(job.splits, None if job.train is None else job.train.train)
    if (pool.multi_label or scored.multi_label) and not several:
        raise DataError(
            f"{protocol} takes images of one class each, and these may have several labels; use "
            "--protocol top-k or linear"
        )
    if pool.multi_label != scored.multi_label:
        raise DataError(
            f"{protocol}: only one of the images to learn from and those to score have several "
            "labels; give data of one kind"
        )
    require_classes(pool, protocol)
    require_apart(pool, scored, protocol, job.train is not None)
    return pool, scored


def require_apart(pool: Source, scored: Source, protocol: str, chosen: bool) -> None:
    """DataError where images to score are among those to learn from, which --train has `chosen`."""
    both = in_both(pool, scored)
    if not both:
        return
    advice = (
        "give other images to --train, or leave it out, so that DATA's own training images or a "
        "half of DATA are held apart to learn from"
        if chosen
        else "give splits that share none, or other images to learn from with --train"
    )
    raise DataError(
        f"{protocol}: {both:,} of the {len(scored):,} images to score are also among those to "
        f"learn from; {advice}"
    )


def in_both(pool: Source, scored: Source) -> int:
    """How many images are in both: all where the sources are the same, else those that lie in the
    same place. Copies elsewhere are not seen; `vitkit data dedup` finds them."""
    if pool is scored:
        return len(scored)
    place = {name: index for index, name in enumerate(places(scored))}
    shared = [(i, place[name]) for i, name in enumerate(places(pool)) if name in place]
    # Two arrays may call their images alike though they hold others.
    step = max(1, len(shared) // LOOKED_AT)
    if shared and all(equal(pool, i, scored, j) for i, j in shared[::step]):
        return len({j for _, j in shared})
    same = len(pool) == len(scored) and pool.fingerprint() == scored.fingerprint()
    return len(scored) if same else 0


def places(source: Source) -> Iterator[str]:
    """Of each image its path, or file and row, the same by whichever way its folder was named."""
    for index in range(len(source)):
        folder, rest = os.path.split(source.name(index))
        yield os.path.join(real_path(folder), rest)


@lru_cache(4096)
def real_path(folder: str) -> str:
    return os.path.realpath(folder)


def equal(one: Source, i: int, other: Source, j: int) -> bool:
    """Whether two images of one place are the same; rows are compared to the byte, or where only
    pixels are kept, by those."""
    if one.file(i) is not None:
        return True
    files = one.encoded(i), other.encoded(j)
    if None not in files:
        return files[0] == files[1]
    return torch.equal(one.image(i), other.image(j))


def sources(splits: Splits, train: Source | None) -> tuple[Source, Source]:
    """Of DATA's own splits, or of those of --train and what is to be scored of DATA."""
    if train is not None:
        scored = splits.test or splits.val or splits.train
        if train.class_names != scored.class_names:
            raise DataError(
                f"found the classes {some(train.class_names)} to learn from, but "
                f"{some(scored.class_names)} in {splits.name}; expected the same names in both"
            )
        return train, scored
    if splits.test is not None:
        return splits.train, splits.test
    if splits.val is None:
        splits = held_out(splits.train, splits.name, share=0.5, at_most=len(splits.train))
    assert splits.val is not None  # held_out makes one
    return splits.train, splits.val
