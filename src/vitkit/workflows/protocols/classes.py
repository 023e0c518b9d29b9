"""The classes of DATA beside those of the net, matched by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitkit.data.checks import DataError, some
from vitkit.data.classes.imagenet import looks_like, same_imagenet_classes
from vitkit.errors import UsageError

LISTED = 50  # unknown classes in a message

Forms = Callable[[str], set[str]]  # what a name may also be written as


def class_numbers(known: Sequence[str], given: Sequence[str], title: str) -> Tensor:
    """For each class of the data its number in the net, by name: (K of the data,) int64.

    A name is looked for as it is; then without regard to case, underscores and spaces; then by
    any of the names that commas part ("tench, Tinca tinca"); where that does not settle every
    class, all are looked for as classes of ImageNet by any of their names, WordNet numbers
    included. DataError, with the names, where the net knows no such class or more than one, or
    where two classes of the data are one of the net.
    """
    if not known:
        raise UsageError(
            "this net has no head, so it predicts no classes; use --protocol few-shot, knn or "
            "linear, or fine-tune it"
        )
    if list(known) == list(given):
        return torch.arange(len(known))
    ways = [(forms, places(known, forms)) for forms in (exactly, folded, any_of)]
    found = [candidates(name, ways) for name in given]
    if any(len(numbers) != 1 for numbers in found):
        of_imagenet = same_imagenet_classes(known, given)
        if None not in of_imagenet:
            return torch.tensor(of_imagenet)
    unknown = [name for name, numbers in zip(given, found, strict=True) if not numbers]
    if unknown:
        of_set = looks_like(given)
        how = "use --protocol few-shot, knn or linear" if of_set is None else f"--classes {of_set}"
        raise DataError(
            f"{title}: the net does not know the classes {some(unknown, LISTED)}; it knows "
            f"{some(known)}. Evaluate on data with its classes, or {how}"
        )
    several = [
        f"{name} ({', '.join(known[n] for n in sorted(numbers))})"
        for name, numbers in zip(given, found, strict=True)
        if len(numbers) > 1
    ]
    if several:
        raise DataError(
            f"{title}: the net knows more than one class for {some(several)}; rename them to what "
            "the net calls them"
        )
    chosen = [numbers.pop() for numbers in found]
    times = Counter(chosen)
    twice = [name for name, n in zip(given, chosen, strict=True) if times[n] > 1]
    if twice:
        raise DataError(
            f"{title}: the classes {some(twice)} are the same ones to the net; put them together, "
            "or rename them to what the net calls them"
        )
    return torch.tensor(chosen)


def exactly(name: str) -> set[str]:
    return {name}


def folded(name: str) -> set[str]:
    return {"".join(name.casefold().replace("_", " ").split())}


def any_of(name: str) -> set[str]:
    return {form for part in name.split(",") for form in folded(part) if form}


def places(known: Sequence[str], forms: Forms) -> dict[str, set[int]]:
    """By each form of a name the numbers of the net's classes that have it."""
    found: dict[str, set[int]] = {}
    for number, name in enumerate(known):
        for form in forms(name):
            found.setdefault(form, set()).add(number)
    return found


def candidates(name: str, ways: Sequence[tuple[Forms, dict[str, set[int]]]]) -> set[int]:
    """The net's classes that a name can mean, by the first way that finds any."""
    for forms, found in ways:
        numbers = {number for form in forms(name) for number in found.get(form, ())}
        if numbers:
            return numbers
    return set()


def renumber(labels: Tensor, number: Tensor, classes: int) -> Tensor:
    """Labels (B,) or (B, K) of the data -> those of the net, which has so many classes."""
    if labels.ndim == 1:
        return number[labels]
    of_net = labels.new_zeros(len(labels), classes)
    of_net[:, number] = labels
    return of_net
