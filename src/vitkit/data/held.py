"""Columns read from files, held in memory up to a bound that all threads share."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import pyarrow as pa

RETURNED = 2**24  # bytes let go, after which memory is returned to the system: it takes 1 ms


class Held:
    """Columns by key, `most` bytes of them with those that are being read. The longest unused are
    let go first; a column that one thread reads, others wait for.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.columns: OrderedDict[Hashable, pa.ChunkedArray] = OrderedDict()
        self.reading: dict[Hashable, int] = {}  # bytes that are expected
        self.total = 0  # bytes of those that are held or being read
        self.let_go = 0  # bytes, since memory was last returned to the system
        self.changed = threading.Condition()

    def get(self, key: Hashable, size: int, read: Callable[[], pa.ChunkedArray]) -> pa.ChunkedArray:
        """The column of this key, by `read` where it is not held; about `size` bytes are expected.
        Raises what `read` raises, and then holds nothing new."""
        with self.changed:
            while key not in self.columns and not self.may_read(key, size):
                self.changed.wait()
            if key in self.columns:
                self.columns.move_to_end(key)
                return self.columns[key]
            self.reading[key] = size
            self.total += size
        column = None
        try:
            column = read()
            return column
        finally:
            with self.changed:
                self.total -= self.reading.pop(key)
                if column is not None:
                    self.columns[key] = column
                    self.total += column.nbytes
                self.changed.notify_all()

    def may_read(self, key: Hashable, size: int) -> bool:
        """Whether this thread is to read the column now; makes room for it."""
        # What is larger than the bound is read while nothing else is.
        others = sum(self.reading.values())
        if key in self.reading or (self.reading and others + size > self.most):
            return False
        while self.columns and self.total + size > self.most:
            _, oldest = self.columns.popitem(last=False)
            self.total -= oldest.nbytes
            self.let_go += oldest.nbytes
            del oldest
        if self.let_go >= RETURNED:
            # Or the allocator keeps half as much again as is held.
            pa.default_memory_pool().release_unused()
            self.let_go = 0
        return True
