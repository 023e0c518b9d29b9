"""Every image is looked at, hostile ones too: what is wrong, odd or there twice."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import csr_array

from vitkit.data.audit import best_first, findings, look_through, same_bytes
from vitkit.data.opening import open_data
from vitkit.data.source import ArraySource, Source


class Files(Source):
    """Image files in memory by their names."""

    def __init__(self, files: dict[str, bytes], labels=None, class_names=("cat", "dog")) -> None:
        self.names, self.files = list(files), list(files.values())
        self.labels = np.zeros(len(files), np.int64) if labels is None else labels
        self.class_names = list(class_names)

    def encoded(self, index: int) -> bytes:
        if self.files[index] == b"absent":
            raise FileNotFoundError(2, "No such file or directory")
        return self.files[index]

    def key(self, index: int) -> str:
        return self.names[index]

    name = key

    def fingerprint(self) -> str:
        return ""


def encoded(mode="RGB", kind="PNG", size=(40, 40), value=0, **more) -> bytes:
    file = io.BytesIO()
    image = Image.effect_noise(size, 50).point(lambda p: (p + value) % 256)
    image.convert(mode).save(file, kind, **more)
    return file.getvalue()


def looked(files: dict[str, bytes], **more):
    return look_through([("train", Files(files, **more))], threads=2)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(kind="JPEG", exif=exif)


def moving() -> bytes:
    frames = [Image.new("RGB", (40, 40), (value, 0, 0)) for value in (0, 99)]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "not an image"),
        (b"<html>not found</html>", "not an image"),
        (b"absent", "unreadable"),
        (encoded()[:-60], "corrupt"),
        (encoded(kind="JPEG")[:300], "not an image"),
        (encoded(kind="JPEG")[:900], "corrupt"),
        (encoded("L", size=(6000, 6000)), "too large"),
    ],
)
def test_what_cannot_be_used_is_told_by_kind(data, kind):
    seen = looked({"a.png": encoded(), "b.png": data})
    assert list(seen.problems) == [1]
    assert seen.problems[1][0] == kind
    assert seen.usable.tolist() == [True, False]
    assert "b.png" in findings(seen).quarantine


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (encoded("L"), "grey"),
        (encoded("P"), "palette"),
        (encoded("RGBA"), "transparency"),
        (encoded("I;16"), "16 bits"),
        (encoded("CMYK", "TIFF"), "CMYK"),
        (turned(), "turned by EXIF"),
        (moving(), "animated"),
        (encoded(size=(8, 90)), "tiny"),
        (encoded(kind="WEBP"), "other suffix"),
    ],
)
def test_what_is_odd_is_counted_and_is_no_fault(data, note):
    suffix = {b"\xff\xd8": "jpg", b"II": "tif", b"MM": "tif"}.get(data[:2], "png")
    suffix = "webp" if note == "animated" else suffix
    seen = looked({f"a.{suffix}": data})
    assert not seen.problems
    assert seen.notes == {note: 1} and seen.examples[note] == [f"a.{suffix}"]


def test_damaged_files_end_nothing_and_warn_of_nothing(recwarn):
    random = np.random.default_rng(0)
    files = {}
    for number in range(150):
        kind = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")[number % 6]
        data = bytearray(encoded(kind=kind, size=(24, 24)))
        for place in random.integers(0, len(data), 8):
            data[place] = random.integers(256)
        files[f"{number}.img"] = bytes(data)
    seen = looked(files)
    assert len(seen.problems) + int(seen.usable.sum()) == 150
    assert not recwarn.list  # a line for each of a million images, else


def test_one_file_twice_is_found_and_the_first_is_kept():
    twice = encoded(value=7)
    seen = looked({"a.png": twice, "b.png": encoded(value=1), "c.png": twice})
    assert [group.tolist() for group in same_bytes(seen)] == [[0, 2]]
    found = findings(seen)
    assert found.copies == 1 and found.leaks == 0 and found.two_labels == []
    assert list(found.quarantine) == ["c.png"] and "a.png" in found.quarantine["c.png"]


def test_one_file_under_two_labels_is_left_out_altogether():
    twice = encoded(value=7)
    seen = looked({"a.png": twice, "c.png": twice}, labels=np.array([0, 1]))
    found = findings(seen)
    assert found.two_labels == [["a.png", "c.png"]]
    assert set(found.quarantine) == {"a.png", "c.png"}
    labels = csr_array(np.array([[1, 1], [1, 1]], dtype=bool))
    found = findings(looked({"a.png": twice, "c.png": twice}, labels=labels))
    assert found.two_labels == [] and set(found.quarantine) == {"c.png"}


def test_of_copies_in_several_splits_the_one_tested_on_stays():
    twice = encoded(value=7)
    parts = [
        ("train", Files({"t.png": twice, "u.png": encoded(value=3)})),
        ("test", Files({"e.png": twice})),
    ]
    seen = look_through(parts, threads=2)
    found = findings(seen)
    assert found.leaks == 1 and list(found.quarantine) == ["t.png"]
    assert best_first(seen, np.array([0, 2])).tolist() == [2, 0]
    assert seen.name(2) == "e.png" and seen.splits().tolist() == [0, 0, 1]


def test_of_near_duplicates_the_largest_is_the_best():
    seen = looked({"a.png": encoded(), "b.png": encoded(size=(80, 80)), "c.png": encoded()})
    assert best_first(seen, np.array([0, 1, 2]))[0] == 1


def test_empty_small_and_missing_classes_are_named():
    names = ["cat", "dog", "owl"]
    train = Files({f"{n}.png": encoded(value=n) for n in range(11)}, np.zeros(11, int), names)
    test = Files({"x.png": encoded(value=77)}, np.array([1]), names)
    found = findings(look_through([("train", train), ("test", test)], threads=1))
    assert found.empty == ["owl"]
    assert found.missing == {"train": ["dog"], "test": ["cat"]}
    assert found.small == {"train": [], "test": ["dog"]}
    assert found.counts["train"] == {"cat": 11, "dog": 0, "owl": 0}


def test_sums_give_the_mean_and_the_deviation_of_all_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 9, 7, 3), dtype=np.uint8)
    source = ArraySource(pixels, np.zeros(20, int), ["a"])
    seen = look_through([("train", source)], threads=2, moments=True)
    mean = seen.sums[0] / seen.pixels
    assert np.allclose(mean, pixels.mean((0, 1, 2)))
    assert np.allclose(np.sqrt(seen.sums[1] / seen.pixels - mean**2), pixels.std((0, 1, 2)))


def test_progress_ends_at_all_images_and_order_is_that_of_the_data():
    told = []
    parts = [("train", open_data("digits").train)]
    seen = look_through(parts, threads=3, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (len(seen), len(seen))
    assert (seen.heights == 8).all() and seen.notes["tiny"] == len(seen)
    one = look_through(parts, threads=1)
    assert np.array_equal(one.digests, seen.digests)
