"""Servers that dribble, stop half way, ask without end, or vanish: a client is done in its time."""

import errno
import os
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from outboard import Client
from outboard.client.accessors import MAX_AREAS, MappedRegion
from outboard.client.doorbells import _Descriptors
from outboard.errors import ConnectionLost, OutboardError, PeerTimeout, RemoteProtocolError
from outboard.protocol.messages import DmaUnmap, IrqIndex
from tests import raw
from tests.client.conftest import Stage, answer, greet, serve_plainly, wait_for_end
from tests.raw import RawPeer


@pytest.fixture
def stray() -> Iterator[int]:
    """A descriptor for a server to send; what it becomes in the client is counted."""
    fd = raw.memory_file(0x4000)
    yield fd
    os.close(fd)


def test_a_server_that_dribbles_its_reply_is_given_up_in_time(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer)
        reply = raw.reply(peer.receive(), bytes(1 << 16))
        try:
            for byte in reply:
                peer.send(bytes([byte]))
                time.sleep(0.005)
        except OSError:
            pass

    with Client(play(script), timeout=0.1) as client:
        started = time.monotonic()
        with pytest.raises(PeerTimeout, match="DeviceReset within"):
            client.reset()
        assert time.monotonic() - started < 2


def test_a_server_that_takes_a_message_byte_by_byte_is_given_up_in_time(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer)
        for _ in range(9):
            answer(peer, peer.receive(), b"")
        try:
            while peer.socket.recv(4096):
                time.sleep(0.02)
        except OSError:
            pass

    with Client(play(script), timeout=0.1) as client:
        region = client.region(0)
        started = time.monotonic()
        with pytest.raises(PeerTimeout, match="has not taken the 1048608 bytes"):
            region.write(0, bytes(1 << 20))
        assert time.monotonic() - started < 2
        with pytest.raises(ConnectionLost):
            client.reset()


@pytest.mark.parametrize("use", [lambda client: client.reset(), lambda client: client.serve_dma(1)])
def test_a_server_that_asks_without_end_is_given_up_in_time(
    play: Stage, use: Callable[[Client], None]
) -> None:
    ask = raw.message(raw.DMA_READ, struct.pack("=QQ", 0x2000_0000, 1 << 19))

    def script(peer: RawPeer) -> None:
        greet(peer)
        answer(peer, peer.receive(), b"")
        try:
            while True:
                peer.send(ask * 4000)
                for _ in range(4000):
                    peer.receive()
        except (EOFError, OSError):
            pass

    with Client(play(script), timeout=0.1) as client:
        client.memory(1 << 19, 0x2000_0000)
        started = time.monotonic()
        with pytest.raises(PeerTimeout):
            use(client)
        assert time.monotonic() - started < 5
        with pytest.raises(ConnectionLost):
            client.reset()


def serve_for_ever(client: Client) -> None:
    while True:
        client.serve_dma(5)


USES: dict[str, Callable[[Client], object]] = {
    "reset": lambda client: client.reset(),
    "map": lambda client: client.dma_map(0, 4096),
    "unmap": lambda client: client.dma_unmap(0, 4096),
    "irq info": lambda client: client.irq_count(IrqIndex.MSIX),
    "set irqs": lambda client: client.disable_interrupts(IrqIndex.MSIX),
    "region info": lambda client: client.region_info(0),
    "read": lambda client: client._read(0, 0, 4),
    "write": lambda client: client._write(0, 0, b"abcd"),
    "serve": serve_for_ever,
}


@pytest.mark.parametrize("length", [1, 15, 16, 17])
@pytest.mark.parametrize("use", USES)
def test_a_server_that_vanishes_inside_any_reply_leaves_no_descriptor(
    play: Stage, stray: int, use: str, length: int
) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer)
        if use == "serve":
            reply = raw.message(raw.DMA_READ, bytes(16))
        else:
            command = peer.receive()
            reply = raw.reply(command, bytes(64))
        peer.send(reply[:length], [stray] * 3)

    path = play(script)
    before = raw.open_descriptors()
    with Client(path) as client, pytest.raises(RemoteProtocolError, match="middle of a message"):
        USES[use](client)
    play.end()
    assert raw.open_descriptors() == before - 1  # the listener


