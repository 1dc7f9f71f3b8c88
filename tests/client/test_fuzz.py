"""Servers that answer anything at all: a client ends with a result or an error of the package, and soon."""

import socket
import struct
import threading
from random import Random

import pytest

from outboard.client import Client, SocketTransport
from outboard.errors import OutboardError
from tests import raw
from tests.client.conftest import answer
from tests.raw import Message, RawPeer


class FuzzedClient(Client):
    """A client over an open connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._open(SocketTransport(connection), 0.05)


def broken(random: Random, data: bytes) -> bytes:
    """`data` with some of its bytes changed, cut, repeated or followed by others."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 5))):
        match random.randrange(5):
            case 0 | 1:
                changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
            case 2:
                at = random.randrange(16, len(changed) + 1)
                changed[at:] = random.randbytes(random.choice((0, 4, 64)))
                struct.pack_into("=I", changed, 4, len(changed))
            case 3 if len(changed) >= 20:
                value = random.choice((0, 1, 31, 32, 33, 64, 1 << 20, 1 << 31, (1 << 32) - 1))
                struct.pack_into("=I", changed, random.randrange(16, len(changed) - 3), value)
            case _:
                changed += raw.message(raw.DMA_READ, struct.pack("=QQ", random.choice((0, 1 << 63)), 64))
    return bytes(changed)


def serve_badly(peer: RawPeer, random: Random, descriptor: int) -> None:
    """Answers everything, sometimes wrongly, until the client has had enough."""
    send = peer.send

    def send_broken(data: bytes, fds: object = ()) -> None:
        if random.random() < 0.15:
            data = broken(random, data)
        send(data, [descriptor] * random.choice((0, 0, 0, 1, 3)))

    peer.send = send_broken  # type: ignore[method-assign]
    try:
        while True:
            command: Message = peer.receive()
            if command.command == raw.VERSION:
                peer.send(raw.reply(command, struct.pack("=HH", 0, 0) + raw.QEMU_JSON))
            elif command.command == raw.DEVICE_INFO:
                peer.send(raw.reply(command, struct.pack("=IIII", 16, 3, 9, 5)))
            elif command.command == raw.REGION_IO_FDS:
                sub = struct.pack("=QQIIIIQQ", 8, 4, 0, random.choice((0, 2)), 0, 0, 0x100, 0)
                room = struct.unpack_from("=I", command.payload)[0] >= 64
                peer.send(raw.reply(command, struct.pack("=IIII", 64, 0, 0, 1) + (sub if room else b"")))
            elif not command.flags & raw.REPLY:
                answer(peer, command, bytes(range(256)) * 16, argsz=random.choice((32, 32, 64)))
    except (EOFError, OSError, struct.error):
        peer.close()


def use_everything(client: Client) -> None:
    client.find_capability(0x11)
    ram = client.memory(4096)
    client.memory(4096, 0, shared=False)
    client.enable_msix()
    client.config.write16(4, 7)
    client.bar(0).read(0, 64)
    for index in range(9):
        try:
            client.map_bar(index)
        except IndexError:
            continue
    client.doorbells(0).at(8).ring(1)
    client.write_many([(0, 8 * number, bytes(8)) for number in range(300)])
    client.post(0, 0, bytes(4))
    client.serve_dma()
    client.reset()
    ram.unmap()


@pytest.mark.point("P138")
@pytest.mark.parametrize("seed", range(4))
def test_a_client_of_a_broken_server_neither_hangs_nor_crashes_nor_leaks(seed: int) -> None:
    """Whatever a server answers, a client returns or raises OutboardError, and closes what it was sent."""
    random = Random(seed)
    descriptor = raw.memory_file(0x4000)
    before = raw.open_descriptors()
    failures = 0
    for _ in range(40):
        ours, theirs = socket.socketpair()
        peer = RawPeer(theirs)
        thread = threading.Thread(target=serve_badly, args=(peer, Random(random.random()), descriptor))
        thread.start()
        try:
            with FuzzedClient(ours) as client:
                use_everything(client)
        except OutboardError:
            failures += 1
        thread.join()
    assert failures > 10
    assert raw.open_descriptors() == before
