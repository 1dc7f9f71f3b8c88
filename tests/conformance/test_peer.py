"""The suite's own end of a connection: what a hostile peer cannot do to it."""

import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from outboard.conformance import wire
from outboard.conformance.peer import MOST_MESSAGES, Closed, Peer, Silence
from outboard.conformance.points import Wrong
from tests import raw
from tests.raw import open_descriptors


@pytest.fixture
def ends() -> Iterator[tuple[Peer, socket.socket]]:
    ours, theirs = socket.socketpair()
    peer = Peer(ours, 0.3)
    with theirs:
        yield peer, theirs
        peer.close()


def test_a_peer_that_never_stops_talking_is_wrong(ends: tuple[Peer, socket.socket]) -> None:
    peer, theirs = ends
    chatter = raw.message(raw.DMA_READ, bytes(16), flags=raw.NO_REPLY) * 1000

    def talk() -> None:
        try:
            while True:
                theirs.sendall(chatter)
        except OSError:
            pass

    thread = threading.Thread(target=talk)
    thread.start()
    with pytest.raises(Wrong, match=f"more than {MOST_MESSAGES} messages"):
        peer.ask(wire.device_info())
    peer.close()
    thread.join(10)


@pytest.mark.parametrize("size", [0, 15, 1 << 30])
def test_a_size_that_cannot_be_is_a_stream_out_of_step(ends: tuple[Peer, socket.socket], size: int) -> None:
    peer, theirs = ends
    theirs.sendall(raw.message(raw.DEVICE_INFO, size=size, flags=raw.REPLY))
    with pytest.raises(Wrong, match="out of step"):
        peer.receive()


def test_silence_and_an_end_are_told_apart(ends: tuple[Peer, socket.socket]) -> None:
    peer, theirs = ends
    with pytest.raises(Silence, match=r"nothing for 0\.3 seconds"):
        peer.receive()
    theirs.sendall(b"half a header"[:9])
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(Closed):
        peer.receive()


def test_descriptors_of_a_broken_message_are_closed(ends: tuple[Peer, socket.socket]) -> None:
    peer, theirs = ends
    before = open_descriptors()
    reader, writer = os.pipe()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=2i", reader, writer))]
    theirs.sendmsg([raw.message(raw.DEVICE_INFO, size=100)], rights)
    os.close(reader)
    os.close(writer)
    with pytest.raises(Silence):
        peer.receive()
    assert open_descriptors() == before


def test_what_arrives_while_sending_is_kept_for_later(ends: tuple[Peer, socket.socket]) -> None:
    peer, theirs = ends
    theirs.sendall(raw.message(raw.DMA_READ, bytes(16), id=9))

    def drain() -> None:
        theirs.recv(1 << 22, socket.MSG_WAITALL)

    thread = threading.Timer(0.05, drain)
    thread.start()
    peer.send(bytes(1 << 22))
    thread.join(10)
    assert peer.receive().id == 9
