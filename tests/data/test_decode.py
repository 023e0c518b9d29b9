"""decode: any file a user may have becomes uint8 RGB (3, H, W) as Pillow reads it, or an error."""

import io
import struct
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchcodec.decoders import decode_image

import vitkit.data.decode as module
from vitkit.data.decode import MAX_PIXELS, ImageError, decode, jpeg_pixels

HEIGHT, WIDTH = 24, 40
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def noise(mode: str = "RGB", height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    image = Image.fromarray(pixels)
    return image.convert("RGB").quantize(64) if mode == "P" else image.convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:  # (3, H, W)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)


def chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand: what Pillow cannot write, or a header that promises too much."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


# Formats and modes

KINDS = [
    *[("JPEG", mode, {}) for mode in ("L", "RGB", "CMYK", "YCbCr")],
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "RGB", {"subsampling": 0, "quality": 95}),
    *[("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")],
    ("PNG", "P", {"transparency": 3}),
    *[("WEBP", mode, {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (0, 1)],
    *[("GIF", mode, {}) for mode in ("L", "P")],
    *[("TIFF", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")],
    *[("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "jpeg")],
    *[("BMP", mode, {}) for mode in ("1", "L", "P", "RGB")],
    *[("PPM", mode, {}) for mode in ("1", "L", "RGB")],
    *[("AVIF", mode, {}) for mode in ("L", "RGB", "RGBA")],
]


@pytest.mark.parametrize(("kind", "mode", "options"), KINDS)
def test_every_format_and_colour_mode_is_decoded_as_pillow_decodes_it(kind, mode, options):
    data = encoded(noise(mode), kind, **options)
    image = decode(data)
    assert image.dtype == torch.uint8
    assert image.shape == (3, HEIGHT, WIDTH)
    np.testing.assert_array_equal(image.numpy(), by_pillow(data))


def test_transparency_is_dropped_and_the_colours_below_it_are_kept():
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert decode(encoded(image, kind, **options))[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_to_8_bits_and_not_clipped(kind):
    grey = np.linspace(0, 65535, HEIGHT * WIDTH).round().astype(np.uint16).reshape(HEIGHT, WIDTH)
    image = decode(encoded(Image.fromarray(grey), kind)).numpy()
    assert image.shape == (3, HEIGHT, WIDTH)
    assert (image[0, 0, 0], image[0, -1, -1]) == (0, 255)
    assert np.abs(image - grey / 257).max() <= 1


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colour_and_alpha_are_scaled_to_8_bits(colour, channels):
    samples = np.random.default_rng(0).integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    rgb = samples[..., :3] if channels >= 3 else samples[..., :1].repeat(3, axis=-1)
    image = decode(png(7, 5, 16, colour, rows)).permute(1, 2, 0).numpy()
    assert np.abs(image - rgb / 257).max() <= 1


# EXIF orientation: what each of the eight values asks of the stored (H, W) pixels

ORIENTATIONS = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"save_all": True, "append_images": [noise()]} if kind == "MPO" else {}
    stored = decode(encoded(noise(), kind, **options)).permute(1, 2, 0).numpy()
    image = decode(encoded(noise(), kind, exif=exif, **options)).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(image, ORIENTATIONS[orientation](stored))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_exif_orientation_that_does_not_exist_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(), "JPEG", exif=exif)
    np.testing.assert_array_equal(decode(data).numpy(), by_pillow(data))


# Animations


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    first, *others = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=others, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    expected = torch.tensor(RED)[:, None, None].expand(3, 16, 16)
    torch.testing.assert_close(decode(data).int(), expected.int(), atol=2, rtol=0)


def test_of_an_animation_an_image_shown_in_its_place_is_the_first_frame():
    poster, frame = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    data = encoded(poster, "PNG", save_all=True, append_images=[frame], default_image=True)
    assert decode(data)[:, 0, 0].tolist() == list(RED)


def webp_of_one_moving_frame() -> bytes:
    """What gif2webp makes of a GIF that does not move: marked as an animation, with one frame."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:])
    second = data.rindex(b"ANMF")
    return data[:4] + struct.pack("<I", second - 8) + data[8:second]


def test_an_animation_of_one_frame_is_an_image_like_any_other():
    image = decode(webp_of_one_moving_frame())
    assert image.shape == (3, 16, 16)
    assert image[:, 0, 0].tolist() == list(RED)


# Refusals


def test_an_empty_file_is_refused_as_empty():
    with pytest.raises(ImageError, match="the file is empty"):
        decode(b"")


@pytest.mark.parametrize(
    "data",
    [b"hello", b"<html>not found</html>" * 9, b"\0" * 999, b"%PDF-1.7\n", b"<svg></svg>"],
)
def test_a_file_that_is_no_image_is_refused_as_such(data):
    with pytest.raises(ImageError, match="not an image"):
        decode(data)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "PCX", "TGA", "SGI"])
def test_formats_outside_the_list_are_not_even_opened(kind):
    with pytest.raises(ImageError, match="not supported"):
        decode(encoded(noise(), kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "PPM"])
@pytest.mark.parametrize("kept", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_image_is_refused(kind, kept):
    whole = encoded(noise(height=64, width=64), kind)
    with pytest.raises(ImageError, match=f"truncated {kind} file|not an image"):
        decode(whole[: int(len(whole) * kept)])


def test_a_jpeg_that_lacks_only_its_last_byte_is_refused():
    with pytest.raises(ImageError, match="truncated JPEG file"):
        decode(encoded(noise(), "JPEG")[:-1])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "PPM"])
def test_an_image_above_max_pixels_is_refused_before_a_decoder_is_called(kind, monkeypatch):
    data = encoded(noise(), kind)
    assert decode(data, max_pixels=HEIGHT * WIDTH).shape == (3, HEIGHT, WIDTH)
    for decoder in ("decode_image", "decode_by_pillow"):
        monkeypatch.setattr(module, decoder, lambda *_: pytest.fail("the decoder was called"))
    with pytest.raises(ImageError, match=rf"too large: {WIDTH}x{HEIGHT} is .* limit"):
        decode(data, max_pixels=HEIGHT * WIDTH - 1)


def test_the_limit_is_25_megapixels_by_default():
    assert MAX_PIXELS == 25_000_000
    with pytest.raises(ImageError, match=r"is 25\.1 megapixels, more than the limit of 25"):
        decode(png(5000, 5001, 8, 2, b""))
    with pytest.raises(ImageError, match="corrupt"):  # not too large, but there are no pixels
        decode(png(5000, 5000, 8, 2, b""))


@pytest.mark.parametrize("options", [
    {}, {"progressive": True}, {"comment": b"c" * 999}, {"icc_profile": b"i" * 70_000},
    {"exif": b"Exif\0\0" + encoded(noise(), "JPEG")}, {"subsampling": 2, "optimize": True},
])  # fmt: skip
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_header_of_a_jpeg_tells_its_pixels(options, mode):
    data = encoded(noise(mode, 300, 70), "JPEG", **options)
    assert jpeg_pixels(data) == 300 * 70
    assert all(jpeg_pixels(data[:end]) in (0, 300 * 70) for end in range(0, len(data), 7))


def test_what_is_no_plain_jpeg_is_left_to_pillow():
    several = encoded(noise(), "MPO", save_all=True, append_images=[noise()])
    for data in (b"", b"\xff\xd8\xff", several, encoded(noise(), "PNG")):
        assert jpeg_pixels(data) == 0


@given(place=st.integers(2, 700), value=st.integers(0, 255), more=st.integers(0, 255))
@settings(max_examples=2000, deadline=None)
def test_a_jpeg_is_never_larger_than_its_header_says(place, value, more):
    data = bytearray(encoded(noise(), "JPEG", comment=b"\xff\xc0\0\x0b\x08\0\1\0\1"))
    data[place : place + 2] = value, more
    with suppress(RuntimeError, ValueError):
        image = decode_image(bytes(data))
        assert jpeg_pixels(bytes(data)) in (0, image.shape[1] * image.shape[2])


@contextmanager
def little_memory(megabytes: int = 100):
    """Fails where the process grows by more than this in the block, if only for a moment."""
    peak = Path("/proc/self/clear_refs")
    if not peak.exists():
        pytest.skip("peak memory is measured on Linux only")
    peak.write_text("5")  # resets VmHWM to what is used now
    before = kilobytes("VmRSS")
    yield
    assert kilobytes("VmHWM") - before < megabytes * 1000


def kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def test_a_small_file_that_promises_a_huge_image_takes_no_memory():
    with little_memory(), pytest.raises(ImageError, match="too large"):
        decode(png(20_000, 20_000, 8, 2, b"\0" * 20_000))


def tiff_of_one_tile(side: int, tile: int) -> bytes:
    """A grey TIFF of side x side pixels whose one LZW tile says that it is larger than that."""
    tags = {256: side, 257: side, 258: 8, 259: 5, 262: 1, 277: 1,
            322: tile, 323: tile, 324: 200, 325: 1000}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(2000)


def test_a_small_image_in_a_huge_tiff_tile_takes_no_memory():
    with little_memory(), pytest.raises(ImageError):
        decode(tiff_of_one_tile(side=16, tile=24_000))


# Hostile bytes


def seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    moving = {"save_all": True, "append_images": frames[1:]}
    grey = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160)
    return [
        encoded(noise(), "JPEG", exif=exif),
        encoded(noise(), "JPEG", progressive=True),
        encoded(noise("CMYK"), "JPEG"),
        encoded(noise(), "PNG", exif=exif),
        encoded(noise("P"), "PNG", transparency=3),
        encoded(grey, "PNG"),
        encoded(frames[0], "PNG", **moving),
        encoded(noise(), "WEBP", exif=exif),
        encoded(noise("RGBA"), "WEBP", lossless=True),
        encoded(frames[0], "WEBP", **moving),
    ]


SEEDS = seeds()


def mutated(data: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, new in changes:
        at = int(where * len(data))
        if kind == "flip":
            flipped = bytes(a ^ b for a, b in zip(data[at:], new, strict=False))
            data = data[:at] + flipped + data[at + len(flipped) :]
        elif kind == "insert":
            data = data[:at] + new + data[at:]
        elif kind == "cut":
            data = data[:at] + data[at + len(new) :]
        else:
            data = data[:at]
    return data


def repaired(data: bytes) -> bytes:
    """The checksums of a mutated PNG made right, so that the damage reaches the decoder."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        out += data[at:end] + struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return out + data[at:]


places = st.floats(0, 0.999) | st.floats(0, 0.1)  # the headers twice as often
changes = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "insert", "cut", "truncate"]),
        places,
        st.binary(min_size=1, max_size=16),
    ),
    min_size=1,
    max_size=6,
)


@given(seed=st.sampled_from(SEEDS), changes=changes, repair=st.booleans())
@example(seed=SEEDS[0], changes=[("truncate", 0.0, b"x")], repair=False)
@settings(max_examples=250, deadline=None)
def test_mutated_files_give_an_image_or_an_image_error_and_nothing_else(seed, changes, repair):
    data = mutated(seed, changes)
    if repair and data[:4] == b"\x89PNG":
        data = repaired(data)
    try:
        image = decode(data)
    except ImageError:
        return
    assert image.dtype == torch.uint8
    assert image.ndim == 3
    assert image.shape[0] == 3


@given(data=st.binary(max_size=200), start=st.sampled_from([b"", *(s[:16] for s in SEEDS)]))
@settings(max_examples=100, deadline=None)
def test_random_bytes_behind_a_true_signature_raise_nothing_but_image_error(data, start):
    with pytest.raises(ImageError):
        decode(start + data)
