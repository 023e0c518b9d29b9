"""`vitkit data` on made folders: what it writes is what a run can use."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitkit
from vitkit.cli import main
from vitkit.data.checks import DataError
from vitkit.data.opening import open_data
from vitkit.errors import UsageError
from vitkit.workflows import data as work
from vitkit.workflows.data_duplicates import dedup, divided, split


def picture(seed: int, side: int = 48) -> Image.Image:
    """Coarse to fine noise: no two seeds look alike."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((side, side, 3))
    for cells in (2, 4, 8, 16):
        noise = (random.normal(size=(cells, cells, 3)) * 70 / cells**0.6).astype(np.float32)
        layers = [Image.fromarray(noise[:, :, c]).resize((side, side), 3) for c in range(3)]
        pixels += np.stack([np.asarray(layer) for layer in layers], axis=-1)
    return Image.fromarray((pixels + 120).clip(0, 255).astype(np.uint8))


@pytest.fixture
def photos(tmp_path):
    """train/ and test/ of cats and dogs: a bad file, a copy, a mirrored and a smaller image."""
    root = tmp_path / "photos"
    seed = 0
    for part, images in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for number in range(images):
                seed += 1
                picture(seed).save(root / part / name / f"{number}.png")
    train, test = root / "train", root / "test"
    (train / "cat" / "bad.jpg").write_bytes(b"nothing")
    (train / "dog" / "copy.png").write_bytes((train / "dog" / "3.png").read_bytes())
    mirrored = Image.open(train / "cat" / "5.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.resize((60, 60)).save(train / "cat" / "mirrored.png")
    Image.open(test / "dog" / "2.png").resize((40, 40)).save(train / "dog" / "leak.jpg", quality=60)
    return root


def lines(path: str | Path) -> dict[str, str]:
    rows = Path(path).read_text().splitlines()
    return dict(row.split("\t") for row in rows if not row.startswith("#"))


def test_check_writes_a_quarantine_that_training_honours(photos, tmp_path):
    found = work.check(photos, out=tmp_path / "checked", quiet=True)
    assert found["bad"] == {"not an image": 1} and found["copies"] == 1
    assert json.loads((tmp_path / "checked" / "check.json").read_text()) == found
    left_out = lines(found["quarantine"])
    assert [Path(key).name for key in left_out] == ["bad.jpg", "copy.png"]
    run = vitkit.pretrain(
        photos, out=tmp_path / "run", steps=1, batch_size=4, quiet=True,
        **{"data.quarantine": (found["quarantine"],)},
    )  # fmt: skip
    recorded = json.loads((run.folder / "config.json").read_text())
    assert recorded["config"]["data"]["quarantine"] == [found["quarantine"]]
    again = work.check(photos, out=tmp_path / "checked", quiet=True)
    assert again["out"] == str(tmp_path / "checked-2")


def test_dedup_finds_copies_and_leaks_and_writes_a_clean_index(photos, tmp_path):
    found = dedup(photos, out=tmp_path / "clean", quiet=True)
    assert found["pairs"] == {"same bytes": 1, "look": 2}
    assert found["leaks"] == {"train-test": 1} and found["groups"] == 3
    left_out = [Path(key).name for key in lines(found["quarantine"])]
    assert sorted(left_out) == ["5.png", "copy.png", "leak.jpg"]
    clean = open_data(found["index"])
    assert len(clean.train) == 28 - 3 and clean.test is not None and len(clean.test) == 8
    names = [clean.train.key(index) for index in range(len(clean.train))]
    assert not any(name.endswith(("leak.jpg", "copy.png", "cat/5.png")) for name in names)
    with (tmp_path / "clean" / "duplicates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["same bytes", "look", "look"]
    assert sorted(row["mirrored"] for row in rows) == ["0", "0", "1"]
    leak = next(row for row in rows if row["split_b"] == "test")
    assert leak["image_a"].endswith("leak.jpg") and leak["image_b"].endswith("2.png")
    with Image.open(tmp_path / "clean" / "pairs.png") as sheet:
        assert sheet.width > 300


def test_against_other_data_only_what_is_trained_on_is_left_out(photos, tmp_path):
    other = tmp_path / "other"
    for name in ("left", "right"):
        (other / name).mkdir(parents=True)
    for number in (1, 2):
        image = Image.open(photos / "train" / "cat" / f"{number}.png")
        image.save(other / "left" / f"{number}.webp", quality=50)
    Image.open(other / "left" / "1.webp").save(other / "right" / "again.bmp")
    picture(99).save(other / "right" / "a.png")
    picture(99, side=96).resize((48, 48)).save(other / "right" / "b.png")
    found = dedup(photos / "train", against=[other], out=tmp_path / "clean", quiet=True)
    left_out = [Path(key).name for key in lines(found["quarantine"])]
    assert sorted(left_out) == ["1.png", "2.png", "5.png", "copy.png"]
    assert list(found["leaks"].values()) == [3]
    groups = json.loads((tmp_path / "clean" / "groups.json").read_text())["groups"]
    assert sum(len(group["against"]) for group in groups) == 3
    assert all(group["images"] for group in groups)


def test_with_a_checkpoint_duplicates_are_found_by_features_too(photos, tmp_path):
    run = vitkit.pretrain(
        "digits", out=tmp_path / "run", steps=1, batch_size=4, quiet=True, image_size=8
    )
    found = dedup(
        photos, checkpoint=run.folder, features_threshold=0.9999, out=tmp_path / "clean", quiet=True
    )
    assert set(found["pairs"]) == {"same bytes", "look", "features"}


def test_images_of_a_few_pixels_are_compared_by_their_bytes_alone(tmp_path):
    found = dedup("digits", out=tmp_path / "clean", quiet=True)
    assert found["small"] == 1797 and found["pairs"] == {"same bytes": 0, "look": 0}
    assert found["sheet"] is None and len(open_data(found["index"]).train) > 1000
    assert not [path for path in (tmp_path / "clean").iterdir() if path.name.startswith(".")]


def test_a_threshold_that_cannot_be_is_refused_before_anything_is_written(photos, tmp_path):
    for name in ("threshold", "features_threshold"):
        with pytest.raises(UsageError, match="at most 1"):
            dedup(photos, out=tmp_path / "clean", **{name: 1.5})
    assert not (tmp_path / "clean").exists()


def test_split_keeps_duplicates_together_and_classes_alike(photos, tmp_path):
    found = split(photos, tmp_path / "a.index", val=0.2, test=0.2, quiet=True)
    splits = open_data(found["out"])
    assert splits.val is not None and splits.test is not None
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    assert sum(map(len, parts.values())) == 36
    where = {part.key(i): name for name, part in parts.items() for i in range(len(part))}
    by_name = {"/".join(Path(key).parts[-3:]): name for key, name in where.items()}
    for pair in (("train/dog/copy.png", "train/dog/3.png"),
                 ("train/cat/mirrored.png", "train/cat/5.png"),
                 ("train/dog/leak.jpg", "test/dog/2.png")):  # fmt: skip
        assert by_name[pair[0]] == by_name[pair[1]]
    for part in (splits.val, splits.test):
        assert set(part.labels.tolist()) == {0, 1} and 6 <= len(part) <= 9


def test_a_split_follows_from_its_seed_and_takes_groups_that_were_found(photos, tmp_path):
    groups = Path(dedup(photos, out=tmp_path / "clean", quiet=True)["out"]) / "groups.json"
    made = [
        open_data(split(photos, tmp_path / f"{n}.index", quiet=True, **more)["out"])
        for n, more in enumerate(
            ({"seed": 1}, {"seed": 1, "groups": groups}, {"seed": 2, "groups": groups})
        )
    ]
    first, same, other = ([s.train.key(i) for i in range(len(s.train))] for s in made)
    assert first == same != other
    with pytest.raises(DataError, match="not in this data"):
        split("digits", tmp_path / "d.index", groups=groups, quiet=True)
    groups.write_text("[]")
    with pytest.raises(DataError, match="not readable as groups"):
        split(photos, tmp_path / "d.index", groups=groups, quiet=True)


def test_shares_are_met_in_all_and_every_class_keeps_one_to_train_on():
    classes = np.repeat(np.arange(400), 3)
    places = divided(classes, [np.array([0, 1, 2])], {"test": 0.1, "val": 0.2}, seed=0)
    assert abs((places == 2).sum() - 120) <= 2 and abs((places == 1).sum() - 240) <= 2
    assert len(np.unique(classes[places == 0])) == 400
    assert len(np.unique(places[:3])) == 1


def test_stats_are_those_of_the_pixels(tmp_path):
    found = work.stats("digits", out=tmp_path / "stats", quiet=True)
    splits = open_data("digits")
    assert splits.val is not None
    pixels = np.stack([part.image(i).numpy() for part in (splits.train, splits.val)
                       for i in range(len(part))]) / 255  # fmt: skip
    assert np.allclose(found["mean"], pixels.mean((0, 2, 3)), atol=1e-4)
    assert np.allclose(found["std"], pixels.std((0, 2, 3)), atol=1e-4)
    assert found["images"] == {"train": len(splits.train), "val": len(splits.val)}
    assert found["shorter_side"] == {"min": 8, "median": 8, "max": 8}
    assert json.loads((tmp_path / "stats" / "stats.json").read_text()) == found
    with Image.open(found["sheet"]) as sheet:
        assert sheet.height > 900


def test_an_index_holds_the_same_images(photos, tmp_path):
    found = work.index(photos, tmp_path / "photos.index")
    assert found["images"] == {"train": 28, "test": 8} and found["classes"] == 2


def test_sub_verbs_print_a_table_and_end_with_json(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, field in (
        (["check", "photos"], "quarantine"),
        (["stats", "photos"], "mean"),
        (["dedup", "photos", "--against", "digits", "-o", "d"], "leaks"),
        (["split", "photos", "-o", "s.index"], "groups"),
        (["index", "photos", "-o", "i.index"], "classes"),
    ):
        assert main(["data", *words, "--json"]) == 0, capsys.readouterr().err
        out = capsys.readouterr().out
        assert field in json.loads(out.splitlines()[-1])
        assert "Next: vitkit " in out and "\\n" not in out.rsplit("{", 1)[0]


def test_strict_exits_1_where_images_are_bad(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", "photos", "--strict"]) == 1
    assert "1 images cannot be used" in capsys.readouterr().err
    (photos / "train" / "cat" / "bad.jpg").unlink()
    assert main(["data", "check", "photos", "--strict"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs a verb"),
        (["chek", "digits"], "'check'"),
        (["check"], "needs DATA"),
        (["split", "digits"], "needs -o"),
        (["split", "digits", "-o", "x.index", "--val", "2"], "--val is 2"),
        (["split", "digits", "-o", "x.index", "--val", "0.5", "--test", "0.5"], "add up to 1"),
        (["check", "digits", "--threads", "0"], "at least 1"),
        (["dedup", "digits", "--threshold", "0"], "--threshold is 0"),
    ],
)
def test_wrong_words_exit_2_in_one_sentence(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["check", "stats", "dedup", "split", "index"])
def test_every_sub_verb_has_help_and_is_listed(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["data", verb, "--help"])
    assert stop.value.code == 0
    assert f"vitkit data {verb}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    assert f"vitkit data {verb}" in capsys.readouterr().out
