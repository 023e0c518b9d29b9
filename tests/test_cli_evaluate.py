"""`vitkit evaluate` on the command line: what it takes, prints and writes."""

import json
import shutil
import sys
import types

import pytest
import torch
from PIL import Image

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

    def write_evaluation(page, findings, about, figures=None):
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
        (["--gpus", "99999999"], "at most 4096"),
        (["--protocol", "few-shot", "--seeds", "1001"], "seeds is 1001"),
        (["--protocol", "few-shot", "--l2", "inf"], "l2 is inf; it must be above 0, and finite"),
        (["--protocol", "corruptions", "--seed=-1"], "seed is -1"),
        (["--protocol", "corruptions", "--seed", str(2**63)], "2**63 - 1"),
        (["--protocol", "corruptions", "--severities", "9" * 5000], "from 1 to 5"),
        (["--protocol", "translations", "--shifts", "9" * 5000], "--shifts is '999"),
    ],
)
def test_wrong_words_are_told_in_a_sentence(net, capsys, words, said):
    assert main(["evaluate", net, "digits", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_patch_of_5000_digits_is_no_query(net, tmp_path, capsys):
    words = ["inspect", net, "--query", f"{'9' * 5000},0", "-o", str(tmp_path / "page.html")]
    assert main(words) == 2
    assert "expected class, mean or ROW,COLUMN" in capsys.readouterr().err


@pytest.fixture
def unread(monkeypatch):
    """Fails where data are evaluated or a net is opened after all."""
    for place in ("vitkit.workflows.evaluate.found", "vitkit.workflows.inspect.inspect"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("the work began"))


def make(folder, *names):
    for name in names:
        place = folder / name
        if name.endswith("/"):
            place.mkdir(parents=True)
        else:
            place.write_text("a file")


@pytest.mark.parametrize("verb", [["evaluate", "digits"], ["inspect"]])
@pytest.mark.parametrize(
    ("there", "words", "said"),
    [
        ("a.json/", ["-o", "a.html"], "a.json is a folder"),
        ("a.npz/", ["-o", "a.html"], "a.npz is a folder"),
        ("a.html/", ["-o", "a.html"], "is a folder"),
        ("file", ["-o", "a.html", "--figures", "file"], "--figures file: is a file"),
        ("file", ["-o", "a.html", "--figures", "file/in/it"], "choose another --figures"),
        ("file", ["-o", "file/a.html"], "file: cannot be written"),
        ("file", ["-o", "a" * 250 + ".html"], "File name too long"),
        ("file", ["-o", "a\0b.html"], "holds a NUL"),
        ("file", ["-o", "a.html", "--figures", "a\0b"], "holds a NUL"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_work(
    net, tmp_path, monkeypatch, capsys, unread, verb, there, words, said
):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, there)
    assert main([verb[0], net, *verb[1:], *words]) in (1, 2)
    assert said in capsys.readouterr().err


def test_a_checkpoint_with_a_line_break_in_its_name_is_printed_in_one_line(net, tmp_path, capsys):
    other = tmp_path / "a\nb"
    shutil.copytree(net, other)
    assert main(["evaluate", str(other), "digits"]) == 0
    assert main(["inspect", str(other), "-o", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert out.count(r"a\nb") == 2 and "\nb" not in out


def test_class_names_with_line_breaks_leave_an_error_one_sentence(net, tmp_path, capsys):
    for name in ("one\ntwo", "three"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    assert main(["evaluate", net, str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert r"one\ntwo" in error and len(error.splitlines()) == 1
