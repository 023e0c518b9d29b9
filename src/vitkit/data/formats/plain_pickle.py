"""Pickles of plain things, read without running anything in them.

A pickle is a program that may call any function. Here its instructions are followed by a machine
that knows none: it builds dicts, lists, tuples, texts, bytes and numbers, and of numpy's arrays it
keeps what they were to be made from. Whatever else a pickle asks for is refused.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

MARK = object()
PARTS_OF_ARRAYS = {
    *(f"numpy.{core}.multiarray _reconstruct" for core in ("core", "_core")),
    "numpy ndarray",
    "numpy dtype",
    "_codecs encode",
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = {
    "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
    "FLOAT", "BINFLOAT",
}  # fmt: skip
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleError(Exception):
    """The pickle is damaged or holds something that is not plain."""


@dataclass(frozen=True)
class Called:
    """What a pickle wanted to call: nothing is."""

    name: str


@dataclass
class Built:
    """What a pickle wanted to make by a call, and the state that it wanted to give to it."""

    name: str
    arguments: tuple
    state: Any = None


def load_plain(data: bytes) -> Any:
    """The content of a pickle; arrays in it are for `array_of`. Raises PickleError."""
    machine = Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except PickleError:
        raise
    except Exception as error:  # genops raises many kinds on damaged bytes
        raise PickleError(f"a damaged pickle ({type(error).__name__})") from error
    raise PickleError("a pickle without an end")


def array_of(value: Any) -> np.ndarray | None:
    """The uint8 array that a pickle wanted to make; None for anything else. Not writable."""
    if not isinstance(value, Built) or not value.name.endswith("_reconstruct"):
        return None
    state = value.state
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    _, shape, kind, columns_first, data = state
    data = data.encode("latin-1", "replace") if isinstance(data, str) else data
    plain = (
        isinstance(kind, Built)
        and kind.name == "numpy dtype"
        and kind.arguments[:1] in (("u1",), ("|u1",))
        and isinstance(data, bytes)
        and isinstance(shape, tuple)
        and 1 <= len(shape) <= 4
        and all(type(length) is int and length >= 0 for length in shape)
        and not columns_first
    )
    if not plain or math.prod(shape) != len(data):
        return None
    return np.frombuffer(data, np.uint8).reshape(shape)


class Machine:
    """A stack and a memory, as pickle's machine has them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise PickleError("a damaged pickle")
        return value

    def pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            stack.append(MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memory[len(self.memory) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memory[argument])
        elif name in TUPLES:
            items = [self.pop() for _ in range(TUPLES[name])]
            stack.append(tuple(items[::-1]))
        elif name == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif name in ("EMPTY_LIST", "LIST"):
            stack.append([] if name == "EMPTY_LIST" else self.pop_to_mark())
        elif name in ("EMPTY_DICT", "DICT"):
            items = [] if name == "EMPTY_DICT" else self.pop_to_mark()
            stack.append({})
            self.set_items(items)
        elif name in ("APPEND", "APPENDS"):
            items = [self.pop()] if name == "APPEND" else self.pop_to_mark()
            self.top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.pop_to_mark()
            self.set_items(items)
        else:
            self.step_of_objects(name, argument)

    def step_of_objects(self, name: str, argument: Any) -> None:
        """What would import or call, if this were Python's own machine."""
        if name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                function, module = self.pop(), self.pop()
                argument = f"{module} {function}"
            if argument not in PARTS_OF_ARRAYS:
                raise PickleError(f"a pickle that asks for {str(argument)[:80]!r}")
            self.stack.append(Called(argument))
        elif name == "REDUCE":
            arguments, called = self.pop(), self.pop()
            if not isinstance(called, Called) or not isinstance(arguments, tuple):
                raise PickleError("a damaged pickle")
            if called.name != "_codecs encode":
                self.stack.append(Built(called.name, arguments))
            elif len(arguments) == 2 and isinstance(arguments[0], str):  # how Python 3 writes bytes
                self.stack.append(arguments[0].encode("latin-1"))
            else:
                raise PickleError("a damaged pickle")
        elif name == "BUILD":
            state = self.pop()
            self.top(Built).state = state
        else:
            raise PickleError(f"a pickle with the instruction {name}")

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise PickleError("a damaged pickle")
        return self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        keys, values = items[::2], items[1::2]
        # Any other key would be hashed, which of tuples within tuples can take for ever.
        keys = [key.decode("latin-1") if isinstance(key, bytes) else key for key in keys]
        if len(keys) != len(values) or not all(isinstance(key, str | int) for key in keys):
            raise PickleError("a pickle with odd keys")
        self.top(dict).update(zip(keys, values, strict=True))
