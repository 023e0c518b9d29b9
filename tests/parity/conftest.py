"""Fixtures of the parity tests."""

import shutil

import pytest


@pytest.fixture
def room(tmp_path):
    """A folder that is gone after the test: nets of real size are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)
