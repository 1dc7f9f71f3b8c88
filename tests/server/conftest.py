"""What the server's tests share: a served device, and a raw client of it."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outboard import DeviceContract, Server
from tests.raw import RawPeer
from tests.server.gadgets import Gadget

Connect = Callable[[Server], RawPeer]
Serve = Callable[[DeviceContract], Server]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="ob", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def serve(folder: Path) -> Iterator[Serve]:
    """Serves a device in a thread of its own, until the test ends."""
    servers: list[Server] = []

    def start(device: DeviceContract) -> Server:
        servers.append(Server(device, folder / f"{len(servers)}.sock").start())
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connects a raw client that has agreed on a version."""
    peers: list[RawPeer] = []

    def open_one(server: Server) -> RawPeer:
        assert server.path is not None
        peers.append(RawPeer.connect(server.path))
        peers[-1].negotiate()
        return peers[-1]

    yield open_one
    for peer in peers:
        peer.close()


@pytest.fixture
def gadget() -> Gadget:
    return Gadget()


@pytest.fixture
def client(gadget: Gadget, serve: Serve, connect: Connect) -> RawPeer:
    """A raw client of `gadget`, version agreed."""
    return connect(serve(gadget))


@pytest.fixture
def eventfds() -> Iterator[Callable[[int], list[int]]]:
    """Makes eventfds that are closed when the test ends."""
    made: list[int] = []

    def make(count: int) -> list[int]:
        made.extend(os.eventfd(0, os.EFD_NONBLOCK) for _ in range(count))
        return made[-count:]

    yield make
    for fd in made:
        os.close(fd)
