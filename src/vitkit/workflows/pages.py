"""Where a page and what belongs to it are written."""

from __future__ import annotations

from pathlib import Path

from vitkit.errors import UsageError
from vitkit.workflows.run_folder import check_writable, run_folder

PAGE = "report.html"


def page_at(out: str | Path) -> Path:
    """FILE.html, or any other name for a folder, numbered where it is in use, for report.html.

    Beside the page NAME.json and NAME.npz are written; a page that has them is written over.
    UsageError for a page that has not, which is another one's, as a run's.
    """
    path = plain_path(out, "-o")
    if path.suffix.lower() == ".html":
        check_page(path)
        for kind in (".json", ".npz"):
            if path.with_suffix(kind).is_dir():
                raise UsageError(f"-o {path}: {path.with_suffix(kind)} is a folder; move it away")
        if path.exists() and not path.with_suffix(".npz").exists():
            raise UsageError(f"-o {path}: is there already, of something else; give another name")
        return path
    folder = run_folder(path, None)
    check_writable(folder)
    return folder / PAGE


def check_page(page: Path) -> None:
    """UsageError or VitkitError where the page cannot be written; the folder it is in is made."""
    if page.is_dir():
        raise UsageError(f"-o {page}: is a folder; give the page another name")
    try:
        page.with_name(f".{page.name}.12345678.tmp").exists()  # as it is called while it is written
    except OSError as error:
        raise UsageError(f"-o {page}: {error.strerror}; give the page another name") from error
    check_writable(page.parent)


def figures_at(figures: str | None) -> Path | None:
    """The folder of --figures, made where it is absent. UsageError and VitkitError as above."""
    if figures is None:
        return None
    folder = plain_path(figures, "--figures")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--figures {folder}: is a file; give a folder")
    check_writable(folder, "--figures")
    return folder


def plain_path(text: str | Path, option: str) -> Path:
    """UsageError for what no path can be."""
    if "\0" in str(text):
        raise UsageError(f"{option} {text}: holds a NUL; give another name")
    return Path(text).expanduser()
