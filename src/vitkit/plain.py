"""Results as plain dataclasses of arrays, numbers and texts: their parts, and their files.

A result is saved as NAME.json and NAME.npz, so that a page, a notebook or another program can show
it without this code.
"""

from __future__ import annotations

import io
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints
from zipfile import BadZipFile

import numpy as np

from vitkit.errors import VitkitError
from vitkit.files import write_whole
from vitkit.terminal import finite

T = TypeVar("T")
ARRAY = "array of the .npz"  # the one key of a JSON object that stands for an array


@dataclass(frozen=True)
class Table:
    """Rows of texts, as people read them."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""  # a sentence below it


@dataclass(frozen=True)
class Curve:
    """Lines over one axis."""

    title: str
    x_name: str
    y_name: str
    x: np.ndarray  # (n,)
    lines: dict[str, np.ndarray]  # by name: (n,), NaN where there is nothing
    share: bool = False  # whether y is a share, to be shown in per cent
    log_x: bool = False


def save(result: Any, stem: Path) -> None:
    """A dataclass -> stem.json and stem.npz, each whole or not there."""
    arrays: dict[str, np.ndarray] = {}
    tree = to_tree(result, "", arrays)
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_whole(stem.with_name(stem.name + ".npz"), content.getvalue())
    text = json.dumps(finite(tree), indent=1, ensure_ascii=False)
    # Names of files may be no UTF-8.
    write_whole(
        stem.with_name(stem.name + ".json"), text.encode("utf-8", "backslashreplace") + b"\n"
    )


def load(kind: type[T], stem: Path) -> T:
    """What `save` wrote, as the dataclass `kind`. Raises VitkitError where it is not that."""
    try:
        tree = json.loads(stem.with_name(stem.name + ".json").read_text(encoding="utf-8"))
        with np.load(stem.with_name(stem.name + ".npz"), allow_pickle=False) as arrays:
            return from_tree(kind, tree, arrays)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, BadZipFile) as error:
        raise VitkitError(f"{stem}.json and .npz hold no {kind.__name__}: {error}") from error


def to_tree(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """What JSON can hold, the arrays put aside by names that tell where they were."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_tree(getattr(value, field.name), f"{name}.{field.name}", arrays)
            for field in fields(value)
        }
    if isinstance(value, np.ndarray):
        place = name.removeprefix(".")
        arrays[place] = value
        return {ARRAY: place}
    if isinstance(value, dict):
        return {key: to_tree(inner, f"{name}.{key}", arrays) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_tree(inner, f"{name}.{i}", arrays) for i, inner in enumerate(value)]
    return value.item() if isinstance(value, np.generic) else value


def from_tree(kind: Any, tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """A value of the annotated type."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if tree is None and type(None) in inner:
            return None
        kind = next(option for option in inner if option is not type(None))
        return from_tree(kind, tree, arrays)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        known = {name: from_tree(hints[name], part, arrays) for name, part in tree.items()}
        return kind(**known)  # pyright: ignore[reportCallIssue]
    if kind is np.ndarray:
        return arrays[tree[ARRAY]]
    if origin is dict:
        return {key: from_tree(inner[1], part, arrays) for key, part in tree.items()}
    if origin is tuple and inner[-1] is not Ellipsis:
        return tuple(from_tree(k, part, arrays) for k, part in zip(inner, tree, strict=True))
    if origin in (tuple, list):
        return origin(from_tree(inner[0], part, arrays) for part in tree)
    if kind is float and tree is None:  # JSON has no NaN
        return float("nan")
    return tree
