"""When a run that learns without labels says that its features have collapsed."""

import shutil

import pytest

import vitkit
from vitkit.workflows import run as runs

WORDS = {
    "model": "ViT-Femto/2", "steps": 2, "evaluate_every": 1, "batch_size": 8, "image_size": 8,
    "save_every": 1, "device": "cpu", "precision": "fp32",
}  # fmt: skip


def said_with(monkeypatch, capfd, spreads, out, **more):
    """What a run says whose evaluations find these spreads, one after another."""
    found = iter(spreads)
    monkeypatch.setattr(
        runs, "probe", lambda *_: {"loss": 1.0, "feature_spread": next(found), "images": 9}
    )
    vitkit.pretrain("digits", "quickstart-mae", out=out, **WORDS, **more)
    return " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("spreads", "times"), [((0.9, 0.15, 0.1), 2), ((0.15, 0.15, 0.12), 0), ((0.9, 0.3, 0.25), 0)]
)
def test_it_is_said_where_they_have_fallen_far_below_what_the_run_began_with(
    tmp_path, monkeypatch, capfd, spreads, times
):
    said = said_with(monkeypatch, capfd, spreads, tmp_path / "run")
    assert said.count("have collapsed") == times


def test_a_resumed_run_knows_what_it_began_with(tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    said_with(monkeypatch, capfd, (0.9, 0.5, 0.5), out)
    for name in ("checkpoints/step-00000002", "last"):
        shutil.rmtree(out / name)
    said = said_with(monkeypatch, capfd, (0.1,), out, resume="auto")
    assert "have collapsed" in said and "0.9 before the first step" in said
