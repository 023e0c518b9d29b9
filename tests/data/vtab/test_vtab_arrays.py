"""SVHN, PatchCamelyon, smallNORB and dSprites: images and labels from arrays in files."""

import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from scipy.io import savemat

from vitkit.data.checks import DataError
from vitkit.data.vtab import arrays
from vitkit.data.vtab.pools import PixelSource
from vtab_sets import dsprites, norb_matrix, smallnorb, svhn, write


def test_svhn_calls_the_digit_0_by_10(tmp_path):
    svhn(tmp_path, train=12, test=3)
    pools = arrays.svhn(tmp_path)
    assert pools.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert len(pools.test) == 3
    assert (pools.train.image(9) == 200).all()
    assert pools.train.image(0).shape == (3, 32, 32)
    assert pools.same_test


def test_svhn_of_other_labels_or_no_matlab_at_all_is_an_error(tmp_path):
    svhn(tmp_path, train=12, labels_to=11)
    with pytest.raises(DataError, match="1 to 10"):
        arrays.svhn(tmp_path)
    write(tmp_path / "train_32x32.mat", b"MATLAB 5.0" + bytes(500))
    with pytest.raises(DataError, match="train_32x32"):
        arrays.svhn(tmp_path)


@pytest.mark.parametrize("label", [np.nan, 1.5, 1 + 2j, 1e300, -np.inf, 0])
def test_svhn_of_labels_that_are_no_digits_is_an_error(tmp_path, label):
    svhn(tmp_path, train=12)
    images = np.zeros((32, 32, 3, 12), np.uint8)
    savemat(tmp_path / "train_32x32.mat", {"X": images, "y": np.full((12, 1), label)})
    with pytest.raises(DataError, match="whole numbers from 1 to 10"):
        arrays.svhn(tmp_path)


def test_svhn_with_two_arrays_of_one_name_is_an_error(tmp_path):
    """The second would tell the sizes, and the first be read."""
    svhn(tmp_path, train=12)
    file = tmp_path / "train_32x32.mat"
    savemat(tmp_path / "large.mat", {"X": np.zeros((500, 500), np.uint8)})
    header = 128  # bytes; then one array after another
    file.write_bytes((tmp_path / "large.mat").read_bytes() + file.read_bytes()[header:])
    with pytest.raises(DataError, match="twice"):
        arrays.svhn(tmp_path)


# PatchCamelyon, with a stand-in for h5py, which is no dependency


class Stored(dict):
    """A file of arrays, each in a .npz beside it."""

    def __init__(self, path, mode):
        with np.load(str(path)) as content:
            super().__init__(content)


def patch_camelyon(folder, side=96):
    for part, many in (("train", 4), ("valid", 3), ("test", 2)):
        x = np.full((many, side, side, 3), many, np.uint8)
        y = (np.arange(many) % 2).reshape(-1, 1, 1, 1).astype(np.uint8)
        for name, array in (("x", x), ("y", y)):
            with open(folder / f"camelyonpatch_level_2_split_{part}_{name}.h5", "wb") as file:
                np.savez(file, **{name: array})


@pytest.fixture
def h5py(monkeypatch):
    stand_in = types.ModuleType("h5py")
    stand_in.File = Stored  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "h5py", stand_in)


def test_patches_are_read_with_their_labels(tmp_path, h5py):
    patch_camelyon(tmp_path)
    pools = arrays.patch_camelyon(tmp_path)
    assert pools.train.labels.tolist() == [0, 1, 0, 1]
    assert pools.val is not None and len(pools.val) == 3
    assert (pools.test.image(1) == 2).all() and pools.test.image(1).shape == (3, 96, 96)
    assert pools.same_test


def test_patches_of_another_size_are_an_error(tmp_path, h5py):
    patch_camelyon(tmp_path, side=32)
    with pytest.raises(DataError, match="not as PatchCamelyon"):
        arrays.patch_camelyon(tmp_path)


def test_without_h5py_the_message_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match="the package h5py"):
        arrays.patch_camelyon(tmp_path)


# smallNORB


