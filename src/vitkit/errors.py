"""The two kinds of error a user can meet, each one sentence: what, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VitkitError(Exception):
    """The work failed: data, a checkpoint or the machine is not as it must be (exit 1)."""

    exit_code = 1
    everywhere = False  # whether all processes of a run meet it alike; then the first one tells it


class UsageError(VitkitError, ValueError):
    """The words were wrong: a name or a value that cannot be (exit 2)."""

    exit_code = 2
    everywhere = True


class ElsewhereError(VitkitError):
    """What the first process of a run could not do, in the others."""

    everywhere = True


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
