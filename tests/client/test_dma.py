"""The client's memory: mapped from a memfd, or served by messages, also between a command and its reply."""

import ctypes
import errno
import os
import struct

import pytest

from outboard import Client
from outboard.errors import RemoteError, RemoteProtocolError
from outboard.testing import TestClient
from tests import raw
from tests.client.conftest import Stage, answer, greet, serve_plainly, wait_for_end
from tests.raw import Message, RawPeer
from tests.server.gadgets import Gadget

BASE, SIZE = 0x10_0000, 0x2000


def dma(command: int, address: int, count: int, data: bytes = b"", *, id: int = 7, flags: int = 0) -> bytes:
    return raw.message(command, struct.pack("=QQ", address, count) + data, id=id, flags=flags)


def next_command(peer: RawPeer) -> Message:
    """The client's next command; memory it maps on the way is taken."""
    while (command := peer.receive()).command == raw.DMA_MAP:
        answer(peer, command, b"")
    return command


@pytest.mark.point("P133")
def test_memory_is_a_memfd_that_the_server_can_map(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer)
        command = peer.receive()
        assert struct.unpack("=IIQQQ", command.payload) == (32, 3, 0, BASE, SIZE)
        [fd] = command.fds
        os.pwrite(fd, b"from the server", 0x100)
        os.close(fd)
        peer.send(raw.reply(command))
        command = peer.receive()
        assert (command.payload, command.fds) == (struct.pack("=IIQQ", 24, 0, BASE, SIZE), ())
        peer.send(raw.reply(command, command.payload))
        wait_for_end(peer)

    with Client(play(script)) as client:
        ram = client.memory(SIZE, BASE)
        assert ram.read(0x100, 15) == b"from the server"
        ram.unmap()


@pytest.mark.point("P133")
def test_addresses_are_chosen_apart_and_rights_are_told(play: Stage) -> None:
    commands: list[Message] = []

    def script(peer: RawPeer) -> None:
        greet(peer)
        commands.extend(serve_plainly(peer, b""))

    with Client(play(script)) as client:
        first = client.memory(SIZE, writable=False)
        second = client.memory(SIZE, readable=False, shared=False)
        assert first.address + first.size <= second.address
        assert second.address % 4096 == 0
    play.end()
    maps = [c for c in commands if c.command == raw.DMA_MAP]
    assert [struct.unpack_from("=I", c.payload, 4)[0] for c in maps] == [1, 2]
    assert [len(c.fds) for c in maps] == [1, 0]


@pytest.mark.point("P133")
def test_an_unmap_may_be_answered_with_a_header_but_not_with_another_range(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer)
        peer.send(raw.reply(peer.receive()))
        peer.send(raw.reply(peer.receive(), struct.pack("=IIQQ", 24, 0, BASE, 2 * SIZE)))
        wait_for_end(peer)

    with Client(play(script)) as client:
        client.dma_unmap(BASE, SIZE)
        with pytest.raises(RemoteProtocolError, match=r"unmapped 0x4000 bytes at 0x100000, not 0x2000"):
            client.dma_unmap(BASE, SIZE)


@pytest.mark.point("P133")
def test_memory_the_server_refuses_is_freed(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer)
        command = peer.receive()
        os.close(command.fds[0])
        peer.send(raw.error_reply(command, errno.ENOSPC))
        wait_for_end(peer)

    with Client(play(script)) as client:
        before = raw.open_descriptors()
        with pytest.raises(RemoteError, match="No space"):
            client.memory(SIZE, BASE)
        assert raw.open_descriptors() == before


@pytest.mark.point("P125", "P126")
def test_the_servers_commands_are_served_between_a_command_and_its_reply(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer)
        command = next_command(peer)
        for number in range(50):
            data = bytes([number]) * 100
            # The same id as the command that waits: the two directions count for themselves.
            request = dma(raw.DMA_WRITE, BASE + 0x100, 100, data, id=command.id)
            assert peer.ask(request).payload == struct.pack("=QQ", BASE + 0x100, 100)
            request = dma(raw.DMA_READ, BASE + 0xFF, 102, id=command.id)
            assert peer.ask(request).payload[16:] == b"\0" + data + b"\0"
        peer.send(raw.reply(command))
        wait_for_end(peer)

    with Client(play(script)) as client:
        ram = client.memory(SIZE, BASE, shared=False)
        client.reset()
        assert ram.read(0x100, 1) == b"\x31"


