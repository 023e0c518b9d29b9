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
def table():
    """Called at the end of a test that has held: what was done, how often, what came of it."""
    began = time.monotonic()

    def row(fault, rounds, outcome):
        ROWS.append((fault, rounds, outcome, time.monotonic() - began))

    return row


def pytest_sessionfinish(session, exitstatus):
    """Only a whole long run that passed is written down."""
    rounds = session.config.getoption("--rounds", None)
    if not rounds or exitstatus or session.config.option.keyword:
        return
    lines = [
        f"`pytest -m faults --rounds {rounds}`, {date.today()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} "
        "cores:\n\n",
        "| fault | rounds, all passed | outcome | seconds |\n|---|---|---|---|\n",
        *(f"| {fault} | {n:,} | {outcome} | {s:,.0f} |\n" for fault, n, outcome, s in ROWS),
    ]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + "".join(lines) + END + after, encoding="utf-8")
