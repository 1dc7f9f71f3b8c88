"""A boot that has just been recorded replays to fresh devices, on a socket and in memory."""

from pathlib import Path

import pytest

from outboard import Server
from outboard.client.transport import SocketTransport
from outboard.testing import replay
from outboard.trace.replay import Player, connections
from tests.guest.boots import edu, nvme, record

pytestmark = pytest.mark.guest


def test_a_boot_through_the_proxy_replays_on_a_socket_and_in_memory(tmp_path: Path) -> None:
    messages = record("linux-edu", tmp_path)
    assert len(messages) > 200
    assert replay(messages, edu()) == []
    with Server(edu(), tmp_path / "fresh.sock").start():
        [connection] = connections(messages)
        transport = SocketTransport.connect(tmp_path / "fresh.sock")
        assert Player(connection, transport).play() == []


def test_a_boot_from_a_disk_whose_memory_went_by_messages_replays(tmp_path: Path) -> None:
    messages = record("linux-nvme", tmp_path)
    assert any(b"RECORDED" in captured.data for captured in messages)
    assert replay(messages, nvme(), ignore_dma=True) == []
