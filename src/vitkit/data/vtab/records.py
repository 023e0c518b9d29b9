"""DMLab: TFRecord files of tf.train.Example, read without TensorFlow.

Tested on made-up files in this format alone. The format: a record is its length (8 bytes), a masked
CRC-32C of these (4), the data, and a CRC of them (4), all of little end
(tensorflow/core/lib/io/record_writer.h). The data are the protocol buffer of
tensorflow/core/example/example.proto. Images stay where they are until they are asked for.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitkit.data.checks import DataError, checked_labels, digest
from vitkit.data.formats.folders import files_in
from vitkit.data.formats.image_files import ends_of
from vitkit.data.source import Source, label_bytes
from vitkit.data.vtab.pools import Pools, found

NAMES = [f"{far}, {reward}" for far in ("close", "far", "very far") for reward in ("good", "bad")]
VARINT, EIGHT, LENGTH, FOUR = 0, 1, 2, 5  # wire types of a protocol buffer
POLYNOMIAL = 0x82F63B78  # of CRC-32C, its bits reversed
Span = tuple[int, int]  # first byte and the one after the last


class RecordSource(Source):
    """Images that lie encoded in larger files: which file, first byte, length."""

    def __init__(self, files: list[Path], spans: np.ndarray, labels: list[int]) -> None:
        self.files, self.spans = files, spans  # (N, 3) int64
        self.class_names = NAMES
        self.labels = checked_labels(labels, NAMES, str(files[0]))

    def encoded(self, index: int) -> bytes:
        file, first, length = self.spans[index].tolist()
        with open(self.files[file], "rb") as content:
            content.seek(first)
            return content.read(length)

    def key(self, index: int) -> str:
        file, first, _ = self.spans[index].tolist()
        return f"{self.files[file].name}/{first}"

    def name(self, index: int) -> str:
        file, first, _ = self.spans[index].tolist()
        return f"{self.files[file]} at byte {first}"

    def fingerprint(self) -> str:
        ends = [ends_of(file) for file in self.files]
        return digest([*NAMES, label_bytes(self.labels), self.spans.tobytes(), *ends])


def dmlab(folder: Path) -> Pools:
    """dmlab-{train,validation,test}.tfrecord*: of each frame "image", a JPEG, and "label"."""
    train, val, test = (frames(folder, split) for split in ("train", "validation", "test"))
    return Pools(train, test, val)


def frames(folder: Path, split: str) -> RecordSource:
    start = f"dmlab-{split}.tfrecord"
    root = found(folder, "dmlab", ".")
    files = [root / name for name in files_in(root) if name.startswith(start)]
    if not files:
        raise DataError(f"{folder}: found no {start}*; fetch and unpack the data set again")
    spans: list[tuple[int, int, int]] = []
    labels: list[int] = []
    for number, file in enumerate(files):
        try:
            with (
                open(file, "rb") as opened,
                mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
            ):
                for record in records(data):
                    (first, end), label = frame(data, record)
                    spans.append((number, first, end - first))
                    labels.append(label)
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise DataError(
                f"{file}: record {len(labels)} is not as DMLab is published: {error}; fetch it "
                "again"
            ) from error
    return RecordSource(files, np.array(spans, np.int64).reshape(-1, 3), labels)


def frame(data: mmap.mmap, record: Span) -> tuple[Span, int]:
    """Where the image of an Example lies, and its label.

    Example: 1 features; Features: 1 an entry of a map, 1 its key and 2 its Feature; Feature: 1 a
    list of texts, 3 one of integers, both with their values as 1.
    """
    found: dict[bytes, Span] = {}
    for features in parts(data, record, 1):
        for entry in parts(data, features, 1):
            key, feature = first(data, entry, 1), first(data, entry, 2)
            found[data[key[0] : key[1]]] = feature
    if b"image" not in found or b"label" not in found:
        raise ValueError("without an image and a label")
    image = first(data, first(data, found[b"image"], 1), 1)
    numbers = first(data, found[b"label"], 3)
    for number, wire, value in fields(data, numbers):
        if number == 1 and wire == VARINT:
            return image, value[0]
        if number == 1 and wire == LENGTH:  # packed
            return image, varint(data, value[0], value[1])[0]
    raise ValueError("with a label without a value")


# TFRecord


def records(data: mmap.mmap) -> Iterator[Span]:
    at, size = 0, len(data)
    while at < size:
        head = data[at : at + 12]
        length, check = struct.unpack("<QI", head) if len(head) == 12 else (size, 0)
        if masked_crc(head[:8]) != check or at + 16 + length > size:
            raise ValueError("its length is damaged, or the file is cut short")
        yield at + 12, at + 12 + length
        at += 16 + length


def masked_crc(data: bytes) -> int:
    """The CRC-32C, turned by 15 bits, plus a constant (tensorflow/core/lib/hash/crc32c.h)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# Protocol buffers


def fields(data: mmap.mmap, span: Span) -> Iterator[tuple[int, int, Span]]:
    """(number, wire type, where its value lies) of each field; of an integer (its value, its end).

    Raises ValueError where a field would end beyond the span.
    """
    at, end = span
    while at < end:
        tag, at = varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = varint(data, at, end)
            yield number, wire, (value, at)
            continue
        if wire == LENGTH:
            length, at = varint(data, at, end)
        elif wire in (EIGHT, FOUR):
            length = 8 if wire == EIGHT else 4
        else:
            raise ValueError(f"with a field of type {wire}")
        if length > end - at:
            raise ValueError("with a field that is longer than its record")
        yield number, wire, (at, at + length)
        at += length


def varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """An integer of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("with an integer that does not end")


def parts(data: mmap.mmap, span: Span, wanted: int) -> Iterator[Span]:
    return (value for number, wire, value in fields(data, span)
            if number == wanted and wire == LENGTH)  # fmt: skip


def first(data: mmap.mmap, span: Span, wanted: int) -> Span:
    value = next(parts(data, span, wanted), None)
    if value is None:
        raise ValueError(f"without field {wanted}")
    return value
