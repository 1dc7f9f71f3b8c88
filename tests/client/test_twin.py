"""The twin socket, the client's side: asked for, served in every wait; what a server may do wrong with it."""

import errno
import json
import os
import select
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from outboard import Bar, Client, Device, Intx, Server
from outboard.errors import ConnectionLost, DmaInHandler, PeerTimeout, RemoteError, RemoteProtocolError
from outboard.testing import TestClient
from tests import raw
from tests.client.conftest import Stage, answer, serve_plainly, wait_for_end
from tests.client.test_dma import BASE, SIZE, dma
from tests.raw import Message, RawPeer, open_descriptors

TWIN_JSON = b'{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}\0'


class Copier(Device):
    """Copies memory inside of the handler of a register, as no device without a twin socket may."""

    dma_requires_bus_master = False
    regs = Bar(0, size=0x1000)
    source = regs.reg(0x00, size=8)
    target = regs.reg(0x08, size=8)
    count = regs.reg(0x10)
    go = regs.reg(0x14, access="wo")
    later = regs.reg(0x18, access="wo")
    line = Intx()

    @go.on_write
    def copy(self, _: int) -> None:
        self.dma.write(self.target, self.dma.read(self.source, self.count))

    @later.on_write
    def copy_later(self, _: int) -> None:
        def copy() -> None:
            self.copy(0)
            self.line.assert_()  # noqa: PT009

        self.call_soon(copy)


def greet(peer: RawPeer, text: bytes = TWIN_JSON, fds: Sequence[int] = ()) -> Message:
    hello = peer.receive()
    peer.send(raw.reply(hello, struct.pack("=HH", 0, 0) + text), fds)
    for fd in fds:
        os.close(fd)
    return hello


def greet_whole(peer: RawPeer) -> RawPeer:
    """Answers VERSION with a twin socket, and DEVICE_GET_INFO; our end of the twin."""
    ours, theirs = socket.socketpair()
    greet(peer, TWIN_JSON, [theirs.detach()])
    peer.send(raw.reply(peer.receive(), struct.pack("=IIII", 16, 3, 9, 5)))
    return RawPeer(ours)


@pytest.mark.point("P35", "P104", "P125")
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_device_copies_memory_without_descriptors_inside_a_handler(folder: Path, in_memory: bool) -> None:
    size = 2 << 20
    with Server(Copier(), folder / "copier").start() as server:
        assert server.path is not None
        with (
            TestClient(Copier(), twin_socket=True) if in_memory else Client(server.path, twin_socket=True)
        ) as client:
            assert client.capabilities.twin_socket.supported
            ram = client.memory(2 * size, shared=False)
            ram.write(0, content := os.urandom(size))
            client.bar(0).write64(0x00, ram.address)
            client.bar(0).write64(0x08, ram.address + size)
            client.bar(0).write32(0x10, size)
            client.bar(0).write32(0x14, 1)
            assert ram.read(size, size) == content


@pytest.mark.point("P104")
@pytest.mark.parametrize("in_memory", [False, True])
def test_who_does_not_ask_has_no_twin_socket_and_handlers_are_told_so(folder: Path, in_memory: bool) -> None:
    with Server(Copier(), folder / "copier").start() as server:
        assert server.path is not None
        with TestClient(Copier(), strict=False) if in_memory else Client(server.path) as client:
            assert not client.capabilities.twin_socket.supported
            ram = client.memory(0x2000, shared=False)
            client.bar(0).write64(0x00, ram.address)
            client.bar(0).write32(0x10, 4)
            with pytest.raises(RemoteError) as caught:
                client.bar(0).write32(0x14, 1)
            assert caught.value.errno == DmaInHandler.errno


@pytest.mark.point("P125")
def test_the_twin_socket_is_served_while_an_interrupt_is_awaited(folder: Path) -> None:
    with Server(Copier(), folder / "copier").start() as server:
        assert server.path is not None
        with Client(server.path, twin_socket=True) as client:
            line = client.enable_intx()
            ram = client.memory(0x2000, shared=False)
            ram.write(0, b"until the interrupt comes")
            client.bar(0).write64(0x00, ram.address)
            client.bar(0).write64(0x08, ram.address + 0x1000)
            client.bar(0).write32(0x10, 25)
            client.bar(0).write32(0x18, 1)
            line.wait(5.0)
            assert ram.read(0x1000, 25) == b"until the interrupt comes"


