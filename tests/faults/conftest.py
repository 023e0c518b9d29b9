"""The table of what was done to runs, which the long version writes into docs/reliability.md."""

import platform
import time
from datetime import date
from pathlib import Path

import pytest
import torch
from runs import Run

ROWS = []
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
        ROWS.append((fault, rounds, outcome, time.monotonic() - began))
        if request.config.getoption("--rounds"):
            write(request.config.getoption("--rounds"), request.session.testsfailed)

    return row


def write(rounds, failed):
    """The page with the rows so far; a test that failed has none, and is told."""
    lines = [
        f"`pytest -m faults --rounds {rounds}`, {date.today()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} "
        f"cores{f', {failed} tests FAILED' if failed else ''}:\n\n",
        "| fault | rounds, all passed | outcome | seconds |\n|---|---|---|---|\n",
        *(f"| {fault} | {n:,} | {outcome} | {s:,.0f} |\n" for fault, n, outcome, s in ROWS),
    ]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + "".join(lines) + END + after, encoding="utf-8")


def pytest_sessionfinish(session, exitstatus):
    rounds = session.config.getoption("--rounds", None)
    if rounds and ROWS:
        write(rounds, session.testsfailed)
