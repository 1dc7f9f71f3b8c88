"""Whatever a server answers, each call of a client returns or raises, and nothing stays.

What is raised is an error of the package, or IndexError for what the device lacks.
"""

import os
import struct
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from fuzz.choices import Choices
from fuzz.descriptors import KINDS, none_left
from fuzz.messages import TEXTS, mistaken
from outboard.client import Client
from outboard.errors import ConnectionLost, OutboardError, PeerTimeout
from outboard.protocol.messages import IrqIndex
from tests import raw
from tests.raw import Message

MOST_STEPS = 30


def run(data: bytes) -> None:
    """One client and its server, to the end of either."""
    c = Choices(data)
    with none_left():
        try:
            with PlayedClient(PlayedServer(c)) as client:
                for _ in range(MOST_STEPS):
                    if not c.more:
                        break
                    try:
                        c.pick(USES)(client, c)
                    except (OutboardError, IndexError):
                        continue
        except OutboardError:
            pass


class PlayedClient(Client):
    """A client of a server that is no process."""

    def __init__(self, server: "PlayedServer") -> None:
        self._open(server, 1.0)


def ring(client: Client, c: Choices) -> None:
    """A doorbell, by descriptor where the server has one there."""
    client.doorbells(c.below(6)).at(c.pick((0, 4, 8, 0x1000)), c.pick((4, 8, 2))).ring(c.below(9))


USES: tuple[Callable[[Any, Choices], object], ...] = (
    lambda client, c: client.regions,
    lambda client, c: client.map_bar(c.below(9)).read(c.number((0, 0x1000)), 4),
    lambda client, c: client.enable_msix(),
    lambda client, c: client.enable_msi(1 + c.below(4)),
    lambda client, c: client.enable_intx(),
    lambda client, c: client.disable_interrupts(c.pick(tuple(IrqIndex))),
    lambda client, c: client.irq_count(c.pick(tuple(IrqIndex))),
    lambda client, c: client.find_capability(c.pick((0x11, 5, 9))),
    lambda client, c: client.bar(c.below(6)).read(0, c.pick((4, 100, 5000))),
    lambda client, c: client.bar(c.below(6)).write(0, bytes(c.pick((4, 100, 5000)))),
    lambda client, c: client.memory(4096, shared=c.chance(0.5)),
    lambda client, c: client.memory(4096, 4096 * c.below(4)).unmap(),
    lambda client, c: client.dma_unmap_all(),
    lambda client, c: client.serve_dma(),
    lambda client, c: client.reset(),
    lambda client, c: client.bus_master(),
    lambda client, c: list(islice(client.migration.read(), 8)),
    lambda client, c: client.migration.state,
    lambda client, c: (
        client.doorbells(c.below(6)).at(c.pick((0, 4, 8, 0x1000)), c.pick((4, 8, 2))).ring(c.below(9))
    ),
    lambda client, c: client.write_many(
        [(c.below(9), c.pick((0, 4, 8)), bytes(c.pick((4, 8, 9))))] * c.below(5)
    ),
    lambda client, c: client.post(c.below(9), c.pick((0, 4)), bytes(4)),
    lambda client, c: client.migration.dirty_pages(0, c.pick((1, 5, 100)) << 12),
)


def heard_message(data: bytes) -> Message:
    """A client's whole message."""
    id, command, size, flags, error = raw.HEADER.unpack_from(data)
    return Message(id, command, size, flags, error, data[16:])


