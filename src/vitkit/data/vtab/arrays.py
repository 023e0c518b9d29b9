"""Tasks whose images are arrays in one file: SVHN, PatchCamelyon, smallNORB, dSprites.

Tested on made-up files in the publishers' formats alone. Shapes are checked before anything of
their size is read, and no pickle is opened.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from vitkit.data.checks import DataError, first_line
from vitkit.data.source import ArraySource
from vitkit.data.vtab.pools import PixelSource, Pools, chosen, found, parted
from vitkit.data.vtab.tasks import CHOOSE, FIT

MOST = 2**20  # images of one file; the largest published has 737,280
BYTES, INTEGERS = 0x1E3D4C55, 0x1E3D4C54  # what smallNORB's files begin with
NORB = {
    "train": "smallnorb-5x46789x9x18x6x2x96x96-training",
    "test": "smallnorb-5x01235x9x18x6x2x96x96-testing",
}
DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
EIGHTY_TEN = (0.8, 0.1, 0.1)  # google-research/task_adaptation, data/dsprites.py
AT_ONCE = 4096  # sprites that are read together


def svhn(folder: Path) -> Pools:
    """train_32x32.mat and test_32x32.mat: the digit 0 has the label 10."""
    train, test = (digits(found(folder, f"{part}_32x32.mat")) for part in ("train", "test"))
    return Pools(train, test)


def digits(file: Path) -> ArraySource:
    """X (32, 32, 3, N) uint8 and y (N, 1) from 1 to 10."""
    from scipy.io import loadmat, whosmat

    try:
        headers = whosmat(file)
        shapes = {name: shape for name, shape, _ in headers}
        if len(shapes) < len(headers):  # which of two would be read is not sure
            raise ValueError("a name is given twice")
        number = shapes["X"][3]
        if shapes["X"][:3] != (32, 32, 3) or number > MOST or shapes["y"] != (number, 1):
            raise ValueError(f"X is {shapes['X']} and y is {shapes['y']}")
        content = loadmat(file, variable_names=["X", "y"])
        images, labels = content["X"], content["y"]
        if images.shape != (32, 32, 3, number) or labels.shape != (number, 1):
            raise ValueError(f"X is {images.shape} and y is {labels.shape}")
        whole = labels.dtype.kind in "iuf" and (labels == np.floor(labels)).all()  # NaN is not
        if images.dtype != np.uint8 or not whole or not ((labels >= 1) & (labels <= 10)).all():
            raise ValueError(f"X is of {images.dtype}, or y not whole numbers from 1 to 10")
        labels = labels.ravel().astype(np.int64)
    except Exception as error:  # scipy raises many kinds on hostile bytes
        raise DataError(
            f"{file}: not as SVHN is published, with X of 32x32x3xN and y of Nx1: "
            f"{first_line(error)}; fetch it again"
        ) from error
    names = [str(digit) for digit in range(10)]
    rows = images.transpose(3, 0, 1, 2)
    return ArraySource(rows, labels % 10, names, str(file), False, f"{file.stem}/")


def patch_camelyon(folder: Path) -> Pools:
    """camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5, unpacked. HDF5 is read by h5py, and
    its C library is not made for hostile bytes: give it only files of the publisher."""
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(
            f"{folder}: PatchCamelyon is published as HDF5, which takes the package h5py; install "
            "it, or give a copy with train800.txt, val200.txt and test.txt"
        ) from error
    train, val, test = (patches(folder, part, h5py.File) for part in ("train", "valid", "test"))
    return Pools(train, test, val)


def patches(folder: Path, part: str, opened: Any) -> PixelSource:
    """x (N, 96, 96, 3) uint8, read image by image, and y (N, 1, 1, 1) of 0 and 1."""
    file, labels_file = (
        found(folder, f"camelyonpatch_level_2_split_{part}_{kind}.h5") for kind in "xy"
    )
    try:
        images, labels = opened(file, "r")["x"], opened(labels_file, "r")["y"]
        number = images.shape[0]
        if (
            images.shape[1:] != (96, 96, 3)
            or str(images.dtype) != "uint8"
            or number > MOST
            or math.prod(labels.shape) != number
        ):
            raise ValueError(f"x is {images.shape} of {images.dtype}, y is {labels.shape}")
        labels = np.asarray(labels[...]).astype(np.int64).ravel()
    except (OSError, KeyError, ValueError, AttributeError, IndexError) as error:
        raise DataError(
            f"{file}: not as PatchCamelyon is published: {first_line(error)}; fetch it again"
        ) from error
    names = ["no tumor", "tumor"]
    return PixelSource(file, lambda row: images[row], np.arange(number), labels, names)


# smallNORB


def smallnorb_azimuth(folder: Path) -> Pools:
    return smallnorb(folder, 2, 2, [f"{20 * side} degrees" for side in range(18)])


def smallnorb_elevation(folder: Path) -> Pools:
    return smallnorb(folder, 1, 1, [f"{30 + 5 * step} degrees" for step in range(9)])


def smallnorb(folder: Path, column: int, step: int, names: list[str]) -> Pools:
    """The images of the first camera. Of the publisher's images to test on half, by chance, are to
    validate on, and the other half to test on."""
    train, test = (camera(folder, NORB[split], column, step, names) for split in ("train", "test"))
    val, rest = parted(len(test), (0.5, 0.5))
    return Pools(train, chosen(test, rest), chosen(test, val), same_test=False)


def camera(folder: Path, stem: str, column: int, step: int, names: list[str]) -> PixelSource:
    """NAME-dat.mat (N, 2, 96, 96) bytes, mapped into memory, and NAME-info.mat (N, 4) integers:
    instance, elevation, azimuth (0, 2, ... 34) and lighting."""
    file = found(folder, f"{stem}-dat.mat")
    images, about = matrix(file, np.uint8), matrix(found(folder, f"{stem}-info.mat"), np.int32)
    if images.shape[1:] != (2, 96, 96) or about.shape != (len(images), 4):
        raise DataError(
            f"{file}: holds {images.shape}, its info {about.shape}; expected (N, 2, 96, 96) and "
            "(N, 4); fetch them again"
        )
    rows, labels = np.arange(len(images)), about[:, column] // step
    return PixelSource(file, lambda row: images[row, 0], rows, labels, names)


def matrix(file: Path, kind: Any) -> np.ndarray:
    """A matrix of smallNORB's format: a number for its type, one of dimensions, as many sizes, at
    least three, as int32 of little end, and the values; mapped into memory."""
    head = [int(number) for number in np.fromfile(file, "<i4", 6)]
    known, dimensions = head[:1] == [BYTES if kind is np.uint8 else INTEGERS], sum(head[1:2])
    sizes = head[2 : 2 + dimensions] if 2 <= dimensions <= 4 else [0]
    start = 4 * (2 + max(3, len(sizes)))
    size = start + math.prod(sizes) * np.dtype(kind).itemsize
    if not known or min(sizes) < 1 or file.stat().st_size != size:
        raise DataError(f"{file}: not as smallNORB is published, or cut short; fetch it again")
    return np.memmap(file, np.dtype(kind).newbyteorder("<"), "r", start, tuple(sizes))


# dSprites


def dsprites_location(folder: Path) -> Pools:
    return dsprites(folder, 4, 32)


def dsprites_orientation(folder: Path) -> Pools:
    return dsprites(folder, 3, 40)


def dsprites(folder: Path, column: int, values: int) -> Pools:
    """imgs (N, 64, 64) of 0 and 1 and latents_classes (N, 6) of the .npz; its metadata are a pickle
    and are not opened. Only the images that are drawn are kept, a bit for each pixel."""
    file = found(folder, DSPRITES)
    try:
        with zipfile.ZipFile(file) as content:
            with content.open("latents_classes.npy") as member:
                number = header(member, (6,), "int64")
                latents = np.frombuffer(exactly(member, number * 48), "<i8").reshape(-1, 6)
            places = latents[:, column]
            if places.min() < 0 or places.max() >= values:
                raise ValueError(f"latents that are not from 0 to {values - 1}")
            train, val, test = parted(number, EIGHTY_TEN)
            chance = np.random.default_rng(0)
            train, val = (
                np.sort(chance.permutation(part)[:most])
                for part, most in ((train, FIT), (val, CHOOSE))
            )
            wanted = np.sort(np.concatenate([train, val, test]))
            with content.open("imgs.npy") as member:
                if header(member, (64, 64), "uint8") != number:
                    raise ValueError("imgs and latents_classes differ in length")
                bits = sprites(member, number, wanted)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(
            f"{file}: not as dSprites is published: {first_line(error)}; fetch it again"
        ) from error
    labels = places * 16 // values  # 16 classes, as evenly as can be

    names = [str(label) for label in range(16)]

    def pixels(row: int) -> np.ndarray:
        kept = bits[np.searchsorted(wanted, row)]
        return np.unpackbits(kept).reshape(64, 64) * np.uint8(255)

    train, val, test = (
        PixelSource(file, pixels, rows, labels[rows], names) for rows in (train, val, test)
    )
    return Pools(train, test, val, same_test=False)


def header(member: IO[bytes], of_each: tuple[int, ...], kind: str) -> int:
    """The first size of an array in C order whose header must say so, of at most MOST."""
    if np.lib.format.read_magic(member) != (1, 0):
        raise ValueError("an array of another version of .npy")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
    right = not fortran and shape[1:] == of_each and dtype == np.dtype(kind)
    if not right or not 0 < shape[0] <= MOST:
        raise ValueError(f"an array {shape} of {dtype}")
    return shape[0]


def exactly(member: IO[bytes], size: int) -> bytes:
    data = member.read(size)
    if len(data) != size:
        raise ValueError("an array that is cut short")
    return data


def sprites(member: IO[bytes], number: int, wanted: np.ndarray) -> np.ndarray:
    """The wanted ones (sorted) of so many images (64, 64): (len(wanted), 512) uint8 of 8 pixels."""
    kept = []
    for first in range(0, number, AT_ONCE):
        many = min(AT_ONCE, number - first)
        rows = np.frombuffer(exactly(member, many * 4096), np.uint8).reshape(many, 4096)
        begin, end = np.searchsorted(wanted, (first, first + many))
        kept.append(np.packbits(rows[wanted[begin:end] - first] > 0, axis=1))
    return np.concatenate(kept)