def test_smallnorb_tells_the_azimuth_and_the_elevation_of_the_first_camera(tmp_path):
    smallnorb(tmp_path, train=40, test=20)
    azimuth, elevation = arrays.smallnorb_azimuth(tmp_path), arrays.smallnorb_elevation(tmp_path)
    assert azimuth.train.labels.tolist() == [n % 18 for n in range(40)]
    assert elevation.train.labels.tolist() == [n // 18 for n in range(40)]
    assert azimuth.train.class_names[17] == "340 degrees"
    assert elevation.train.class_names[8] == "70 degrees"
    assert (azimuth.train.image(3) == 7).all()


def test_half_of_smallnorbs_test_images_are_to_validate_on(tmp_path):
    smallnorb(tmp_path, train=4, test=36)
    pools = arrays.smallnorb_azimuth(tmp_path)
    assert pools.val is not None
    assert (len(pools.val), len(pools.test)) == (18, 18)
    both = pools.val.labels.tolist() + pools.test.labels.tolist()
    assert sorted(both) == sorted(n % 18 for n in range(36))
    assert not pools.same_test


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(24),
        norb_matrix(np.zeros((3, 2, 96, 96), np.uint8))[:-1],  # cut short
        norb_matrix(np.zeros((3, 4), np.int32)),  # of another type
        np.array([arrays.BYTES, 4, 2**31 - 1, 2**31 - 1, 96, 96], "<i4").tobytes(),  # a claim
        np.array([arrays.BYTES, 2**31 - 1, 1, 1, 1, 1], "<i4").tobytes(),
        np.array([arrays.BYTES, 4, -1, -2, 96, 96], "<i4").tobytes(),
    ],
)
def test_what_a_smallnorb_file_claims_is_checked_against_its_size(tmp_path, content):
    smallnorb(tmp_path, train=3, test=3)
    write(tmp_path / f"{arrays.NORB['train']}-dat.mat", content)
    with pytest.raises(DataError, match="not as smallNORB"):
        arrays.smallnorb_azimuth(tmp_path)


# dSprites


def test_dsprites_has_places_in_pairs_and_angles_by_two_and_a_half(tmp_path):
    dsprites(tmp_path)
    for reader, values in ((arrays.dsprites_location, 32), (arrays.dsprites_orientation, 40)):
        pools = reader(tmp_path)
        assert pools.val is not None
        assert [len(part) for part in (pools.train, pools.val, pools.test)] == [800, 200, 240]
        for part in (pools.train, pools.test):
            for index in (0, 5, len(part) - 1):
                image = part.image(index)
                number = int(image[0].flatten().argmax())  # the pixel that is lit
                assert image.sum() == 3 * 255
                assert part.labels[index] == (number % values) // (values / 16)
        assert not pools.same_test


def test_no_sprite_is_both_to_train_and_to_test_on(tmp_path):
    dsprites(tmp_path)
    pools = arrays.dsprites_location(tmp_path)

    def lit(part):
        return {int(part.image(n)[0].flatten().argmax()) for n in range(len(part))}

    parts = [lit(part) for part in (pools.train, pools.val, pools.test)]
    assert sum(map(len, parts)) == len(parts[0] | parts[1] | parts[2]) == 1240


def test_the_pickle_in_dsprites_is_not_opened(tmp_path, monkeypatch):
    dsprites(tmp_path)
    import pickle

    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    arrays.dsprites_location(tmp_path)


def npy(array: np.ndarray, shape=None) -> bytes:
    header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(array)


@pytest.mark.parametrize(
    ("latents", "images", "said"),
    [
        ((10, 6), (10**9, 64, 64), "an array"),  # more than any set has
        ((10**9, 6), (10, 64, 64), "an array"),
        ((10, 6), (10, 64, 63), "an array"),
        ((10, 5), (10, 64, 64), "an array"),
        ((10, 6), (9, 64, 64), "differ in length"),
        ((11, 6), (11, 64, 64), "cut short"),
    ],
)
def test_what_dsprites_claims_is_checked_before_it_is_read(tmp_path, latents, images, said):
    with zipfile.ZipFile(tmp_path / arrays.DSPRITES, "w") as file:
        file.writestr("latents_classes.npy", npy(np.zeros((10, 6), np.int64), latents))
        file.writestr("imgs.npy", npy(np.zeros((10, 64, 64), np.uint8), images))
    with pytest.raises(DataError, match=f"not as dSprites is published: .*{said}"):
        arrays.dsprites_location(tmp_path)


@pytest.mark.parametrize("latent", [-1, 32, 2**62])
def test_a_place_of_a_sprite_that_cannot_be_is_an_error(tmp_path, latent):
    latents = np.zeros((10, 6), np.int64)
    latents[3, 4] = latent
    with zipfile.ZipFile(tmp_path / arrays.DSPRITES, "w") as file:
        file.writestr("latents_classes.npy", npy(latents, (10, 6)))
        file.writestr("imgs.npy", npy(np.zeros((10, 64, 64), np.uint8), (10, 64, 64)))
    with pytest.raises(DataError, match="latents that are not from 0 to 31"):
        arrays.dsprites_location(tmp_path)


def test_images_of_one_channel_become_three(tmp_path):
    dsprites(tmp_path)
    image = arrays.dsprites_location(tmp_path).test.image(0)
    assert image.dtype == torch.uint8 and image.shape == (3, 64, 64)


def test_other_rows_of_a_file_are_other_images_even_with_the_same_labels(tmp_path):
    dsprites(tmp_path)
    test = arrays.dsprites_location(tmp_path).test
    assert isinstance(test, PixelSource)
    other = PixelSource(test.path, test.pixels, test.rows[::-1], test.labels, test.class_names)
    assert other.fingerprint() != test.fingerprint()
    assert other.key(0) == test.key(len(test) - 1)