@pytest.mark.point("P126")
def test_what_the_client_did_not_grant_is_refused(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer)
        command = next_command(peer)
        reader, writer = os.pipe()
        for request, number in (
            (dma(raw.DMA_READ, BASE - 1, 4), errno.EFAULT),
            (dma(raw.DMA_READ, BASE + SIZE - 3, 4), errno.EFAULT),
            (dma(raw.DMA_READ, (1 << 64) - 2, 4), errno.EFAULT),
            (dma(raw.DMA_WRITE, BASE, 4, b"read"), errno.EACCES),
            (dma(raw.DMA_READ, 2 * BASE, 4), errno.EACCES),
            (dma(raw.DMA_READ, BASE, (1 << 20) + 1), errno.EINVAL),
            (dma(raw.DMA_READ, BASE, (1 << 64) - 1), errno.EINVAL),
            (dma(raw.DMA_WRITE, 2 * BASE, 8, b"four"), errno.EINVAL),
            (raw.message(raw.DMA_READ, b"short"), errno.EINVAL),
            (raw.message(999), errno.EINVAL),
            (raw.device_info(), errno.EINVAL),
        ):
            assert peer.refused(request, [reader]) == number
        peer.send(dma(raw.DMA_READ, 0, 4, flags=raw.NO_REPLY))
        peer.send(dma(raw.DMA_WRITE, 2 * BASE, 4, b"done", flags=raw.NO_REPLY))
        assert peer.ask(dma(raw.DMA_READ, BASE, 4)).payload[16:] == bytes(4)
        peer.expect_silence()
        peer.send(raw.reply(command))
        wait_for_end(peer)
        os.close(reader)
        os.close(writer)

    with Client(play(script)) as client:
        client.memory(SIZE, BASE, shared=False, writable=False)
        written = client.memory(SIZE, 2 * BASE, shared=False, readable=False)
        client.reset()
        assert written.read(0, 4) == b"done"


@pytest.mark.point("P126")
def test_memory_that_was_taken_back_is_served_no_more(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer)
        command = next_command(peer)
        peer.send(raw.reply(command, command.payload))
        for _ in range(2):
            command = next_command(peer)
            assert peer.refused(dma(raw.DMA_READ, BASE, 4)) == errno.EFAULT
            peer.send(raw.reply(command))
        wait_for_end(peer)

    with Client(play(script)) as client:
        client.memory(SIZE, BASE, shared=False).unmap()
        client.reset()
        client.memory(SIZE, BASE, shared=False).close()
        client.reset()


@pytest.mark.point("P125")
def test_memory_is_served_while_the_client_waits_for_an_interrupt(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer)
        command = next_command(peer)
        assert command.command == raw.SET_IRQS
        peer.send(raw.reply(command))
        while (command := peer.receive()).command != raw.RESET:
            answer(peer, command, bytes(4096))
        peer.send(raw.reply(command))
        assert peer.ask(dma(raw.DMA_READ, BASE, 5)).payload[16:] == b"hello"
        for fd in fds:
            os.eventfd_write(fd, 3)
            os.close(fd)
        wait_for_end(peer)

    fds: list[int] = []

    def keep_descriptor(peer: RawPeer) -> None:
        receive = peer.receive

        def receive_and_keep() -> Message:
            message = receive()
            if message.command == raw.SET_IRQS:
                fds.extend(message.fds)
                return message._replace(fds=())
            return message

        peer.receive = receive_and_keep  # type: ignore[method-assign]
        script(peer)

    with Client(play(keep_descriptor)) as client:
        client.memory(SIZE, BASE, shared=False).write(0, b"hello")
        [interrupt] = client.enable_msi(1)
        client.reset()
        assert interrupt.wait(5) == 3
        assert interrupt.take() == 0


@pytest.mark.parametrize("size", [0, -1, 1 << 60])
def test_memory_that_cannot_be_made_leaves_no_descriptor(size: int) -> None:
    with TestClient(Gadget()) as client:
        before = raw.open_descriptors()
        with pytest.raises((OSError, ValueError)):
            client.memory(size, BASE)
        assert raw.open_descriptors() == before


def test_an_array_over_memory_outlives_the_client() -> None:
    with TestClient(Gadget(), strict=False) as client:
        array = (ctypes.c_ubyte * 4).from_buffer(client.memory(SIZE, BASE).view)
    array[0] = 7
    assert array[0] == 7


def test_memory_that_a_server_takes_in_anothers_place_replaces_it(play: Stage) -> None:
    """A server that refuses an unmap, and then a map of the same range not."""

    def script(peer: RawPeer) -> None:
        greet(peer)
        for command in iter(peer.receive, None):
            if command.command == raw.DMA_UNMAP:
                peer.send(raw.error_reply(command, 5))
                break
            answer(peer, command, b"")
        serve_plainly(peer, bytes(4096))

    before = raw.open_descriptors()
    with Client(play(script)) as client:
        first = client.memory(4096, 0x1000)
        with pytest.raises(RemoteError):
            first.unmap()
        second = client.memory(4096, 0x1000)
        assert (first.fd, client._memory.blocks) == (-1, {0x1000: second})
        second.unmap()
        first.close()
    play.end()
    assert raw.open_descriptors() == before
