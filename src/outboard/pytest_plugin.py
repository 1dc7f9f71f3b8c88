"""For pytest: devices served to a real Linux in a virtual machine, in a test of three lines.

::

    @pytest.mark.guest
    def test_linux_finds_the_disk(guest):
        machine = guest(Nvme(open_storage("ram:64M")))
        assert "nvme0n1" in machine.run("cat /proc/partitions")

Installed with the package; pytest finds it by itself. Servers and virtual machines end with the test,
and the consoles are kept in its ``tmp_path``. A test marked ``guest`` is skipped on a machine that lacks
something, with the sentence that says what mends it, and fails there when ``CI=true``.
"""

import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from outboard.device import DeviceContract
from outboard.errors import SetupError
from outboard.server import Server
from outboard.testing.guest import Attach, Guest

Result = TypeVar("Result")
Serve = Callable[[DeviceContract], Server]
"""What the fixture `serve` is: a device in, its running server out."""

MakeGuest = Callable[..., Guest]
"""What the fixture `guest` is: ``guest(*devices, **options) -> Guest``, options as those of `Guest`."""

_NOT_RUN = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line("markers", "guest: boots a virtual machine")
    config.stash[_NOT_RUN] = {}


@pytest.fixture
def serve() -> Iterator[Serve]:
    """``serve(device)``: the device's `Server`, running in a thread; its ``path`` is the socket."""
    # Not tmp_path: a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="outboard-") as folder, ExitStack() as servers:
        count = 0

        def start(device: DeviceContract) -> Server:
            nonlocal count
            count += 1
            return servers.enter_context(Server(device, Path(folder, f"{count}.sock")).start())

        yield start


@pytest.fixture
def guest(serve: Serve, tmp_path: Path) -> Iterator[MakeGuest]:
    """``guest(*devices, **options)``: a running `Guest` that has the devices.

    A device is an object to serve, the path of a socket, or an `Attach`; the options are those of `Guest`.
    """
    with ExitStack() as guests:
        count = 0

        def start(*devices: DeviceContract | str | Path | Attach, **options: Any) -> Guest:
            nonlocal count
            count += 1
            attached = [_attach(device, serve) for device in devices]
            return guests.enter_context(Guest(attached, **{"logs": tmp_path / f"guest-{count}", **options}))

        yield start


def _attach(device: DeviceContract | str | Path | Attach, serve: Serve) -> Attach:
    if isinstance(device, Attach):
        return device
    if isinstance(device, str | Path):
        return Attach(device)
    path = serve(device).path
    assert path is not None
    return Attach(path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Result, Result]:
    """A fixture that could not get a machine skips the test, as the test itself would."""
    return (yield from _skip_without_a_machine(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Result, Result]:
    """Skip a test marked ``guest`` that cannot run here."""
    return (yield from _skip_without_a_machine(item))


def _skip_without_a_machine(item: pytest.Item) -> Generator[None, Result, Result]:
    try:
        return (yield)
    except SetupError as error:
        if item.get_closest_marker("guest") is None or os.environ.get("CI") == "true":
            raise
        item.config.stash[_NOT_RUN][item.nodeid] = error.sentence
        pytest.skip(error.sentence)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which guest tests did not run, and what mends it: a skip of them must not go unseen."""
    if not_run := config.stash[_NOT_RUN]:
        terminalreporter.section("guest tests that this machine cannot run", yellow=True)
        for sentence in dict.fromkeys(not_run.values()):
            names = [name for name, reason in not_run.items() if reason == sentence]
            terminalreporter.line(f"{', '.join(names)}:\n  {sentence}")
