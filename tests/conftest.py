"""`--rounds N` for the long version of tests/faults, whose table is then written to the docs."""

import pytest

SHORT = 2  # rounds, with the other tests


def pytest_addoption(parser):
    parser.addoption("--rounds", type=int, default=None, help="of each fault; 50 is the long run")


@pytest.fixture(scope="session")
def rounds(request):
    return request.config.getoption("--rounds") or SHORT


@pytest.fixture(scope="session")
def long(request):
    """Whether this is the long version."""
    return request.config.getoption("--rounds") is not None


@pytest.fixture
def long_only(long):
    if not long:
        pytest.skip("in the long version, --rounds N")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Tests keep nothing in the cache of whoever runs them, nor take anything from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
