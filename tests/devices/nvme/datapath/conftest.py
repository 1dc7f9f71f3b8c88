import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outboard.native import uring

MakeDisk = Callable[[int], Path]


@pytest.fixture
def files() -> None:
    """Files are served by io_uring here; where there is none, CI fails."""
    missing = uring.available()
    if missing and os.environ.get("CI"):
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    """Whatever a test starts has ended with it."""
    import threading

    before = threading.active_count()
    yield
    assert threading.active_count() == before
