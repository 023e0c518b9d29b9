"""Whether values are of the types that a dataclass annotates, be they from people or from JSON."""

from __future__ import annotations

import reprlib
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

WORDS = {"int": "a whole number", "float": "a finite number", "float | None": "a finite number",
         "tuple[int, int]": "a height and a width, whole numbers"}  # fmt: skip
LARGEST_FLOAT = 3.4028234663852886e38  # that float32 holds


def settle(config: Any) -> None:
    """For `__post_init__`: lists become tuples, whole numbers floats where the field is one.

    ValueError for a value of another type.

    Choices (Literal) are left to the dataclass, which knows what to say.
    """
    for field in fields(config):
        value, kind = getattr(config, field.name), hints(type(config))[field.name]
        if get_origin(kind) is not Literal and not fits(value, kind):
            wanted = WORDS.get(str(field.type), f"of type {field.type}")
            raise ValueError(f"{field.name} is {reprlib.repr(value)}; it must be {wanted}")
        if isinstance(value, list):
            object.__setattr__(config, field.name, tuple(value))
        if type(value) is int and kind in (float, float | None):  # torch takes no large ones
            object.__setattr__(config, field.name, float(value))


@cache
def hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type, and a number one that torch can hold.

    2.0 and True are no int; an int is a float, NaN and infinity are not; a list is a tuple.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inner
    if origin is UnionType:
        return any(fits(value, one) for one in inner)
    if origin is tuple and inner[1:] == (...,):
        return isinstance(value, list | tuple) and all(fits(entry, inner[0]) for entry in value)
    if origin is tuple:
        right_length = isinstance(value, list | tuple) and len(value) == len(inner)
        return right_length and all(map(fits, value, inner))
    if origin is list:
        return isinstance(value, list) and all(fits(entry, inner[0]) for entry in value)
    if kind is float:
        number = isinstance(value, float) or type(value) is int  # numpy's float64 is a float
        return number and abs(value) <= LARGEST_FLOAT
    return type(value) is kind and (kind is not int or abs(value) < 2**63)