class PlayedServer:
    """A `Transport`: what `c` makes of a plain server's answers."""

    def __init__(self, c: Choices) -> None:
        self.c = c
        self._said: deque[tuple[bytes, Sequence[int]]] = deque()
        self._waiting = b""
        self._gone = False

    def send(self, data: bytes, fds: Sequence[int] = (), timeout: float | None = None) -> None:
        """Hears what the client says, and has its answer ready."""
        if self._gone:
            raise ConnectionLost("the server has gone")
        self._waiting += data
        while len(self._waiting) >= 16 and (size := raw.HEADER.unpack_from(self._waiting)[2]) <= len(
            self._waiting
        ):
            heard, self._waiting = self._waiting[:size], self._waiting[size:]
            command = heard_message(heard)
            if not command.flags & raw.REPLY:
                self._say(self._answer(command))

    def receive(self, timeout: float | None) -> tuple[bytes, Sequence[int]]:
        """The next piece; then silence, or the end."""
        if self._said:
            return self._said.popleft()
        if self._gone or not self.c.chance(0.7):
            self._gone = True
            raise ConnectionLost("the server has gone")
        raise PeerTimeout("the server sent nothing")

    def wait(self, fd: int, timeout: float) -> bool:
        """Whether anything has been said."""
        return bool(self._said)

    def serve_beside(self, fd: int, serve: Callable[[], None]) -> None:
        """A twin socket is offered by no server of ours."""

    def close(self) -> None:
        """What was said and not heard is lost."""
        for _, fds in self._said:
            for fd in fds:
                os.close(fd)
        self._said.clear()

    def _say(self, data: bytes) -> None:
        c = self.c
        while not c.chance(0.9):
            ask = struct.pack("=QQ", c.number((0, 0x1000_0000, 0x1020_0000), 64), c.number((64, 4096, 0)))
            command = c.pick((raw.DMA_READ, raw.DMA_WRITE))
            extra = raw.message(command, ask + bytes(64 if command == raw.DMA_WRITE else 0), id=c.below(4))
            data = c.pick((extra + data, data + extra))
        if not c.chance(0.85):
            data = mistaken(c, data)
        for piece in c.pieces(data):
            self._said.append((piece, KINDS.some(c)))

    def _answer(self, command: Message) -> bytes:
        """What a plain server answers, its numbers mostly plausible."""
        c, asked = self.c, command.payload
        if not c.chance(0.95):
            return raw.error_reply(command, c.pick((22, 0, 5, 4095)))
        match command.command:
            case raw.VERSION:
                body = struct.pack("=HH", 0, c.number((0, 1), 16)) + c.pick(TEXTS)
            case raw.DEVICE_INFO:
                body = struct.pack("=IIII", 16, 3, c.number((9, 9, 9, 1, 0)), c.number((5, 5, 0, 1)))
            case raw.REGION_INFO:
                body = self._region(asked)
            case raw.REGION_READ:
                count = struct.unpack_from("=I", asked, 12)[0]
                body = asked + c.take(16).ljust(count, b"\x40")[:count]
            case raw.IRQ_INFO:
                body = struct.pack("=II", 16, 7) + asked[8:12] + struct.pack("=I", c.number((1, 4, 0, 64)))
            case raw.SET_IRQS | raw.RESET | raw.DMA_MAP:
                body = b""
            case raw.FEATURE:
                argsz, flags = struct.unpack_from("=II", asked)
                body = (
                    struct.pack("=II", argsz, flags) + c.take(8).ljust(min(argsz, 4096), b"\0")[: argsz - 8]
                )
            case raw.MIG_DATA_READ:
                count = min(c.number((0, 16, 4096, 1 << 20)), 1 << 20)
                body = struct.pack("=II", 8 + count, count) + bytes(count)
            case raw.REGION_IO_FDS:
                body = self._io_fds(asked)
            case _:
                body = asked[:24]
        return raw.reply(command, body)

    def _io_fds(self, asked: bytes) -> bytes:
        """Sub-regions, each an eventfd, with a shadow or without."""
        c = self.c
        subs = b"".join(
            struct.pack(
                "=QQIIIIQ",
                *(c.number((0, 4, 8), 64), c.number((4, 0, 8), 64), c.number((0, 1)), c.number((0, 2, 1))),
                *(c.number((0, 1, 2, 3)), c.number((0, 1, 4)), c.number((0, 5, 4092, 4096), 64)),
            )
            for _ in range(c.below(4))
        )
        size = c.number((16 + len(subs), 16))
        head = struct.pack("=II", size, 0) + asked[8:12] + struct.pack("=I", c.number((len(subs) // 40,)))
        return head if struct.unpack_from("=I", asked)[0] < size else head + subs

    def _region(self, asked: bytes) -> bytes:
        c, index = self.c, asked[8:12]
        areas = b"".join(
            struct.pack("=QQ", c.number((0, 0x1000, 0x2000), 64), c.number((0x1000, 0x2000, 0), 64))
            for _ in range(c.below(4))
        )
        capability = struct.pack("=HHIII", 1, 1, c.number((0, 0, 32, 48)), len(areas) // 16, 0) + areas
        size = c.number((32 + len(capability), 32))
        flags = c.number((15, 3, 7, 0))
        head = struct.pack("=II", size, flags) + index + struct.pack("=I", c.number((32, 0)))
        head += struct.pack("=QQ", c.number((0x4000, 0, 0x1000), 64), c.number((0, 0x1000), 64))
        room = struct.unpack_from("=I", asked)[0]
        return head if room < size else head + capability
