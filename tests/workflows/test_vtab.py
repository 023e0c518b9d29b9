"""`vitkit evaluate CHECKPOINT FOLDER --protocol vtab`: tasks that are there, missing, damaged."""

import json
import zlib
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from vitkit.cli import main
from vitkit.data.checks import DataError
from vitkit.data.transforms import Preprocessing
from vitkit.data.vtab import opening
from vitkit.errors import UsageError
from vitkit.models.nets import make
from vitkit.models.vit_config import ViTConfig
from vitkit.prediction.model import Model
from vitkit.workflows.evaluate import found
from vitkit.workflows.protocols import vtab_methods
from vitkit.workflows.protocols.vtab import means
from vtab_sets import lists, smallnorb, svhn, write


@pytest.fixture(autouse=True, scope="module")
def few_penalties():
    """Each takes half a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vtab_methods, "L2", (1e-3, 1e-5))
        yield


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ViTConfig(
        patch=8, width=24, depth=1, heads=2, mlp_width=48, classes=0, image_size=(16, 16)
    )
    return Model(make(config), [], Preprocessing(image_size=(16, 16)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tasks of three groups, and one that is damaged."""
    root = tmp_path_factory.mktemp("vtab")
    svhn(root / "svhn", train=1010, test=60)
    lists(root / "eurosat", classes=10, test=40)
    lists(root / "patch_camelyon", classes=2, test=40)
    smallnorb(root / "smallnorb", train=810, test=410)
    write(root / "dsprites/dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz", b"PK")
    return root


FOUR = "svhn,eurosat,smallnorb_elevation,dsprites_location,dtd"


@pytest.fixture(scope="module")
def findings(model, folder):
    return found(model, folder, "vtab", tasks=FOUR)[1]


def row_of(findings, task: str) -> dict[str, str]:
    [table] = findings.tables
    return next(dict(zip(table.header, row, strict=True)) for row in table.rows if row[0] == task)


def test_each_task_is_scored_on_its_test_images(findings):
    # Grey tells the digit and red the class of eurosat; all images of smallNORB are one.
    assert findings.metrics["svhn"] == 1
    assert findings.metrics["eurosat"] == 1
    assert findings.metrics["smallnorb_elevation"] < 0.3
    assert findings.images == 60 + 40 + 205


def test_the_means_are_over_the_tasks_that_were_scored(findings):
    low = findings.metrics["smallnorb_elevation"]
    assert findings.metrics["mean"] == pytest.approx((1 + 1 + low) / 3)
    assert findings.metrics["natural"] == findings.metrics["specialized"] == 1
    assert findings.metrics["structured"] == low


def test_a_task_counts_as_much_as_another_whatever_its_group():
    shares = {"svhn": 0.5, "dtd": 0.7, "eurosat": 0.9}
    scored = {name: SimpleNamespace(top1=share) for name, share in shares.items()}
    found = means(scored)  # pyright: ignore[reportArgumentType]
    assert found == pytest.approx({"mean": 0.7, "natural": 0.6, "specialized": 0.9, **shares})


def test_what_the_mean_lacks_is_said(findings):
    notes = " ".join(findings.notes)
    assert "The mean is over 3 of 19 tasks; without caltech101, cifar100, dtd," in notes
    assert "dtd" in next(note for note in findings.notes if note.startswith("No folder"))
    assert "dsprites_location is left out" in notes and "dsprites_ndarray" in notes
    assert row_of(findings, "dtd")["top-1"] == "missing"
    assert row_of(findings, "dsprites_location")["top-1"] == "damaged"


def test_where_the_images_come_from_is_said_of_each_task(findings):
    assert row_of(findings, "svhn")["split"] == "own draw (seed 0)"
    assert row_of(findings, "eurosat")["split"] == "published list"
    assert row_of(findings, "svhn")["test images"] == "60 of 26,032"
    own = next(note for note in findings.notes if note.startswith("The 1,000"))
    assert "svhn" in own and "smallnorb_elevation" in own and "eurosat" not in own
    other = next(note for note in findings.notes if note.startswith("The test images"))
    assert "smallnorb_elevation" in other


def test_only_probes_are_to_be_compared_with_it(findings):
    assert "compare only with probes" in findings.notes[0]


def test_fewer_test_images_are_scored_where_that_is_asked_for_and_it_is_said(model, folder):
    scored = found(model, folder, "vtab", tasks="svhn", vtab_test=20)[1]
    assert scored.images == 20
    assert row_of(scored, "svhn")["test images"] == "20 of 26,032"
    assert any("At most 20 test images" in note for note in scored.notes)


def test_a_damaged_image_leaves_out_its_task_alone(model, tmp_path):
    svhn(tmp_path / "svhn", train=1000, test=10)
    lists(tmp_path / "eurosat", classes=10)
    write(tmp_path / "eurosat/images/3.jpg", b"no image")
    scored = found(model, tmp_path, "vtab")[1]
    assert set(scored.metrics) == {"mean", "natural", "svhn"}
    assert any("eurosat is left out" in note and "3.jpg" in note for note in scored.notes)


