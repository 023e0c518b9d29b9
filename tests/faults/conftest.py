"""The table of what was done to runs, which the long version writes into docs/reliability.md."""

import platform
import time
from datetime import date
from pathlib import Path

import pytest
import torch
from runs import Run

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->\n", "<!-- faults: end -->\n"


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The directory of a run that nothing happened to."""
    return Run(tmp_path_factory.mktemp("undisturbed") / "run").done().out


@pytest.fixture
def table(request):
    """Called at the end of a test that has held: what was done, how often, what came of it."""
    began = time.monotonic()

    def row(fault, rounds, outcome):
        if request.config.getoption("--rounds"):
            seconds = time.monotonic() - began
            write(f"| {fault} |", f" {rounds:,} | {outcome} | {seconds:,.0f} |\n")

    return row


def write(fault, rest):
    """Put a row into the page, in place of an earlier one; a test that fails has none."""
    before, _, after = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    table, _, after = after.partition(END)
    lines = [line for line in table.splitlines(keepends=True) if line.startswith("| ")]
    rows = dict(line.split(" |", 1) for line in lines[1:])
    rows[fault.removesuffix(" |")] = rest
    head = (
        f"Newest run {date.today()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} cores:\n\n"
        "| fault | rounds, all passed | outcome | seconds |\n|---|---|---|---|\n"
    )
    body = "".join(f"{name} |{line}" for name, line in rows.items())
    PAGE.write_text(before + BEGIN + head + body + END + after, encoding="utf-8")
