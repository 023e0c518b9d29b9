"""Where a page is written."""

import pytest

from vitkit.errors import UsageError, VitkitError
from vitkit.workflows.pages import page_at


def test_a_folder_is_made_for_a_page(tmp_path):
    page = page_at(tmp_path / "one" / "two")
    assert page == tmp_path / "one" / "two" / "report.html"
    assert page.parent.is_dir() and list(page.parent.iterdir()) == []


def test_a_folder_that_is_in_use_is_left_alone_and_a_numbered_one_taken(tmp_path):
    for number in ("", "-2", "-3"):
        page = page_at(tmp_path / "found")
        assert page == tmp_path / f"found{number}" / "report.html"
        page.write_text("page")


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "found").mkdir()
    assert page_at(tmp_path / "found").parent == tmp_path / "found"


@pytest.mark.parametrize("name", ["page.html", "PAGE.HTML", "a.b.html"])
def test_a_file_of_html_is_the_page_itself_and_written_over(tmp_path, name):
    file = tmp_path / "new" / name
    assert page_at(file) == file and file.parent.is_dir() and not file.exists()
    file.write_text("page")
    file.with_suffix(".npz").write_text("its numbers")
    assert page_at(str(file)) == file and file.read_text() == "page"
    assert len(list(file.parent.iterdir())) == 2


def test_a_page_of_something_else_is_not_written_over(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("of a run")
    with pytest.raises(UsageError, match=r"report\.html: is there already, of something else"):
        page_at(page)
    assert page.read_text() == "of a run"


def test_other_names_with_a_dot_are_folders(tmp_path):
    assert page_at(tmp_path / "vit-2.1") == tmp_path / "vit-2.1" / "report.html"


def test_the_home_folder_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert page_at("~/found") == tmp_path / "found" / "report.html"
    assert page_at("~/page.html") == tmp_path / "page.html"


def test_a_folder_that_is_called_html_is_no_page(tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(UsageError, match=r"page\.html: is a folder; give the page another name"):
        page_at(tmp_path / "page.html")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "found").write_text("a file")
    with pytest.raises(UsageError, match="found: is a file"):
        page_at(tmp_path / "found")
    assert (tmp_path / "found").read_text() == "a file"


@pytest.mark.parametrize("out", ["found", "page.html"])
def test_where_nothing_can_be_written_is_told_before_the_work(tmp_path, out):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(VitkitError, match="cannot be written"):
        page_at(tmp_path / "file" / out)
