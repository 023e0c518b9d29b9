"""`vitkit data check`, `stats` and `index`: a data set looked through, described, and listed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vitkit.data import duplicates
from vitkit.data.audit import (
    class_counts,
    findings,
    look_through,
)
from vitkit.data.checks import DataError
from vitkit.data.decode import ImageError
from vitkit.data.indexes.index import build_index
from vitkit.data.opening import open_data
from vitkit.data.source import Source, strata
from vitkit.files import write_whole
from vitkit.reports.data import draw_classes
from vitkit.terminal import printable
from vitkit.training.log import Unbreakable
from vitkit.workflows.run_folder import check_writable, run_folder

SHOWN_CLASSES, SHOWN_IMAGES = 40, 8
NAMED = 20  # of each finding, in JSON; quarantine.txt has all


def check(
    data: Any, *, out: str | Path = "runs/data-check", threads: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Read and decode every image of DATA; writes check.json and quarantine.txt to `out`.

    quarantine.txt names what training should leave out (`--data.quarantine`): images that cannot be
    used, further copies of the same file, and all copies of a file under two labels. Returns what
    check.json holds. Raises DataError.
    """
    splits = open_data(data)
    folder = output_folder(out)
    began = time.perf_counter()
    with progress("images", quiet) as shown:
        seen = look_through(splits.parts().items(), threads=threads, progress=shown)
    seconds = time.perf_counter() - began
    found = findings(seen)
    kinds = [kind for kind, _ in seen.problems.values()]
    result = {
        "data": splits.name,
        "images": {name: len(source) for name, source in seen.parts},
        "bad": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "bad_images": [
            {"image": seen.name(index), "kind": kind, "reason": reason}
            for index, (kind, reason) in list(seen.problems.items())[:NAMED]
        ],
        "information": dict(seen.notes),
        "examples": seen.examples,
        "formats": dict(seen.formats),
        "empty_classes": found.empty,
        "missing_classes": found.missing,
        "small_classes": found.small,
        "copies": found.copies,
        "leaks": found.leaks,
        "two_labels": found.two_labels[:NAMED],
        "under_two_labels": len(found.two_labels),
        "quarantined": len(found.quarantine),
        "out": str(folder),
        "quarantine": str(folder / "quarantine.txt"),
        "seconds": round(seconds, 2),
        "images_per_second": round(len(seen) / max(seconds, 1e-9), 1),
    }
    write_quarantine(folder / "quarantine.txt", found.quarantine)
    write_whole(folder / "check.json", json.dumps(result, indent=2) + "\n")
    return result


def write_quarantine(path: Path, reasons: dict[str, str]) -> None:
    lines = (f"{key}\t{printable(reason)}\n" for key, reason in reasons.items())
    head = "# Images to leave out: --data.quarantine THIS_FILE. A key a line, a tab, the reason.\n"
    write_whole(path, (head + "".join(lines)).encode("utf-8", "surrogateescape"))


def stats(
    data: Any, *, out: str | Path | None = None, threads: int | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Mean and standard deviation of the channels (0 to 1, over all pixels), sizes, classes.

    With `out`, stats.json and classes.png, a sheet of a few images a class, are written there.
    Images that cannot be used are counted and left out.
    """
    splits = open_data(data)
    folder = None if out is None else output_folder(out)
    with progress("images", quiet) as shown:
        seen = look_through(splits.parts().items(), threads=threads, moments=True, progress=shown)
    usable = seen.usable
    if not usable.any():
        first = next(iter(seen.problems.values()))
        raise DataError(f"{splits.name}: none of its {len(seen)} images can be used: {first[1]}")
    mean = seen.sums[0] / seen.pixels
    std = np.sqrt(np.maximum(seen.sums[1] / seen.pixels - mean**2, 0))
    heights, widths = seen.heights[usable].astype(float), seen.widths[usable].astype(float)
    counts = class_counts(seen.parts)
    result: dict[str, Any] = {
        "data": splits.name,
        "images": {name: len(source) for name, source in seen.parts},
        "unusable": len(seen.problems),
        "mean": (mean / 255).round(4).tolist(),
        "std": (std / 255).round(4).tolist(),
        "shorter_side": spread(np.minimum(heights, widths)),
        "longer_side": spread(np.maximum(heights, widths)),
        "megapixels": spread(heights * widths / 1e6),
        "aspect": spread(widths / heights),
        "bytes": spread(seen.bytes[usable]),
        "total_bytes": int(seen.bytes.sum()),
        "formats": dict(seen.formats),
        "information": dict(seen.notes),
        "classes": {split: balance(of) for split, of in counts.items()},
        "counts": counts,
    }
    if folder is not None:
        draw_classes(folder / "classes.png", [*examples_of(splits.train)])
        result |= {"out": str(folder), "sheet": str(folder / "classes.png")}
        write_whole(folder / "stats.json", json.dumps(result, indent=2) + "\n")
    return result


def spread(values: np.ndarray) -> dict[str, float]:
    """The least, the median and the most."""
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return {"min": round(float(low), 4), "median": round(float(middle), 4),
            "max": round(float(high), 4)}  # fmt: skip


def balance(counts: dict[str, int]) -> dict[str, Any]:
    smallest, largest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    return {"number": len(counts), "smallest": [smallest, counts[smallest]],
            "largest": [largest, counts[largest]]}  # fmt: skip


def examples_of(source: Source) -> Iterator[tuple[str, list[np.ndarray]]]:
    """A few images of each class, or of as many classes as a sheet holds, evenly chosen."""
    classes = strata(source)
    chosen = np.linspace(0, len(source.class_names) - 1, SHOWN_CLASSES).round().astype(int)
    for number in np.unique(chosen).tolist():
        members = np.flatnonzero(classes == number)
        places = np.linspace(0, len(members) - 1, min(SHOWN_IMAGES, len(members))).round()
        images = (picture(source, int(index)) for index in members[places.astype(int)])
        yield source.class_names[number], [image for image in images if image is not None]


def picture(source: Source, index: int) -> np.ndarray | None:
    try:
        return source.image(index).permute(1, 2, 0).numpy()
    except (ImageError, OSError):
        return None


def index(data: Any, out: str | Path, *, hash: bool = False) -> dict[str, Any]:
    """Write an index of DATA to the folder `out`; it is DATA itself, and opens at once."""
    path = build_index(data, out, hash)
    splits = open_data(path)
    return {
        "data": str(path),
        "images": {name: len(source) for name, source in splits.parts().items()},
        "classes": len(splits.train.class_names),
        "out": str(path),
    }


def output_folder(out: str | Path) -> Path:
    """A folder to write to; a numbered one where it is in use."""
    folder = run_folder(Path(out).expanduser(), None)
    check_writable(folder)
    return folder


@contextmanager
def progress(what: str, quiet: bool) -> Iterator[duplicates.Progress]:
    """A bar on standard error, where that is a terminal."""
    console = Unbreakable(stderr=True, quiet=quiet)
    bar = Progress(
        TextColumn(f"{what} {{task.completed:,.0f}}/{{task.total:,.0f}}"), BarColumn(30),
        TimeRemainingColumn(), console=console, transient=True,
        disable=quiet or not console.is_terminal or not sys.stderr.isatty(),
    )  # fmt: skip
    task = bar.add_task("", total=1)
    with bar:
        yield lambda done, total: bar.update(task, completed=done, total=total)
