"""Services in this process, described by documents as a file would hold them."""

import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outboard.operation import ControlClient, Running
from outboard.operation.configuration import configuration_of

Run = Callable[..., Running]
Ask = Callable[..., Any]


def controller(socket: Path, **options: Any) -> dict[str, Any]:
    """A controller that needs nothing compiled."""
    return {"socket": str(socket), "pollers": 0, **options}


def document(
    folder: Path, *namespaces: dict[str, Any], sockets: tuple[str, ...] = ("a", "b")
) -> dict[str, Any]:
    """A subsystem of these namespaces with two controllers, and a control socket."""
    subsystem = {
        "serial": "LAB-7",
        "namespace": list(namespaces) or [{"backend": "ram:1M"}, {"backend": "null:1G", "block_size": 4096}],
        "controller": [controller(folder / f"{name}.sock") for name in "ab"],
    }
    return {"subsystem": {"main": subsystem}, "control": {"socket": str(folder / "control.sock")}}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """``run()`` or ``run(document)``: a service at work; in the end nothing is left of it."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    started: list[Running] = []

    def start(described: dict[str, Any] | None = None) -> Running:
        described = document(tmp_path) if described is None else described
        started.append(Running(configuration_of(described, "test.toml"), "test.toml"))
        return started[-1].start()

    yield start
    for running in started:
        running.close()
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before, "something is left behind"
    assert not list(tmp_path.glob("*.sock"))


@pytest.fixture
def ask(run: Run, tmp_path: Path) -> Iterator[Ask]:
    """``ask(method, **params)`` of a service with two controllers of one subsystem."""
    run()
    with ControlClient(tmp_path / "control.sock") as client:
        yield client.call