def test_descriptors_of_many_replies_are_not_held_until_the_last(play: Stage, stray: int) -> None:
    """Replies that may have none lose them at once, although the others are still awaited."""
    held: list[int] = []

    def script(peer: RawPeer) -> None:
        greet(peer)
        commands = [peer.receive() for _ in range(64)]
        before = raw.open_descriptors()
        for command in commands[:-1]:
            peer.send(raw.reply(command, command.payload[:24]), [stray] * 100)
        deadline = time.monotonic() + raw.DEADLINE
        while raw.open_descriptors() > before + 200 and time.monotonic() < deadline:
            pass
        held.append(raw.open_descriptors() - before)
        peer.send(raw.reply(commands[-1], commands[-1].payload[:24]), [stray] * 100)
        wait_for_end(peer)

    with Client(play(script)) as client:
        client._link.pipeline([(DmaUnmap(24, 0, number << 12, 4096), ()) for number in range(64)])
    play.end()
    assert held[0] <= 200


def test_more_areas_than_a_process_can_map_are_refused(play: Stage, stray: int) -> None:
    areas = b"".join(struct.pack("=QQ", number << 12, 4096) for number in range(MAX_AREAS + 1))
    size = 32 + 16 + len(areas)
    info = struct.pack("=IIIIQQ", size, 15, 0, 32, 1 << 32, 0)

    def script(peer: RawPeer) -> None:
        greet(peer)
        peer.send(raw.reply(peer.receive(), info[:4] + struct.pack("=IIIQQ", 7, 0, 0, 1 << 32, 0)))
        capability = struct.pack("=HHIII", 1, 1, 0, MAX_AREAS + 1, 0)
        peer.send(raw.reply(peer.receive(), info + capability + areas), [stray])
        wait_for_end(peer)

    with Client(play(script)) as client:
        before = raw.open_descriptors()
        with pytest.raises(RemoteProtocolError, match=f"{MAX_AREAS + 1} areas are to be mapped"):
            client.map_bar(0)
        assert raw.open_descriptors() == before


def test_a_bar_whose_file_the_server_shrinks_reads_as_zeros(stray: int) -> None:
    os.pwrite(stray, b"here", 0x1000)
    with MappedRegion([stray], 0, [(0x1000, 0x1000)]) as region:
        assert region.read(0x1000, 4) == b"here"
        os.truncate(stray, 0)
        assert region.read(0x1000, 4) == bytes(4)
        region.write32(0x1004, 5)


def test_a_shadow_whose_file_the_server_shrinks_reads_as_zeros(stray: int) -> None:
    os.pwrite(stray, b"here", 0)
    descriptors = _Descriptors([os.dup(stray)])
    shadow = descriptors.memory(0, "a sub-region")
    assert shadow[:4] == b"here"
    os.truncate(stray, 0)
    shadow[4:8] = b"gone"
    assert shadow[:4] == bytes(4)
    descriptors.close()


def test_the_clients_memory_cannot_be_shrunk_by_its_server(play: Stage) -> None:
    refusals: list[int] = []

    def script(peer: RawPeer) -> None:
        greet(peer)
        command = peer.receive()
        for size in (0, 1 << 30):
            try:
                os.truncate(command.fds[0], size)
            except OSError as error:
                refusals.append(error.errno or 0)
        answer(peer, command, b"")
        serve_plainly(peer, bytes(4096))

    with Client(play(script)) as client:
        client.memory(4096).write(0, b"still there")
    play.end()
    assert refusals == [errno.EPERM, errno.EPERM]


def test_a_server_that_answers_version_with_silence_is_given_up(play: Stage) -> None:
    with pytest.raises(OutboardError, match="VERSION within"):
        Client(play(wait_for_end), timeout=0.05)
