"""`vitkit compare RUN RUN...`: runs and evaluations side by side."""

from __future__ import annotations

from typing import Any

from vitkit.errors import UsageError
from vitkit.terminal import print_columns, printable
from vitkit.words import Compare, parse, require


def compare(argv: list[str]) -> Any:
    words = parse(Compare(), "compare", argv)
    require(words.runs, "compare", "RUN RUN..., run directories or the .json of evaluations")
    if words.out is not None and not words.out.endswith((".html", ".htm")):
        raise UsageError(f"{words.out}: the page is HTML; end its name with .html")
    from vitkit.reports.comparison import metric_names
    from vitkit.reports.evaluation import shown
    from vitkit.workflows.compare import compare

    found = compare(words.runs, words.out)
    metrics = found["metrics"]
    names = metric_names(metrics.values())
    print_columns(
        ("", *names),
        [(run, *(shown(name, one[name]) if name in one else "" for name in names))
         for run, one in metrics.items()],
        right=range(1, len(names) + 1),
    )  # fmt: skip
    if found["speed"]:
        print()
        print_speed(found["speed"])
    if found["differences"]:
        print()
        print_columns(
            ("config, where it differs", *found["speed"]),
            [(name, *values) for name, values in found["differences"].items()],
        )
    for note in found["notes"]:
        print(printable(f"note: {note}"))
    again = f"Next: vitkit compare {' '.join(words.runs)} -o compare.html"
    print(printable(f"wrote {words.out}" if words.out else again))
    return words, found


def print_speed(speed: dict[str, dict[str, Any]]) -> None:
    """A row for each run."""
    columns = ("device", "precision", "steps", "best_step", "images_per_second", "memory_bytes")

    def cell(name: str, value: Any) -> str:
        if value is None:
            return ""
        if name == "memory_bytes":
            return f"{value / 2**30:.2f} GiB"
        return value if isinstance(value, str) else f"{value:,.0f}"

    print_columns(
        ("", "device", "precision", "steps", "best step", "images/s", "memory"),
        [(run, *(cell(name, row.get(name)) for name in columns)) for run, row in speed.items()],
        right=(3, 4, 5, 6),
    )
