"""Thousands of damaged images through every way of decoding: no process dies, each is counted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

PROGRAM = Path(__file__).with_name("mutated_images.py")


def test_no_damaged_image_ends_the_process_and_each_is_counted(tmp_path, long, table):
    number = 10_000 if long else 400
    command = [sys.executable, str(PROGRAM), str(number), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("images") == number
    bad = found.pop("bad")
    assert 0.3 * number < bad < 0.9 * number
    assert all(found.values()), found
    table(
        "damaged images (bits, pieces, sizes, bombs; 15 kinds of file) through every way of "
        "decoding", number, f"{bad:,} bad ones, each counted each time; no process died",
    )  # fmt: skip
