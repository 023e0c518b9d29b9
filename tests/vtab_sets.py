"""Small made-up data sets in the formats of those of VTAB-1k."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from vitkit.data.vtab.records import masked_crc


def encoded(value: int = 0, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value % 256, 0, 0)).save(file, kind)
    return file.getvalue()


def write(path: Path, content: bytes | str | None = None, value: int = 0) -> None:
    """A file, an image where no content is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        content = encoded(value, "PNG" if path.suffix == ".png" else "JPEG")
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def lists(folder: Path, classes: int, test: int = 50, label: str | None = None) -> None:
    """A copy of the benchmark: an image for each class, named again and again."""
    for number in range(classes):
        write(folder / f"images/{number}.jpg", value=number * 255 // classes)
    for name, many in (("train800", 800), ("val200", 200), ("test", test)):
        rows = [f"images/{n % classes}.jpg {label or n % classes}\n" for n in range(many)]
        write(folder / f"{name}.txt", "".join(rows))


def svhn(folder: Path, train: int = 1100, test: int = 40, labels_to: int = 10) -> None:
    """Each digit with its own grey; 10 stands for the digit 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, many in (("train", train), ("test", test)):
        y = np.arange(many) % labels_to + 1
        x = np.broadcast_to((y * 20).astype(np.uint8), (32, 32, 3, many))
        savemat(folder / f"{name}_32x32.mat", {"X": x, "y": y[:, None].astype(np.uint8)})


def norb_matrix(array: np.ndarray) -> bytes:
    magic = 0x1E3D4C55 if array.dtype == np.uint8 else 0x1E3D4C54
    sizes = [*array.shape, *[1] * (3 - array.ndim)]
    return struct.pack(f"<{2 + len(sizes)}i", magic, array.ndim, *sizes) + array.tobytes()


def smallnorb(folder: Path, train: int = 810, test: int = 440) -> None:
    """The azimuth goes round with the number, the elevation slower; the first camera sees 7."""
    for start, many in (("46789x9x18x6x2x96x96-training", train),
                        ("01235x9x18x6x2x96x96-testing", test)):  # fmt: skip
        number = np.arange(many)
        images = np.zeros((many, 2, 96, 96), np.uint8)
        images[:, 0] = 7
        columns = [number % 5, number // 18 % 9, number % 18 * 2, number % 6]
        about = np.stack(columns, 1).astype("<i4")
        write(folder / f"smallnorb-5x{start}-dat.mat", norb_matrix(images))
        write(folder / f"smallnorb-5x{start}-info.mat", norb_matrix(about))


def dsprites(folder: Path, many: int = 2400) -> None:
    """Sprite n is lit at pixel n; every orientation and place in turn."""
    number = np.arange(many)
    images = np.zeros((many, 64 * 64), np.uint8)
    images[number, number % 4096] = 1
    zero = 0 * number
    latents = np.stack([zero, zero, zero, number % 40, number % 32, zero], 1)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        folder / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
        allow_pickle=True, metadata=np.array({"title": "dSprites"}, dtype=object),
        imgs=images.reshape(-1, 64, 64), latents_classes=latents,
    )  # fmt: skip


def varint(value: int) -> bytes:
    low, high = value & 127, value >> 7
    return bytes([low | 128]) + varint(high) if high else bytes([low])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(image: bytes, label: int, packed: bool = True) -> bytes:
    numbers = field(1, varint(label)) if packed else varint(1 << 3) + varint(label)
    features = {
        b"image": field(1, field(1, image)),
        b"filename": field(1, field(1, b"a.jpg")),
        b"label": field(3, numbers),
    }
    entries = [field(1, field(1, key) + field(2, value)) for key, value in features.items()]
    return field(1, b"".join(entries))


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + bytes(4)


def dmlab(folder: Path, train: int = 12, test: int = 6) -> None:
    for name, many in (("train", train), ("validation", 6), ("test", test)):
        for shard in range(2):
            examples = [example(encoded(n), n % 6, bool(shard)) for n in range(shard, many, 2)]
            content = b"".join(record(data) for data in examples)
            write(folder / f"dmlab-{name}.tfrecord-0000{shard}-of-00002", content)


def clevr(folder: Path, depths: dict[str, list[list[float]]]) -> None:
    """For each split the depths of the objects of each scene."""
    for split, of_scenes in depths.items():
        scenes = []
        for number, of_objects in enumerate(of_scenes):
            name = f"CLEVR_{split}_{number:06}.png"
            objects = [{"pixel_coords": [100, 100, depth]} for depth in of_objects]
            scenes.append({"image_filename": name, "objects": objects})
            write(folder / f"images/{split}/{name}", value=number)
        write(folder / f"scenes/CLEVR_{split}_scenes.json", json.dumps({"scenes": scenes}))


def kitti_object(kind: str, z: float) -> str:
    return f"{kind} 0.00 0 -1.58 587.0 173.3 614.1 200.1 1.65 1.67 3.64 -0.65 1.71 {z} -1.59\n"


def kitti(folder: Path, texts: list[str], videos: int) -> None:
    """Image n is of video n % videos; its line of the mapping is one of a turned order."""
    many = len(texts)
    for number, text in enumerate(texts):
        write(folder / f"training/image_2/{number:06}.png", value=number)
        write(folder / f"training/label_2/{number:06}.txt", text)
    order = [(number + 3) % many for number in range(many)]
    lines = [""] * many
    for number, place in enumerate(order):
        lines[place] = f"2011_09_26 2011_09_26_drive_{number % videos:04}_sync {number:010}"
    write(folder / "mapping/train_rand.txt", ",".join(str(place + 1) for place in order))
    write(folder / "mapping/train_mapping.txt", "\n".join(lines) + "\n")
