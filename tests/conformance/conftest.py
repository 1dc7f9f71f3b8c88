"""What the suite's tests share: a directory whose path is short enough for a socket."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ob", dir="/tmp") as name:
        yield Path(name)
