"""tshark, which the tests of the dissector share."""

import os

import pytest

from outboard.errors import SetupError
from outboard.testing.tshark import Tshark, find_tshark


@pytest.fixture(scope="session")
def tshark(tmp_path_factory: pytest.TempPathFactory) -> Tshark:
    """A tshark with our dissector. Where none can be had tests are skipped; with ``CI=true`` they fail."""
    try:
        return find_tshark(tmp_path_factory.mktemp("tshark"))
    except SetupError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no tshark: {error.sentence}")
