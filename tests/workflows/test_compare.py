"""`vitkit compare`: runs and evaluations side by side."""

import json
import shutil
from pathlib import Path

import pytest

import vitkit
from vitkit.cli import main
from vitkit.errors import UsageError, VitkitError
from vitkit.evaluation.findings import Findings
from vitkit.plain import save
from vitkit.workflows.compare import compare

FAST = {"steps": 4, "batch_size": 16, "quiet": True}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on the same images that differ in their learning rate."""
    folder = tmp_path_factory.mktemp("runs")
    vitkit.pretrain("digits", out=folder / "slow", learning_rate=1e-4, **FAST)
    vitkit.pretrain("digits", out=folder / "fast", learning_rate=1e-2, **FAST)
    return folder


def changed(runs: Path, name: str, change) -> Path:
    """A copy of a run with another config.json."""
    folder = runs / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(runs / "fast", folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_only_what_differs_is_told_of_the_configs(runs):
    found = compare([runs / "slow", runs / "fast"])
    assert found["differences"] == {"optimizer.learning_rate": ["0.0001", "0.01"]}
    assert found["notes"] == [] and found["page"] is None
    for name in ("slow", "fast"):
        best = vitkit.load(runs / name)
        assert found["metrics"][str(runs / name)]["top1"] <= 1
        assert best.provenance["steps"] == found["speed"][str(runs / name)]["steps"] == 4
        assert found["speed"][str(runs / name)]["images_per_second"] > 0


def test_scores_on_other_images_are_not_like_for_like(runs):
    other = changed(runs, "other", lambda c: c["data"].update(held_out_fingerprint="f" * 64))
    (note,) = compare([runs / "slow", runs / "fast", other])["notes"]
    assert "scored on different held-out images" in note
    assert f"{runs / 'slow'}, {runs / 'fast'} on digits" in note and "(ffffffff)" in note
    other = changed(runs, "other", lambda c: c["data"].update(fingerprint="e" * 64))
    (note,) = compare([runs / "fast", other])["notes"]
    assert "trained on different images" in note


def test_a_run_that_is_not_done_is_compared_and_said_to_be_so(runs):
    other = changed(runs, "other", lambda c: c["resolved"].update(steps=100))
    assert compare([runs / "fast", other])["notes"] == [f"{other} has done 4 of its 100 steps."]
    (other / "metrics.jsonl").write_text("")
    found = compare([runs / "fast", other])
    assert f"Nothing was evaluated yet in {other}." in found["notes"]
    assert found["metrics"][str(other)] == {}


def test_evaluations_are_compared_by_their_files(runs, tmp_path):
    for name, top1 in (("a", 0.5), ("b", 0.75)):
        save(Findings({"top1": top1, "loss": 1.0}, images=10), tmp_path / name)
    found = compare([tmp_path / "a.json", tmp_path / "b.json", runs / "fast"])
    assert found["metrics"][str(tmp_path / "b.json")] == {"top1": 0.75, "loss": 1.0, "images": 10}
    assert [*found["speed"]] == [str(runs / "fast")]
    assert any("is not known here" in note for note in found["notes"])


def test_the_command_prints_tables_and_writes_a_page(runs, tmp_path, capsys):
    words = ["compare", str(runs / "slow"), str(runs / "fast")]
    assert main([*words, "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:3] == ["top1", "top5", "loss"] and out[0].split()[-1] == "images"
    assert any(line.split() == ["optimizer.learning_rate", "0.0001", "0.01"] for line in out)
    assert json.loads(out[-1])["differences"] == {"optimizer.learning_rate": ["0.0001", "0.01"]}
    assert main([*words, "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "Comparison of 2 runs" in page and page.count("<svg") == 4
    assert "Not like for like" not in page


def test_words_that_cannot_be_are_refused_with_a_sentence(runs, tmp_path, capsys):
    with pytest.raises(UsageError, match="two runs or more"):
        compare([runs / "fast"])
    with pytest.raises(UsageError, match="is given twice"):
        compare([runs / "fast", runs / "fast"])
    with pytest.raises(UsageError, match="is neither a run directory"):
        compare([runs / "fast", tmp_path])
    (tmp_path / "x.json").write_text('{"rows": []}')
    with pytest.raises(UsageError, match=r"x\.json: is no result of vitkit evaluate"):
        compare([runs / "fast", tmp_path / "x.json"])
    broken = changed(runs, "broken", lambda c: c.pop("data"))
    with pytest.raises(VitkitError, match=r"is damaged .*`vitkit doctor"):
        compare([runs / "fast", broken])
    assert main(["compare", str(runs / "slow"), str(runs / "fast"), "-o", "page.txt"]) == 2
    assert "end its name with .html" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(config=1),
        lambda c: c.update(config="x"),
        lambda c: c["resolved"].update(steps="x"),
        lambda c: c["resolved"].update(device={"a": 1}),
        lambda c: c["data"].update(fingerprint=None),
        lambda c: c["data"].update(held_out_fingerprint=[1]),
    ],
)
def test_a_config_with_values_of_other_types_is_damaged(runs, change):
    with pytest.raises(VitkitError, match=r"broken: is damaged .*`vitkit doctor") as error:
        compare([runs / "slow", changed(runs, "broken", change)])
    assert error.value.exit_code == 1


def with_metrics(runs: Path, *lines: str) -> Path:
    """A copy of a run with further lines in metrics.jsonl."""
    folder = changed(runs, "damaged", lambda _: None)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(
    "record",
    [
        '{"kind": "train", "step": 4, "loss": "x"}',
        '{"kind": "train", "step": 4, "loss": [1, 2]}',
        '{"kind": "train", "step": 4, "images_per_second": "x"}',
        '{"kind": "train", "step": 4, "memory_bytes": [1]}',
        '{"kind": "train", "step": 1' + "0" * 400 + "}",
        '{"kind": "evaluation", "step": 4, "top1": "x"}',
        '{"kind": "evaluation", "step": 4, "top1": 0.5, "top5": {}}',
    ],
)
def test_metrics_of_other_types_are_damage(runs, record):
    with pytest.raises(VitkitError, match="damaged: is damaged"):
        compare([runs / "slow", with_metrics(runs, record)])


def test_what_is_no_record_is_left_out(runs):
    same = with_metrics(
        runs, "[" * 50_000, '{"kind": ["x"], "step": 1}', '{"kind": "train", "step": null}'
    )
    found = compare([runs / "fast", same], runs / "page.html")
    assert found["metrics"][str(same)] == found["metrics"][str(runs / "fast")]


def test_an_evaluation_without_a_number_is_never_the_best(runs):
    same = with_metrics(runs, '{"kind": "evaluation", "step": 3, "top1": null}')
    found = compare([runs / "fast", same], runs / "page.html")
    assert found["metrics"][str(same)] == found["metrics"][str(runs / "fast")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "is damaged"),
        ('{"metrics": {"top1": 1' + "0" * 400 + "}}", "is damaged"),
        ('{"metrics": {"top1": 1}, "images": 1' + "0" * 400 + "}", "is damaged"),
        ('{"metrics": {"top1": 1}, "images": [1]}', "is damaged"),
        ('{"metrics": {"top1": 1}, "images": "x"}', "is damaged"),
        ('{"metrics": {"top1": "x"}}', "no result of vitkit evaluate"),
    ],
)
def test_a_damaged_evaluation_is_told_in_a_sentence(runs, tmp_path, text, said):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(VitkitError, match=said):
        compare([runs / "fast", tmp_path / "x.json"])


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("folder.html", "is a folder"),
        ("file/page.html", "cannot be written"),
        ("a" * 250 + ".html", "File name too long"),
    ],
)
def test_a_page_that_cannot_be_written_is_told_before_the_runs_are_read(tmp_path, out, said):
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("a file")
    with pytest.raises(VitkitError, match=said):
        compare([tmp_path / "no run", tmp_path / "none either"], tmp_path / out)
