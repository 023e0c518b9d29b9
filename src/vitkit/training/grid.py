"""The candidates of a sweep: fields and their values -> labelled configs. No torch here.

In words a field and its values are FIELD=VALUE,VALUE: `optimizer.learning-rate=0.001,0.003`. The
parts of a value that has several are joined by x (`augment.crop-area=0.05x1,0.8x1`, and an image
size as everywhere, 384 or 384x256), bools are `true` and `false`, and `none` is no value, where a
field may have none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from vitkit.errors import UsageError, named
from vitkit.training.config import HARMLESS, LENGTHS, SHORT_NAMES, TrainConfig, flat, override
from vitkit.values import fits, hints

Candidate = tuple[str, TrainConfig]  # what it is called, and what it trains with

BY_CHECKPOINT = "a checkpoint brings its own architecture"
OTHER_IMAGES = "candidates are compared on the same images; run a sweep for each"
AS_WELL = "it decides how a run is computed or recorded, not what it learns"
NOT_SWEPT = {
    **dict.fromkeys(("model", "pooling", "positions", "hidden_head", "evaluation_resize"),
                    BY_CHECKPOINT),
    **dict.fromkeys(("data.subset", "data.quarantine"), OTHER_IMAGES),
    **dict.fromkeys((*HARMLESS, "engine.compile", "data.keep", "data.decode", "evaluate_every"),
                    AS_WELL),
    "early_stopping": "the final run would be stopped by the images that measure it",
    "recipe": "it names where the other fields come from; run a sweep for each recipe",
    "seed": "a seed is luck, and no choice; --seeds N trains the chosen candidate with N of them",
}  # fmt: skip


def values_in(words: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """Words FIELD=VALUE,VALUE -> the values by the field's dotted name; UsageError."""
    over: dict[str, tuple[Any, ...]] = {}
    for word in words:
        field, equals, values = word.partition("=")
        if not equals:
            raise UsageError(
                f"--sweep {word}: expected FIELD=VALUE,VALUE as in "
                "--sweep optimizer.learning-rate=0.003,0.01"
            )
        name = dotted(field)
        check_field(name)
        if name in over:
            raise UsageError(f"--sweep {field} is given twice; give all its values at once")
        over[name] = tuple(read(field, text, kind_of(name)) for text in values.split(","))
    return over


def grid(
    config: TrainConfig, over: Mapping[str, Sequence[Any]], given: Collection[str] = ()
) -> list[Candidate]:
    """Every combination of the values of the fields in `over`, put into the config.

    The first field varies slowest. `given` are the fields that were set besides, by any name.
    UsageError for a field or a value that cannot be, before there is any candidate.
    """
    fields = {dotted(name): list(values) for name, values in over.items()}
    if len(fields) < len(over):
        raise UsageError(f"{', '.join(over)}: one field is given twice; give its values at once")
    check_once(fields, {dotted(name) for name in given})
    fields = {name: checked_values(name, values) for name, values in fields.items()}
    titles = {name: title(name, fields) for name in fields}
    return [
        (
            ", ".join(f"{titles[name]} {written(value)}" for name, value in point.items()),
            override(config, point),
        )
        for values in product(*fields.values())
        for point in [dict(zip(fields, values, strict=True))]
    ]


def dotted(name: str) -> str:
    """A field's dotted name from any of its names; UsageError where there is none such."""
    plain = name.replace("-", "_")
    known = flat(TrainConfig())
    path = SHORT_NAMES.get(plain, plain)
    if path not in known:  # the nearest names are told as people write them
        named("field", name, [other.replace("_", "-") for other in (*known, *SHORT_NAMES)])
    return path


def check_once(fields: Collection[str], given: Collection[str]) -> None:
    """UsageError where a field is swept and set, or a run would have two lengths."""
    both = [name for name in fields if name in given]
    if any(name in LENGTHS for name in fields):
        both += [name for name in LENGTHS if name in given and name not in both]
    if both:
        name = both[0].replace("_", "-")
        raise UsageError(f"--{name} is given, but the sweep decides that; leave out one of them")


def check_field(name: str) -> None:
    """UsageError for a field whose values cannot be compared by a sweep."""
    why = NOT_SWEPT.get(name)
    if why is None and str in get_args(kind_of(name)):  # patterns may hold any sign
        why = "its value is a list of names; run a sweep for each"
    if why is not None:
        raise UsageError(f"--sweep {name.replace('_', '-')}: cannot be swept: {why}")


def checked_values(name: str, values: Sequence[Any]) -> list[Any]:
    """The values as they would be read; UsageError for another type, or one that comes twice."""
    check_field(name)
    field, kind = name.replace("_", "-"), kind_of(name)
    checked: list[Any] = []
    for value in values:
        if not fits(value, kind) and not (kind == tuple[int, int] and fits(value, int)):
            raise UsageError(f"--sweep {field}: {value!r} must be {wanted(kind)}")
        checked.append(settled(value, kind))
        if checked[-1] in checked[:-1]:
            raise UsageError(f"--sweep {field}: {written(checked[-1])} is given twice; drop one")
    return checked


def settled(value: Any, kind: Any) -> Any:
    """A value that fits its type as words would give it: 1 as 1.0 where it is a float."""
    origin, inner = get_origin(kind), get_args(kind)
    if value is None or origin is Literal:
        return value
    if origin is UnionType:
        return settled(value, next(one for one in inner if one is not NoneType))
    if origin is tuple:
        parts = value if isinstance(value, tuple | list) else (value, value)
        return tuple(settled(part, inner[0]) for part in parts)
    return kind(value)


def kind_of(name: str) -> Any:
    """The type that a field is annotated with, by its dotted name."""
    kind: Any = TrainConfig
    for part in name.split("."):
        kind = hints(kind)[part]
    return kind


def read(field: str, text: str, kind: Any) -> Any:
    """A value of the annotated type from its text; UsageError where it is none."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        if text.lower() == "none" and NoneType in inner:
            return None
        return read(field, text, next(one for one in inner if one is not NoneType))
    if origin is Literal:
        return named(f"value of {field}", text, inner)
    if origin is tuple:
        parts = text.split("x")
        if kind == tuple[int, int] and len(parts) == 1:  # of a square
            parts *= 2
        return tuple(read(field, part, inner[0]) for part in parts)
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError) as error:
        raise UsageError(f"--sweep {field}: {text!r} must be {wanted(kind)}") from error


def wanted(kind: Any) -> str:
    """What a value of this type is, in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        first = next(one for one in inner if one is not NoneType)
        return wanted(first) + (" or none" if NoneType in inner else "")
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin is tuple:
        number = "numbers" if inner[1:] == (...,) else f"{len(inner)} numbers"
        return f"{number} joined by x"
    return {int: "a whole number", float: "a number", bool: "true or false"}[kind]


def title(name: str, fields: Iterable[str]) -> str:
    """The shortest name that says which of the fields is meant."""
    last = name.rsplit(".", 1)[-1]
    alone = sum(other.rsplit(".", 1)[-1] == last for other in fields) == 1
    return (last if alone else name).replace("_", "-")


def written(value: Any) -> str:
    """A value as it is read."""
    if isinstance(value, tuple | list):
        return "x".join(map(written, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
