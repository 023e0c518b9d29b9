"""Images that are decoded once: on the device, or in files that are mapped into memory."""

from __future__ import annotations

import os
import secrets
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitkit.data.augmentation.placing import placed
from vitkit.data.checks import BadImages, DataError, first_line
from vitkit.data.decode import ImageError
from vitkit.data.source import Source
from vitkit.data.transforms import resize

TOGETHER = 256  # images that a thread decodes before it takes the next ones


class KeptOnDevice:
    """A whole set of images of one size, uint8 on the device, with their labels.

    (N, 3, H, W) uint8; for 50,000 images of CIFAR-10 150 MB.
    """

    def __init__(self, size: tuple[int, int], device: torch.device) -> None:
        self.size, self.device = size, device
        self.images: Tensor | None = None

    def fill(self, source: Source, bad: BadImages, threads: int, pulse: Callable[[], None]) -> None:
        """Decode everything, once. An image of another size is a bad one.

        `pulse` is called now and then; what it raises ends this.
        """
        if self.images is not None:
            return
        pixels = torch.empty(len(source), 3, *self.size, dtype=torch.uint8)
        self.bad = np.zeros(len(source), dtype=bool)

        def load(indices: range) -> None:
            for index in indices:
                try:
                    image = source.image(index)
                    if tuple(image.shape[1:]) != self.size:
                        height, width = image.shape[1:]
                        raise ImageError(
                            f"is {width}x{height} among images of {self.size[1]}x{self.size[0]}; "
                            "--data.keep none reads images of any size"
                        )
                    pixels[index] = image
                except (ImageError, OSError) as error:
                    self.bad[index] = True
                    bad.add(source.name(index), error)

        chunks = [range(begin, min(begin + TOGETHER, len(source)))
                  for begin in range(0, len(source), TOGETHER)]  # fmt: skip
        with ThreadPoolExecutor(max(1, threads)) as pool:
            try:
                for _ in pool.map(load, chunks):  # raises what a thread raised
                    pulse()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self.images = pixels.to(self.device)
        self.labels = torch.from_numpy(targets_of(source)).to(self.device)

    def taken(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and labels of these indices (B,)."""
        assert self.images is not None
        rows = placed(indices, self.device)
        return self.images.index_select(0, rows), self.labels.index_select(0, rows)


def targets_of(source: Source) -> np.ndarray:
    """What `target` gives of every image: (N,) int64, or (N, K) float32."""
    if source.soft_targets:
        return np.stack([source.target(index) for index in range(len(source))])
    if source.multi_label:
        return source.labels.toarray().astype(np.float32)
    return np.asarray(source.labels).astype(np.int64)


class KeptOnDisk:
    """Decoded images in files that are mapped into memory, written when they are first read.

    A row of `where.npy` (N, 4) for each image: the number of its file, the offset, height and
    width, a checksum. Several processes and later runs share the folder, each appending to a file
    of its own; what another has written is believed once its checksum is right. Images whose
    shorter side is longer than `side` are shrunk to it first, whether they are then kept or not.
    Once the files hold `limit` bytes, or the disk is full, nothing more is kept.
    """

    def __init__(self, folder: Path, images: int, side: int, limit: int) -> None:
        self.folder, self.side, self.limit = folder, side, limit
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.where = self.mapped_rows(images)
            self.number, self.descriptor = self.own_file()
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{folder}: decoded images cannot be kept there ({first_line(error)}); make room, "
                "remove the folder, name another by VITKIT_CACHE, or give --data.keep none"
            ) from error
        # Rows whose checksum was seen to be right; others may write to the shared ones meanwhile.
        self.known = np.zeros((images, 4), dtype=np.int64)
        self.lock = threading.Lock()
        self.files: dict[int, np.ndarray] = {}
        self.end = 0
        self.limit -= sum(file.stat().st_size for file in folder.glob("*.pixels"))
        self.full = False

    def mapped_rows(self, images: int) -> np.ndarray:
        path, shape = self.folder / "where.npy", (images, 4)
        if not path.exists():
            fresh = path.with_name(f".where-{os.getpid()}.npy")
            np.lib.format.open_memmap(fresh, "w+", np.int64, shape).flush()
            with fresh.open("r+b") as file:  # or a full disk would end the process later
                os.posix_fallocate(file.fileno(), 0, fresh.stat().st_size)
            with suppress(FileExistsError):
                os.link(fresh, path)  # of several processes the first one makes it
            fresh.unlink()
        rows = np.load(path, mmap_mode="r+", allow_pickle=False)
        if rows.shape != shape or rows.dtype != np.int64:
            raise DataError(f"{path}: does not belong to these images; remove {self.folder}")
        return rows

    def own_file(self) -> tuple[int, int]:
        """(number, descriptor) of a new file to append to; no number ever comes again, so that a
        folder that was removed and made anew is not taken for the old one."""
        number = secrets.randbits(62) | 1
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        return number, os.open(self.folder / f"{number}.pixels", flags, 0o644)

    def image(self, source: Source, index: int) -> Tensor:
        """The image (3, H, W), shrunk; read back where it is kept. Raises ImageError, OSError."""
        found = self.read(index)
        if found is None:
            found = shrunk(source.image(index), self.side)
            self.write(index, found)
        return found

    def read(self, index: int) -> Tensor | None:
        row = self.known[index] if self.known[index, 0] else self.where[index].copy()
        number, offset, size, checksum = row.tolist()
        height, width = size >> 32, size & 0xFFFFFFFF
        length = 3 * height * width
        if not number or length <= 0:
            return None
        pixels = self.file(number, offset + length)
        if pixels is None or offset < 0 or offset + length > len(pixels):
            return None
        pixels = pixels[offset : offset + length]
        if not self.known[index, 0]:
            if zlib.crc32(pixels) != checksum:  # pyright: ignore[reportArgumentType]
                return None  # a machine lost its power, or the disk a bit
            self.known[index] = row
        return torch.from_numpy(pixels).view(height, width, 3).permute(2, 0, 1)

    def file(self, number: int, end: int) -> np.ndarray | None:
        """The bytes of a file, up to `end` at least if it is that long."""
        mapped = self.files.get(number)
        if mapped is None or len(mapped) < end:
            with suppress(OSError, ValueError):
                # Copy on write: torch wants to be able to write, and the file stays as it is.
                path = self.folder / f"{number}.pixels"
                self.files[number] = mapped = np.memmap(path, np.uint8, "c")
        return mapped

    def write(self, index: int, image: Tensor) -> None:
        # Rows of pixels with their colours side by side, as decoders give them.
        height, width = image.shape[1:]
        pixels = image.permute(1, 2, 0).numpy().tobytes()
        with self.lock:
            if self.full or self.end + len(pixels) > self.limit:
                return
            offset = self.end
            self.end += len(pixels)
        try:
            if os.pwrite(self.descriptor, pixels, offset) < len(pixels):
                raise OSError("the disk is full")
        except OSError:
            self.full = True
            return
        row = self.number, offset, height << 32 | width, zlib.crc32(pixels)
        self.known[index] = row
        self.where[index, 1:] = row[1:]
        self.where[index, 0] = self.number


def shrunk(image: Tensor, side: int) -> Tensor:
    """uint8 (3, H, W) -> the same with the shorter side at most `side` pixels, antialiased."""
    height, width = image.shape[1:]
    shorter = min(height, width)
    if shorter <= side:
        return image
    size = round(height * side / shorter), round(width * side / shorter)
    return resize(image, size, "bilinear", antialias=True)
