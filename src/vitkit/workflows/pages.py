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
    path = Path(out).expanduser()
    if path.suffix.lower() == ".html":
        if path.is_dir():
            raise UsageError(f"-o {path}: is a folder; give the page another name")
        if path.exists() and not path.with_suffix(".npz").exists():
            raise UsageError(f"-o {path}: is there already, of something else; give another name")
        check_writable(path.parent)
        return path
    folder = run_folder(path, None)
    check_writable(folder)
    return folder / PAGE
