"""A key table applied, in both directions: their tensors -> ours, ours -> theirs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from vitkit.checkpoints.keymaps import Layout, Row, Table
from vitkit.checkpoints.problems import CheckpointError

Tensors = dict[str, Tensor]

PLACEHOLDER = re.compile(r"\{(\w+)\}")
NUMBERS = {  # placeholder: what it counts, and from where
    "i": ("i", 0), "s": ("s", 0), "u": ("u", 0), "s1": ("s", 1), "u1": ("u", 1), "u02": ("u", 1),
}  # fmt: skip
# (of theirs, of ours): what a layout asks of the number of axes, None where all will do.
AXES: dict[Layout, tuple[int, int] | None] = {
    "same": None, "conv": (4, 4), "dense": (2, 2), "heads-in": (3, 2), "heads-out": (3, 2),
    "heads-flat": (2, 1), "pixel": (4, 2), "pixel-torch": (4, 2), "vector": None,
}  # fmt: skip


class Piece(NamedTuple):
    """One tensor of theirs and where it belongs."""

    theirs: str
    shape: tuple[int, ...]  # theirs
    ours: str


class Mapped(NamedTuple):
    tensors: Tensors
    pieces: list[Piece]
    unknown: list[str]  # names of theirs that no row has
    missing: list[str]  # names of theirs without which a tensor of ours is not whole


def to_ours(theirs: Tensors, table: Table, file_names: dict[str, str], source: str) -> Mapped:
    """Their tensors by our names and in our layout; `theirs` is emptied on the way.

    `file_names` gives for a name of the table the one in the file, for errors. Raises
    CheckpointError for a tensor whose axes cannot be those of its name, and for two that claim
    the same place.
    """
    parts: dict[str, tuple[Row, dict[int, str]]] = {}
    unknown = []
    for name in theirs:
        found = place_of(name, table)
        if found is None:
            unknown.append(name)
            continue
        ours, row, part = found
        known_row, known = parts.setdefault(ours, (row, {}))
        if known_row is not row or part in known:
            other = file_names[next(iter(known.values()))]
            raise CheckpointError(f"{source}: {file_names[name]} and {other} are both {ours}")
        known[part] = name
    tensors, pieces, missing = {}, [], []
    for ours, (row, known) in parts.items():
        if len(known) < len(row.theirs):
            sample = next(iter(known.values()))
            missing += [
                sibling(sample, row, part) for part in range(len(row.theirs)) if part not in known
            ]
            continue
        names = [known[part] for part in range(len(row.theirs))]
        pieces += [Piece(file_names[n], tuple(theirs[n].shape), ours) for n in names]
        if len({tuple(theirs[n].shape) for n in names}) > 1:
            listed = ", ".join(file_names[n] for n in names)
            raise CheckpointError(f"{source}: {listed} are not of one shape")
        laid = [from_layout(theirs.pop(n), row.layout, file_names[n], source) for n in names]
        # A copy, also where nothing moves: their tensor may be a map of a file, which can change.
        alone = len(laid) == 1
        whole = laid[0].clone(memory_format=torch.contiguous_format) if alone else torch.cat(laid)
        tensors[ours] = whole
    return Mapped(tensors, pieces, unknown, missing)


class FileNames(dict[str, str]):
    """For each of our names theirs; for what a file lacks the name that it would have there."""

    def __init__(self, pieces: list[Piece], table: Table) -> None:
        super().__init__()
        self.table = table
        for piece in pieces:
            known = f"{self[piece.ours]} + " if super().__contains__(piece.ours) else ""
            self[piece.ours] = known + piece.theirs

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or place_in_theirs(str(name), self.table) is not None

    def __missing__(self, name: str) -> str:
        place = place_in_theirs(name, self.table)
        if place is None:
            raise KeyError(name)
        row, numbers = place
        return " + ".join(filled(template, numbers) for template in row.theirs)


def to_theirs(ours: Tensors, table: Table, heads: int) -> tuple[Tensors, list[Piece]]:
    """Our tensors by their names and in their layout; ValueError names what no row has."""
    theirs, pieces = {}, []
    for name, tensor in ours.items():
        place = place_in_theirs(name, table)
        if place is None:
            raise ValueError(name)
        row, numbers = place
        parts = (tensor,) if len(row.theirs) == 1 else tensor.chunk(len(row.theirs))
        for template, part in zip(row.theirs, parts, strict=True):
            key = filled(template, numbers)
            theirs[key] = to_layout(part, row.layout, heads)
            pieces.append(Piece(key, tuple(theirs[key].shape), name))
    return theirs, pieces


def place_of(name: str, table: Table) -> tuple[str, Row, int] | None:
    """(our name, the row, the place among the row's parts) of one name of theirs."""
    for pattern, row, part in patterns_of_theirs(table):
        match = pattern.fullmatch(name)
        if match:
            return filled(row.ours, numbers_of(match)), row, part
    return None


def place_in_theirs(name: str, table: Table) -> tuple[Row, dict[str, str]] | None:
    """The first row for one of our names, with the numbers in it."""
    for row in table:
        match = compiled(row.ours).fullmatch(name)
        if match:
            return row, numbers_of(match)
    return None


@cache
def patterns_of_theirs(table: Table) -> list[tuple[re.Pattern[str], Row, int]]:
    return [
        (compiled(theirs), row, part) for row in table for part, theirs in enumerate(row.theirs)
    ]


@cache
def compiled(template: str) -> re.Pattern[str]:
    """ "blocks.{i}.norm1" as a pattern with a group for each placeholder."""
    pattern, end = "", 0
    for match in PLACEHOLDER.finditer(template):
        group = ".+" if match[1] == "rest" else "[0-9]{1,4}"
        pattern += re.escape(template[end : match.start()]) + f"(?P<{match[1]}>{group})"
        end = match.end()
    return re.compile(pattern + re.escape(template[end:]))


def numbers_of(match: re.Match[str]) -> dict[str, str]:
    """What the placeholders of a name stand for, numbers counted from 0."""
    values = {}
    for placeholder, text in match.groupdict().items():
        if placeholder == "rest":
            values["rest"] = text
        else:
            number, start = NUMBERS[placeholder]
            values[number] = str(int(text) - start)
    return values


def filled(template: str, numbers: dict[str, str]) -> str:
    """A template with its placeholders filled in."""

    def value(match: re.Match[str]) -> str:
        if match[1] == "rest":
            return numbers["rest"]
        number, start = NUMBERS[match[1]]
        return f"{int(numbers[number]) + start:{'02d' if match[1] == 'u02' else 'd'}}"

    return PLACEHOLDER.sub(value, template)


def sibling(name: str, row: Row, part: int) -> str:
    """The name of another part of the row that `name` is a part of."""
    match = next(m for template in row.theirs if (m := compiled(template).fullmatch(name)))
    return filled(row.theirs[part], numbers_of(match))


def from_layout(tensor: Tensor, layout: Layout, name: str, source: str) -> Tensor:
    """Their tensor in our layout, a view of it where that can be."""
    axes = AXES[layout]
    if axes and tensor.ndim != axes[0]:
        shape = tuple(tensor.shape)
        raise CheckpointError(f"{source}: {name} has shape {shape}, not {axes[0]} axes")
    if layout.startswith("pixel"):
        middle = tensor.shape[:2] if layout == "pixel" else tensor.shape[2:]
        if tuple(middle) != (1, 1):
            raise CheckpointError(f"{source}: {name} has shape {tuple(tensor.shape)}, not 1x1")
    steps: dict[Layout, Callable[[Tensor], Tensor]] = {
        "same": lambda t: t,
        "conv": lambda t: t.permute(3, 2, 0, 1),
        "dense": lambda t: t.T,
        "heads-in": lambda t: t.reshape(t.shape[0], math.prod(t.shape[1:])).T,
        "heads-out": lambda t: t.reshape(math.prod(t.shape[:2]), t.shape[2]).T,
        "heads-flat": lambda t: t.reshape(-1),
        "pixel": lambda t: t[0, 0].T,
        "pixel-torch": lambda t: t[:, :, 0, 0],
        "vector": lambda t: t.reshape(-1) if t.numel() == t.shape[-1:].numel() else t,
    }
    return steps[layout](tensor)


def to_layout(tensor: Tensor, layout: Layout, heads: int) -> Tensor:
    """Our tensor in their layout: the inverse of `from_layout`."""
    steps: dict[Layout, Callable[[Tensor], Tensor]] = {
        "same": lambda t: t,
        "conv": lambda t: t.permute(2, 3, 1, 0),
        "dense": lambda t: t.T,
        "heads-in": lambda t: t.T.reshape(t.shape[1], heads, -1),
        "heads-out": lambda t: t.T.reshape(heads, -1, t.shape[0]),
        "heads-flat": lambda t: t.reshape(heads, -1),
        "pixel": lambda t: t.T[None, None],
        "pixel-torch": lambda t: t[:, :, None, None],
        "vector": lambda t: t,
    }
    return steps[layout](tensor).contiguous()


def some(names: Iterable[str], at_most: int = 6) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