@pytest.mark.point("P125", "P126")
def test_commands_on_the_twin_socket_are_answered_there_and_whatever_is_none_is_refused(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        with greet_whole(peer) as twin:
            command = peer.receive()
            while command.command == raw.DMA_MAP:
                answer(peer, command, b"")
                command = peer.receive()
            twin.send(dma(raw.DMA_WRITE, BASE, 4, b"twin") + dma(raw.DMA_READ, BASE + 2, 2, id=8))
            assert twin.receive().payload == struct.pack("=QQ", BASE, 4)
            assert twin.receive().payload[16:] == b"in"
            assert twin.refused(dma(raw.DMA_READ, BASE + SIZE, 1)) == errno.EFAULT
            assert twin.refused(raw.device_info()) == errno.EINVAL
            twin.send(dma(raw.DMA_WRITE, BASE, 1, b"T", flags=raw.NO_REPLY))
            assert twin.ask(dma(raw.DMA_READ, BASE, 4)).payload[16:] == b"Twin"
            # On the first socket such commands are answered as ever.
            assert peer.ask(dma(raw.DMA_READ, BASE, 2)).payload[16:] == b"Tw"
            answer(peer, command, b"")
            serve_plainly(peer, b"\x2a" * 64)

    with Client(play(script), twin_socket=True) as client:
        client.memory(SIZE, BASE, shared=False)
        assert client.config.read32(0) == 0x2A2A_2A2A


@pytest.mark.point("P125")
def test_the_twin_socket_is_served_between_commands(play: Stage) -> None:
    answered: list[bytes] = []
    asked, heard = os.eventfd(0), os.eventfd(0)

    def script(peer: RawPeer) -> None:
        with greet_whole(peer) as twin:
            answer(peer, peer.receive(), b"")
            twin.send(dma(raw.DMA_READ, BASE, 4))
            os.eventfd_write(asked, 1)
            answered.append(twin.receive().payload[16:])
            os.eventfd_write(heard, 1)
            wait_for_end(peer)

    with Client(play(script), twin_socket=True) as client:
        client.memory(SIZE, BASE, shared=False).write(0, b"mine")
        os.eventfd_read(asked)
        client.serve_dma()
        os.eventfd_read(heard)
        client.serve_dma()  # nothing has come
    play.end()
    assert answered == [b"mine"]
    os.close(asked)
    os.close(heard)


@pytest.mark.point("P125")
def test_a_server_that_asks_over_the_twin_before_it_reads_on_blocks_nobody(play: Stage) -> None:
    """It takes nothing of a large write until its question is answered."""
    size = 1 << 20

    def script(peer: RawPeer) -> None:
        with greet_whole(peer) as twin:
            answer(peer, peer.receive(), b"")
            answer(peer, peer.receive(), b"", size=size)
            for _ in range(8):
                answer(peer, peer.receive(), b"", size=size)
            select.select([peer.socket], [], [])
            assert twin.ask(dma(raw.DMA_READ, BASE, 4)).payload[16:] == b"mine"
            command = peer.receive()
            assert len(command.payload) == 16 + size
            peer.send(raw.reply(command, command.payload[:16]))
            wait_for_end(peer)

    with Client(play(script), twin_socket=True) as client:
        client.memory(SIZE, BASE, shared=False).write(0, b"mine")
        client.bar(0).write(0, bytes(size))


@pytest.mark.point("P35", "P122")
@pytest.mark.parametrize(
    ("said", "kinds", "sentence"),
    [
        ({"supported": True}, "s", "descriptor None, and sent 1"),
        ({"supported": True, "fd_index": 0}, "", "descriptor 0, and sent 0"),
        ({"supported": True, "fd_index": 1}, "s", "descriptor 1, and sent 1"),
        ({"supported": True, "fd_index": 0}, "fs", "no socket"),
        ({"supported": True, "fd_index": 1}, "sd", "of another kind: AF_UNIX, SOCK_DGRAM"),
        ({"supported": True, "fd_index": 0}, "i", "of another kind: AF_INET, SOCK_STREAM"),
    ],
)
def test_a_twin_socket_that_is_none_ends_the_connection(
    play: Stage, said: object, kinds: str, sentence: str
) -> None:
    def script(peer: RawPeer) -> None:
        pairs = [socket.socketpair(), socket.socketpair(type=socket.SOCK_DGRAM)]
        internet = socket.socket(socket.AF_INET)
        sources = {"s": pairs[0][0], "d": pairs[1][0], "i": internet}
        fds = [os.memfd_create("no") if kind == "f" else os.dup(sources[kind].fileno()) for kind in kinds]
        text = json.dumps({"capabilities": {"twin_socket": said}}).encode() + b"\0"
        greet(peer, text, fds)
        for end in (*pairs[0], *pairs[1], internet):
            end.close()
        peer.expect_closed()

    before = open_descriptors()
    with pytest.raises(RemoteProtocolError, match=sentence):
        Client(play(script), twin_socket=True)
    play.end()
    assert open_descriptors() == before


@pytest.mark.point("P35")
def test_a_server_without_twin_sockets_and_one_that_forces_it_are_lived_with(play: Stage) -> None:
    def plain(peer: RawPeer) -> None:
        greet(peer, raw.SERVER_JSON)
        peer.send(raw.reply(peer.receive(), struct.pack("=IIII", 16, 3, 9, 5)))
        assert serve_plainly(peer, bytes(64))

    def forcing(peer: RawPeer) -> None:
        with greet_whole(peer) as twin:
            twin.expect_closed()
            assert serve_plainly(peer, bytes(64))

    before = open_descriptors()
    with Client(play(plain), twin_socket=True) as client:
        assert not client.capabilities.twin_socket.supported
        assert client.config.read8(0) == 0
    with Client(play(forcing)) as client:  # which did not ask
        assert client.config.read8(0) == 0
    play.end()
    assert open_descriptors() == before


@pytest.mark.point("P35", "P129")
def test_a_server_that_closes_the_twin_socket_early_is_spoken_to_on(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        greet_whole(peer).close()
        assert serve_plainly(peer, b"\x11" * 64)

    with Client(play(script), twin_socket=True) as client:
        client.serve_dma()
        assert client.config.read8(0) == 0x11
        client.serve_dma()


@pytest.mark.point("P35", "P129")
@pytest.mark.parametrize(
    "nonsense",
    [
        raw.message(raw.DMA_READ, size=3),
        raw.message(raw.DMA_READ, bytes(16), flags=raw.REPLY),  # an answer to nothing
        raw.message(raw.DMA_READ, bytes(16), flags=7),
        raw.message(raw.DMA_READ, size=0xFFFF_FFFF),
    ],
)
def test_nonsense_on_the_twin_socket_ends_the_connection(play: Stage, nonsense: bytes) -> None:
    def script(peer: RawPeer) -> None:
        with greet_whole(peer) as twin:
            command = peer.receive()
            twin.send(nonsense)
            peer.expect_closed()
            assert command.command == raw.REGION_INFO

    before = open_descriptors()
    with Client(play(script), twin_socket=True) as client:
        with pytest.raises(RemoteProtocolError):
            client.config.read8(0)
        with pytest.raises(ConnectionLost):
            client.config.read8(0)
    play.end()
    assert open_descriptors() == before


@pytest.mark.point("P35", "P129")
def test_a_server_that_asks_over_the_twin_and_takes_no_answer_is_left(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        with greet_whole(peer) as twin:
            answer(peer, peer.receive(), b"")
            for number in range(30):
                twin.send(dma(raw.DMA_READ, BASE, 0x10000, id=number))
            peer.receive()
            wait_for_end(peer)

    with Client(play(script), twin_socket=True, timeout=0.2) as client:
        client.memory(0x10000, BASE, shared=False)
        with pytest.raises(PeerTimeout):
            client.config.read8(0)
