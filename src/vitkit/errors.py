"""The two kinds of error a user can meet, each one sentence: what, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VitkitError(Exception):
    """The work failed: data, a checkpoint or the machine is not as it must be (exit 1)."""

    exit_code = 1


class UsageError(VitkitError, ValueError):
    """The words were wrong: a name or a value that cannot be (exit 2)."""

    exit_code = 2


class ElsewhereError(VitkitError):
    """What another process of the same run could not do; that one tells it."""


def named(kind: str, name: str, known: Iterable[str]) -> str:
    """`name` if it is one of `known`, else a UsageError that gives the nearest of them."""
    known = list(known)
    if name in known:
        return name
    folded = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)
    if near:
        advice = "did you mean " + " or ".join(repr(folded[other]) for other in near) + "?"
    else:
        advice = "the known ones: " + ", ".join(known)
    raise UsageError(f"unknown {kind} {name!r}; {advice}")
