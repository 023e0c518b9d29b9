"""Encoded bytes -> uint8 (3, H, W), for any file a user may have, hostile ones too."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchcodec.decoders import (
    decode_image,  # pyright: ignore[reportPrivateImportUsage]
    decode_jpeg,  # pyright: ignore[reportPrivateImportUsage]
)

from vitkit.errors import VitkitError

MAX_PIXELS = 25_000_000  # 25 megapixels; a 419 kB PNG can ask for a gigabyte
BY_TORCHCODEC = ("JPEG", "PNG", "WEBP")  # faster; the other formats are Pillow's
ORIENTATION = 0x112  # the EXIF tag
TIFF_TILE = (322, 323)  # the tags with the width and the height of its tiles
START_OF_JPEG, SEVERAL_PICTURES = b"\xff\xd8\xff", b"MPF\0"
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the markers SOF0 to SOF15 of a JPEG
WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xDA), 0xFF}  # what a marker may be followed by at once
FORMATS = (*BY_TORCHCODEC, "GIF", "TIFF", "BMP", "AVIF", "PPM")

# Pillow's own limit warns once a process; the limit here is an error for every image.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class ImageError(VitkitError):
    """These bytes cannot be used as an image; the message says why."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Bytes of a JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF or PPM file -> uint8 RGB (3, H, W).

    EXIF orientation is applied, transparency dropped, 16-bit samples scaled to 8, and of an
    animation the first frame is taken. The header is read first, so that an image of more than
    `max_pixels` is refused before its pixels take memory. Raises ImageError.
    """
    if 0 < jpeg_pixels(data) <= max_pixels:
        with suppress(Exception):  # what is wrong is told below
            return decode_image(data)
    image = opened(data, max_pixels)
    try:
        if image.format in BY_TORCHCODEC and getattr(image, "n_frames", 1) == 1:
            pixels = decode_image(data)
            if pixels.ndim == 3:  # a WebP animation of one frame comes as (1, 3, H, W)
                return pixels
        return decode_by_pillow(image)
    except Exception as error:
        raise ImageError(f"a corrupt or truncated {image.format} file") from error


def decode_batch(
    files: Sequence[bytes], device: torch.device, max_pixels: int = MAX_PIXELS
) -> list[Tensor | ImageError]:
    """The same for several files at once, to tensors on a device; what is wrong with one is told
    in its place.

    A GPU decodes the upright JPEGs among them in a single call, a rounding here and there unlike a
    CPU; what it cannot decode, and everything else, the CPU does.
    """
    results: list[Tensor | ImageError | None] = [None] * len(files)
    jpegs = []
    for number, data in enumerate(files):
        with suppress(ImageError):  # what is wrong is told below
            image = opened(data, max_pixels)
            if image.format == "JPEG" and image.getexif().get(ORIENTATION, 1) in (0, 1):
                jpegs.append(number)
    pixels = decoded_jpegs([files[number] for number in jpegs], device)
    for number, image in zip(jpegs, pixels, strict=True):
        results[number] = image
    return [
        decoded_to(device, data, max_pixels) if result is None else result
        for data, result in zip(files, results, strict=True)
    ]


def decoded_jpegs(files: list[bytes], device: torch.device) -> list[Tensor] | list[Tensor | None]:
    """Where one of them fails each is tried alone, so that it is the file that decides, not its
    neighbours; None for those that fail."""
    with suppress(Exception):
        return decode_jpeg(files, device=device) if files else []  # pyright: ignore[reportReturnType]
    if len(files) == 1:
        return [None]
    return [image for data in files for image in decoded_jpegs([data], device)]


def decoded_to(device: torch.device, data: bytes, max_pixels: int) -> Tensor | ImageError:
    try:
        return decode(data, max_pixels).to(device)
    except ImageError as error:
        return error


def jpeg_pixels(data: bytes) -> int:
    """How many pixels the frame header of a plain JPEG promises; 0 where Pillow has to look.

    Pillow opens any image, but as the only reader of headers it would cost a loader of JPEGs one
    image in thirty: threads wait for the interpreter meanwhile. Where a decoder reads other than
    this does, it finds a file that is corrupt.
    """
    at = 2 if data.startswith(START_OF_JPEG) else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in FRAMES:
            height = data[at + 5] << 8 | data[at + 6]
            return height * (data[at + 7] << 8 | data[at + 8])
        if marker in WITHOUT_LENGTH or data[at + 4 : at + 8] == SEVERAL_PICTURES:
            break
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return 0


def opened(data: bytes, max_pixels: int) -> Image.Image:
    """The header of an image of at most so many pixels; ImageError."""
    if not data:
        raise ImageError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = largest_part(image)
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: {error}") from error
    except Exception as error:  # Pillow raises many kinds on hostile bytes
        raise ImageError("not an image, or one of a format that is not supported") from error
    if width * height > max_pixels:
        megapixels = math.ceil(width * height / 1e5) / 10  # rounded up: never equal to the limit
        raise ImageError(
            f"too large: {width}x{height} is {megapixels:g} megapixels, more than the "
            f"limit of {max_pixels / 1e6:g}"
        )
    return image


def largest_part(image: Image.Image) -> tuple[int, int]:
    """(width, height) of what a decoder makes room for: the image, or a larger tile of a TIFF."""
    tags = getattr(image, "tag_v2", {})
    tile = int(tags.get(TIFF_TILE[0], 0)), int(tags.get(TIFF_TILE[1], 0))
    return max(image.size, tile, key=math.prod)


def decode_by_pillow(image: Image.Image) -> Tensor:
    """The first frame of an opened image -> uint8 RGB (3, H, W)."""
    image.seek(0)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip them
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8)
        image = Image.fromarray(grey)
    pixels = np.array(image.convert("RGB"))  # (H, W, 3), a writable copy
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
