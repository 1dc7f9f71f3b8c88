"""Controllers in this process, for each way of ringing doorbells, and both lanes of the loop."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from outboard.client import Client
from outboard.device import DeviceContract
from outboard.drivers.nvme_measure import Doorbells
from outboard.native.jit import available
from outboard.server import Server

Connect = Callable[[DeviceContract], Client]


@pytest.fixture(params=["plain", "native"])
def native(request: pytest.FixtureRequest) -> bool:
    """Whether the loop is compiled."""
    if request.param == "native" and not available():
        if os.environ.get("CI"):
            pytest.fail("Numba is not installed: pip install 'outboard[fast]'")
        pytest.skip("Numba is not installed: pip install 'outboard[fast]'")
    return bool(request.param == "native")


@pytest.fixture(params=[Doorbells.MAPPED, Doorbells.SHADOW, Doorbells.TRAPPED])
def doorbells(request: pytest.FixtureRequest) -> Doorbells:
    """How doorbells are rung."""
    return Doorbells(request.param)


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    """``connect(device)``: a client of the device, which is served until the test's end."""
    with ExitStack() as stack:

        def start(device: DeviceContract) -> Client:
            stack.enter_context(Server(device, tmp_path / "device.sock").start())
            return stack.enter_context(Client(tmp_path / "device.sock"))

        yield start
