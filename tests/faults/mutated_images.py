"""Damaged images through every way of decoding; prints what was found as JSON.

python mutated_images.py NUMBER FOLDER
"""

import io
import json
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitkit.data.checks import BadImages
from vitkit.data.crops import RandomCrop
from vitkit.data.decode import ImageError, decode_batch
from vitkit.data.kept import KeptOnDevice, KeptOnDisk
from vitkit.data.pipeline import TrainingStream, evaluation_batches
from vitkit.data.source import Source
from vitkit.data.transforms import Preprocessing

warnings.simplefilter("ignore")
NUMBER, FOLDER = int(sys.argv[1]), Path(sys.argv[2])
FORMATS = {
    "JPEG": {},
    "PNG": {},
    "WEBP": {},
    "GIF": {},
    "TIFF": {},
    "BMP": {},
    "PPM": {},
    "AVIF": {},
    "JPEG progressive": {"progressive": True},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "TIFF jpeg": {"compression": "jpeg"},
    "WEBP lossless": {"lossless": True},
    "GIF animated": {"save_all": True, "frames": 3},
    "WEBP animated": {"save_all": True, "frames": 3},
    "PNG animated": {"save_all": True, "frames": 3},
}
LARGE = [0, 2**16 - 1, 2**31 - 1, 2**32 - 1]
MODES = ["RGB", "L", "RGBA", "CMYK", "P", "I;16", "1", "LA"]


def encoded(random):
    name = random.choice(list(FORMATS))
    options = dict(FORMATS[name])
    size = random.integers(1, 80, 2)
    shape = (*size, 3)
    image = Image.fromarray(random.integers(0, 256, shape, np.uint8))
    mode = random.choice(MODES)
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, 65536, size, np.uint16))
    elif mode != "RGB":
        image = image.convert(mode)
    frames = options.pop("frames", 0)
    if frames:
        options["append_images"] = [image.copy() for _ in range(frames - 1)]
    file = io.BytesIO()
    try:
        image.save(file, name.split()[0], **options)
    except (OSError, KeyError, ValueError):  # this format has no such mode
        return encoded(random)
    return file.getvalue()


def mutated(random):
    data = bytearray(encoded(random))
    kind = random.integers(0, 9)
    if kind == 0:
        return bytes(data)  # some are whole
    if kind == 1:
        return bytes(data[: random.integers(0, len(data))])
    if kind == 2:  # a few bits
        for place in random.integers(0, len(data), random.integers(1, 8)):
            data[place] ^= 1 << random.integers(8)
    elif kind == 3:  # bits of the header
        for place in random.integers(0, min(len(data), 64), random.integers(1, 5)):
            data[place] ^= 1 << random.integers(8)
    elif kind == 4:  # bytes at random
        place = random.integers(0, len(data))
        data[place : place + 16] = random.bytes(16)
    elif kind == 5:  # a piece is missing or doubled
        a, b = sorted(random.integers(0, len(data), 2))
        data[a:b] = data[a:b] * int(random.integers(0, 3))
    elif kind == 6:  # large numbers where sizes may stand
        place = random.integers(0, len(data))
        data[place : place + 4] = struct.pack(
            ">I", random.choice([0, 2**16 - 1, 2**31 - 1, 2**32 - 1])
        )
    elif kind == 7:
        return bomb(random)
    else:  # two files joined
        data = data[: len(data) // 2] + bytearray(encoded(random))
    return bytes(data)


def bomb(random):
    """A few bytes that ask for gigabytes."""
    side = int(random.choice([5_001, 60_000, 2**31 - 1]))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in parts)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


class Files(Source):
    def __init__(self, files):
        self.files, self.class_names = files, ["a", "b"]
        self.labels = np.arange(len(files)) % 2

    def encoded(self, index):
        return self.files[index]

    def key(self, index):
        return str(index)

    def name(self, index):
        return str(index)

    def fingerprint(self):
        return "files"


def unlimited():
    return BadImages(limit=NUMBER)


def an_epoch(stream):
    """The names of the images that could not be used, or the error that ended it."""
    stream.bad = unlimited()
    try:
        batches = stream.batches()
        for _ in range(NUMBER // 100):
            next(batches)
        batches.close()
    except Exception as error:  # told to the test as what ended the epoch
        return str(error)[:200]
    return set(stream.bad.reasons)


def main():
    random = np.random.default_rng(NUMBER)
    source = Files([mutated(random) for _ in range(NUMBER)])
    bad = set()
    for index in range(NUMBER):
        try:
            assert source.image(index).shape[0] == 3
        except ImageError:
            bad.add(str(index))
    results = decode_batch(source.files, torch.device("cpu"))
    at_once = {str(i) for i, result in enumerate(results) if isinstance(result, ImageError)}
    counted, whole = unlimited(), Preprocessing.direct((8, 8))
    seen = sum(len(b.labels) for b in evaluation_batches(source, whole, 64, 2, counted))
    crop = RandomCrop((8, 8))
    each_time = an_epoch(TrainingStream(source, crop, 100, 0, 2))
    on_disk = KeptOnDisk(FOLDER, NUMBER, 40, 10**9)
    kept = an_epoch(TrainingStream(source, crop, 100, 0, 2, kept=on_disk))
    again = an_epoch(TrainingStream(source, crop, 100, 0, 2, kept=on_disk))
    # Where images of one size are kept, those of other sizes are counted as well.
    on_device = KeptOnDevice((40, 40), torch.device("cpu"))
    stream = TrainingStream(source, crop, 100, 0, 2, kept=on_device)
    an_epoch(stream)
    print(json.dumps({
        "images": NUMBER, "bad": len(bad), "at once": at_once == bad,
        "evaluation": set(counted.reasons) == bad and seen == NUMBER - len(bad),
        "training": each_time == bad, "kept on disk": kept == bad, "read back": again == bad,
        "kept on the device": bad <= set(stream.bad.reasons),
    }))  # fmt: skip


main()
