"""Results are saved as JSON and npz, and read back the same."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from vitkit.errors import VitkitError
from vitkit.plain import Curve, load, save


@dataclass(frozen=True)
class Inner:
    name: str
    values: np.ndarray | None = None


@dataclass(frozen=True)
class Outer:
    size: tuple[int, int]
    share: float
    parts: tuple[Inner, ...]
    by_name: dict[str, float | None]
    curve: Curve | None = None
    ranks: tuple[tuple[tuple[str, float], ...], ...] = ()


RESULT = Outer(
    size=(4, 6),
    share=0.25,
    parts=(Inner("a\udc80", np.arange(6, dtype=np.float32).reshape(2, 3)), Inner("none")),
    by_name={"cat": 0.5, "dog": None},
    curve=Curve("t", "x", "y", np.arange(3), {"line 1": np.array([0.1, np.nan, 0.3])}),
    ranks=((("cat", 0.9), ("dog", 0.1)), ()),
)


def test_what_is_read_is_what_was_saved(tmp_path):
    save(RESULT, tmp_path / "result.v1")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["result.v1.json", "result.v1.npz"]
    read = load(Outer, tmp_path / "result.v1")
    assert (read.size, read.share, read.by_name, read.ranks) == (
        RESULT.size, RESULT.share, RESULT.by_name, RESULT.ranks,
    )  # fmt: skip
    assert [part.name for part in read.parts] == ["a\udc80", "none"]
    np.testing.assert_array_equal(read.parts[0].values, RESULT.parts[0].values)
    assert read.parts[0].values.dtype == np.float32
    assert read.parts[1].values is None
    np.testing.assert_array_equal(read.curve.lines["line 1"], RESULT.curve.lines["line 1"])


def test_the_files_are_plain_json_and_npz(tmp_path):
    save(RESULT, tmp_path / "result")
    tree = json.loads((tmp_path / "result.json").read_text())
    place = tree["parts"][0]["values"]["array of the .npz"]
    with np.load(tmp_path / "result.npz", allow_pickle=False) as arrays:
        assert arrays[place].shape == (2, 3)


def test_a_number_that_is_none_is_null_in_json_and_nan_when_read(tmp_path):
    save(Outer((1, 1), float("nan"), (), {}), tmp_path / "result")
    assert json.loads((tmp_path / "result.json").read_text())["share"] is None
    assert np.isnan(load(Outer, tmp_path / "result").share)


@pytest.mark.parametrize("damage", ["no json", "no npz", "other json", "cut npz"])
def test_damaged_files_are_refused_in_a_sentence(tmp_path, damage):
    save(RESULT, tmp_path / "result")
    if damage == "no json":
        (tmp_path / "result.json").unlink()
    elif damage == "no npz":
        (tmp_path / "result.npz").unlink()
    elif damage == "other json":
        (tmp_path / "result.json").write_text('{"size": 3, "surprise": 1}')
    else:
        (tmp_path / "result.npz").write_bytes((tmp_path / "result.npz").read_bytes()[:40])
    with pytest.raises(VitkitError, match="hold no Outer"):
        load(Outer, tmp_path / "result")