@pytest.mark.parametrize(
    "raised", [zlib.error("-3"), RuntimeError(""), OverflowError("C long"), RecursionError("deep")]
)
def test_whatever_a_damaged_file_brings_about_the_other_tasks_go_on(
    model, tmp_path, monkeypatch, raised
):
    svhn(tmp_path / "svhn", train=1000, test=10)
    (tmp_path / "kitti").mkdir()
    monkeypatch.setitem(opening.READERS, "kitti_distance", Mock(side_effect=raised))
    scored = found(model, tmp_path, "vtab")[1]
    assert set(scored.metrics) == {"mean", "natural", "svhn"}
    assert any(
        f"kitti_distance is left out: {tmp_path}, kitti_distance: cannot be read" in note
        and type(raised).__name__ in note
        for note in scored.notes
    )


def test_ctrl_c_is_no_damage(model, tmp_path, monkeypatch):
    (tmp_path / "kitti").mkdir()
    monkeypatch.setitem(opening.READERS, "kitti_distance", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        found(model, tmp_path, "vtab")


def test_without_any_task_there_is_an_error(model, tmp_path):
    with pytest.raises(DataError, match="none of the tasks"):
        found(model, tmp_path, "vtab")


def test_a_net_is_fine_tuned_on_the_1000_images(model, folder):
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    scored = found(
        model, folder, "vtab", tasks="patch_camelyon", vtab_method="finetune", vtab_steps=30,
        vtab_side=16,
    )[1]  # fmt: skip
    assert scored.metrics["patch_camelyon"] == 1
    assert row_of(scored, "patch_camelyon")["fitted by"] == "30 steps at 16 px"
    assert "table4-vtab" in scored.notes[0]
    for name, tensor in model.net.state_dict().items():
        assert torch.equal(tensor, before[name])  # the net that was given is as it was


def test_fine_tuning_leaves_nothing_behind(model, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found(model, folder, "vtab", tasks="patch_camelyon", vtab_method="finetune", vtab_steps=1,
          vtab_side=16)  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [{"vtab_test": -1}, {"vtab_steps": -1}, {"vtab_method": "svm"}])
def test_a_value_that_cannot_be_is_the_words_fault(model, folder, words):
    with pytest.raises(UsageError, match=next(iter(words))):
        found(model, folder, "vtab", **words)


def test_a_task_that_is_unknown_is_the_words_fault(model, folder):
    with pytest.raises(UsageError, match="smallnorb_azimuth"):
        found(model, folder, "vtab", tasks="svhn,smallnorb_azimut")


def test_data_must_be_one_folder(model):
    with pytest.raises(UsageError, match=r"DATA is a\.csv, digits; vtab takes one folder"):
        found(model, ("a.csv", "digits"), "vtab")


def test_the_command_line_prints_the_means(model, folder, tmp_path, capsys):
    model.save(tmp_path / "net")
    words = [
        "evaluate", str(tmp_path / "net"), str(folder), "--protocol", "vtab", "--tasks", "svhn",
        "--json",
    ]  # fmt: skip
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["metrics"] == {"mean": 1, "natural": 1, "svhn": 1}
    assert result["data"] == str(folder)


def test_the_probe_is_that_of_scikit_learn_at_the_penalty_that_does_best_on_the_others(monkeypatch):
    penalties = (0.1, 1e-2, 1e-3, 1e-4)
    monkeypatch.setattr(vtab_methods, "L2", penalties)
    random = np.random.default_rng(0)
    centres = random.normal(size=(4, 10))
    y = random.integers(0, 4, 1000)
    x = (centres[y] + 1.5 * random.normal(size=(1000, 10))).astype(np.float32)
    fit, apart = slice(0, 800), slice(800, 1000)

    def learned(rows, labels, l2):
        scaler = StandardScaler().fit(rows)
        model = LogisticRegression(C=1 / (len(rows) * l2), max_iter=2000, tol=1e-8)
        return scaler, model.fit(scaler.transform(rows), labels)

    def score(l2):
        scaler, model = learned(x[fit], y[fit], l2)
        rows = scaler.transform(x[apart])
        loss = np.log(model.predict_proba(rows)[range(200), y[apart]]).mean()
        return model.score(rows, y[apart]), loss

    parts = [torch.from_numpy(array) for array in (x[fit], y[fit], x[apart], y[apart])]
    weight, bias, l2 = vtab_methods.probe(*parts, classes=4)
    assert l2 == max(penalties, key=score)
    scaler, both = learned(x, y, l2)
    expected = both.decision_function(scaler.transform(x))
    logits = (torch.from_numpy(x) @ weight.T + bias).numpy()
    assert np.allclose(logits - logits.mean(1, keepdims=True),
                       expected - expected.mean(1, keepdims=True), atol=1e-2)  # fmt: skip
