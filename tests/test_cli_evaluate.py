"""`vitkit evaluate` on the command line: what it takes, prints and writes."""

import json
import sys
import types

import pytest
import torch

from vitkit import plain
from vitkit.cli import main
from vitkit.data.transforms import Preprocessing
from vitkit.evaluation.findings import Findings
from vitkit.models.variants import build
from vitkit.prediction.model import Model


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    torch.manual_seed(0)
    model = Model(
        build("ViT-Femto/2", 10, (8, 8)), list("0123456789"), Preprocessing.direct((8, 8))
    )
    folder = tmp_path_factory.mktemp("net") / "net"
    model.save(folder)
    return str(folder)


@pytest.fixture
def pages(monkeypatch):
    """Stands for the pages, which are tested by themselves: what they were given."""
    written = []

    def write_evaluation(page, findings, about, figures):
        written.append((page, findings, about))
        page.write_text("page")
        return page

    module = types.ModuleType("vitkit.reports.evaluation")
    module.write_evaluation = write_evaluation
    monkeypatch.setitem(sys.modules, "vitkit.reports.evaluation", module)
    return written


@pytest.mark.parametrize("out", ["found/page.html", "found"])
def test_a_report_is_written_with_the_findings_beside_it(net, tmp_path, pages, capsys, out):
    place = tmp_path / out
    words = ["evaluate", net, "digits", "--protocol", "few-shot", "--shots", "1,5", "--seeds", "2"]
    assert main([*words, "-o", str(place), "--json"]) == 0
    page = place if out.endswith(".html") else place / "report.html"
    lines = capsys.readouterr().out.splitlines()
    assert f"wrote {page}" in lines and json.loads(lines[-1])["report"] == str(page)
    [(written, findings, about)] = pages
    assert written == page and page.read_text() == "page"
    saved = plain.load(Findings, page.with_suffix(""))
    assert saved.metrics == findings.metrics and saved.tables == findings.tables
    assert about["protocol"] == "few-shot" and about["checkpoint"] == net
    # No option of another protocol.
    assert about["options"] == {"l2": 1024.0, "sweep_l2": False, "shots": (1, 5), "seeds": 2}


def test_tables_and_notes_are_printed_and_in_the_json(net, capsys):
    words = ["evaluate", net, "digits", "--protocol", "few-shot", "--shots", "1,500", "--json"]
    assert main(words) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert list(result["metrics"]) == ["1shot"]
    assert "Few-shot accuracy" in lines
    assert result["tables"][0]["header"][:2] == ["shots", "accuracy"]
    [note] = result["notes"]
    assert note in lines and note.startswith("500 images of each class are left out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--train", "digits"], "top-k learns nothing"),
        (["--protocol", "few-shot", "--shots", "1,x"], "shots"),
        (["--protocol", "few-shot", "--shots", "0"], "shots is (0,)"),
        (["--protocol", "knn", "--k", "0"], "k is 0"),
        (["--protocol", "knn", "--shots", "3"], "--shots is for --protocol few-shot, and knn"),
        (["--k", "3"], "--k is for --protocol knn, and top-k does not read it"),
        (["--protocol", "linear", "--sweep-l2"], "--sweep-l2 is for --protocol few-shot"),
        (["--protocol", "few-shot", "--sweep-l2", "--l2", "3"], "l2 is 3 and sweep_l2"),
        (["--protocol", "vtab", "--vtab-side", "32"], "add --vtab-method finetune"),
        (["--gpus", "0"], "--gpus is 0"),
    ],
)
def test_wrong_words_are_told_in_a_sentence(net, capsys, words, said):
    assert main(["evaluate", net, "digits", *words]) == 2
    assert said in capsys.readouterr().err
