"""What the proxy's tests share: a proxy between two ends made of bytes."""

import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from outboard.trace.proxy import Proxy
from tests.raw import RawPeer

Ends = Callable[..., tuple[RawPeer, RawPeer]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="ob", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def ends(folder: Path) -> Iterator[Ends]:
    """``ends(faults=[...])``: a proxy between a raw client and a raw server, both connected."""
    with ExitStack() as stack:

        def connect(**options: Any) -> tuple[RawPeer, RawPeer]:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(folder / "server.sock"))
                listener.listen()
                proxy = Proxy(folder / "client.sock", folder / "server.sock", **options)
                stack.enter_context(proxy).start()
                client = stack.enter_context(RawPeer.connect(proxy.path))
                listener.settimeout(10)
                server = stack.enter_context(RawPeer(listener.accept()[0]))
            return client, server

        yield connect
