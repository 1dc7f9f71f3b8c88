"""Fixtures of the tests of interrupts."""

import gc
import os
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.pci.interrupting import Client, Interrupting, open_descriptors


@pytest.fixture
def device() -> Iterator[Interrupting]:
    """A device; whatever the test does, no descriptor may be left once the client is gone."""
    gc.collect()  # devices of earlier tests close theirs when they go
    before = open_descriptors()
    device = Interrupting()
    yield device
    device.disconnected()
    assert open_descriptors() == before


@pytest.fixture
def client(device: Interrupting) -> Iterator[Client]:
    client = Client()
    yield client
    for fd in client.fds:
        with suppress(OSError):
            os.close(fd)
