"""A vfio-user peer made of bytes: what a test says and hears on the wire, with no code of the package.

The layouts are written down here once more, from the specification, so that a mistake in the package's own
cannot hide behind itself. `RawPeer` is either end of a connection; the functions build messages.
"""

import array
import gc
import os
import select
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

HEADER = struct.Struct("=HHIII")
VERSION, DMA_MAP, DMA_UNMAP, DEVICE_INFO, REGION_INFO, REGION_IO_FDS, IRQ_INFO, SET_IRQS = range(1, 9)
REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE, RESET, DIRTY_PAGES, WRITE_MULTI, FEATURE = range(9, 17)
MIG_DATA_READ, MIG_DATA_WRITE = 17, 18

FEATURE_GET, FEATURE_SET, FEATURE_PROBE = 1 << 16, 1 << 17, 1 << 18
MIGRATION, MIG_DEVICE_STATE, LOG_START, LOG_STOP, LOG_REPORT = 1, 2, 6, 7, 8

REPLY, NO_REPLY, ERROR = 0x01, 0x10, 0x20
NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32
INTX, MSI, MSIX, ERR, REQ = range(5)
CONFIG = 7

QEMU_JSON = (
    b'{"capabilities": {"migration": {"pgsize": 4096, "max_bitmap_size": 268435456}, "max_msg_fds": 16,'
    b' "max_data_xfer_size": 1048576, "pgsizes": 4096, "max_dma_maps": 65535, "write_multiple": true}}\0'
)
SERVER_JSON = b'{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576,"pgsizes":4096}}\0'
DEADLINE = 10.0


class Message(NamedTuple):
    """One whole message as it came; `fds` are the test's to close."""

    id: int
    command: int
    size: int
    flags: int
    error: int
    payload: bytes
    fds: tuple[int, ...] = ()


def message(
    command: int,
    payload: bytes = b"",
    *,
    id: int = 1,
    flags: int = 0,
    error: int = 0,
    size: int | None = None,
) -> bytes:
    """A message; `size` lies about its length."""
    return HEADER.pack(id, command, 16 + len(payload) if size is None else size, flags, error) + payload


def reply(to: Message, payload: bytes = b"", *, flags: int = REPLY, error: int = 0) -> bytes:
    return message(to.command, payload, id=to.id, flags=flags, error=error)


def error_reply(to: Message, error: int) -> bytes:
    return reply(to, flags=REPLY | ERROR, error=error)


def version(major: int = 0, minor: int = 0, text: bytes = QEMU_JSON, *, id: int = 1) -> bytes:
    return message(VERSION, struct.pack("=HH", major, minor) + text, id=id)


def device_info(argsz: int = 16, *, id: int = 1) -> bytes:
    return message(DEVICE_INFO, struct.pack("=IIII", argsz, 0, 0, 0), id=id)


def region_info(index: int, argsz: int = 32, *, id: int = 1) -> bytes:
    return message(REGION_INFO, struct.pack("=IIIIQQ", argsz, 0, index, 0, 0, 0), id=id)


def region_io_fds(index: int, argsz: int = 16, flags: int = 0, count: int = 0) -> bytes:
    return message(REGION_IO_FDS, struct.pack("=IIII", argsz, flags, index, count))


def irq_info(index: int, argsz: int = 16, *, id: int = 1) -> bytes:
    return message(IRQ_INFO, struct.pack("=IIII", argsz, 0, index, 0), id=id)


def set_irqs(
    index: int, flags: int, start: int = 0, count: int = 1, data: bytes = b"", *, argsz: int = 20, id: int = 1
) -> bytes:
    return message(SET_IRQS, struct.pack("=IIIII", argsz, flags, index, start, count) + data, id=id)


def read(region: int, offset: int, count: int, *, id: int = 1, flags: int = 0) -> bytes:
    return message(REGION_READ, struct.pack("=QII", offset, region, count), id=id, flags=flags)


def write(region: int, offset: int, data: bytes, *, id: int = 1, flags: int = 0) -> bytes:
    payload = struct.pack("=QII", offset, region, len(data)) + data
    return message(REGION_WRITE, payload, id=id, flags=flags)


def write_multi(*writes: tuple[int, int, bytes], flags: int = 0) -> bytes:
    """Writes as (region, offset, data of up to 8 bytes)."""
    entries = b"".join(struct.pack("=QII8s", at, region, len(data), data) for region, at, data in writes)
    return message(WRITE_MULTI, struct.pack("=Q", len(writes)) + entries, flags=flags)


def dma_map(
    address: int, size: int, *, offset: int = 0, flags: int = 3, argsz: int = 32, id: int = 1
) -> bytes:
    return message(DMA_MAP, struct.pack("=IIQQQ", argsz, flags, offset, address, size), id=id)


def dma_unmap(address: int, size: int, *, flags: int = 0, argsz: int = 24, id: int = 1) -> bytes:
    return message(DMA_UNMAP, struct.pack("=IIQQ", argsz, flags, address, size), id=id)


def reset(*, id: int = 1) -> bytes:
    return message(RESET, id=id)


def feature(flags: int, data: bytes = b"", *, argsz: int | None = None) -> bytes:
    size = 8 + len(data) if argsz is None else argsz
    return message(FEATURE, struct.pack("=II", size, flags) + data)


def set_state(state: int) -> bytes:
    return feature(FEATURE_SET | MIG_DEVICE_STATE, struct.pack("=Ii", state, -1))


def mig_read(size: int, argsz: int | None = None) -> bytes:
    return message(MIG_DATA_READ, struct.pack("=II", 8 + size if argsz is None else argsz, size))


def mig_write(data: bytes) -> bytes:
    return message(MIG_DATA_WRITE, struct.pack("=II", 8 + len(data), len(data)) + data)


class RawPeer:
    """One end of a connection. Everything waits up to `DEADLINE` seconds and then fails the test."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(DEADLINE)

    @classmethod
    def connect(cls, path: str | os.PathLike[str] | None) -> "RawPeer":
        assert path is not None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(DEADLINE)
        try:
            connection.connect(os.fspath(path))
        except OSError:
            connection.close()
            raise
        return cls(connection)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Sends all of `data`; `fds` ride on its first byte."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.socket.sendmsg([data], ancillary)
        if sent < len(data):
            self.socket.sendall(data[sent:])

    def receive(self) -> Message:
        """The next whole message. Raises EOFError when the other end has closed."""
        head, fds = self._read(HEADER.size)
        id, command, size, flags, error = HEADER.unpack(head)
        payload, more = self._read(size - HEADER.size)
        return Message(id, command, size, flags, error, payload, fds + more)

    def ask(self, data: bytes, fds: Sequence[int] = ()) -> Message:
        """Sends one command; the next message, which has to be its reply, not an error."""
        self.send(data, fds)
        answer = self.receive()
        assert (answer.id, answer.command) == HEADER.unpack_from(data)[:2], answer
        assert answer.flags == REPLY, answer
        return answer

    def refused(self, data: bytes, fds: Sequence[int] = ()) -> int:
        """Sends one command that has to be answered by a proper error reply; its errno."""
        self.send(data, fds)
        return self.expect_refusal(data)

    def expect_refusal(self, data: bytes) -> int:
        """Receives a proper error reply to the command `data`; its errno."""
        answer = self.receive()
        assert (answer.id, answer.command) == HEADER.unpack_from(data)[:2], answer
        assert (answer.size, answer.flags, answer.fds) == (16, REPLY | ERROR, ()), answer
        assert 0 < answer.error < 4096, answer
        return answer.error

    def negotiate(self, text: bytes = QEMU_JSON) -> Message:
        """VERSION as QEMU sends it."""
        return self.ask(version(text=text))

    def read(self, region: int, offset: int, count: int) -> bytes:
        """The bytes REGION_READ answers."""
        return self.ask(read(region, offset, count)).payload[16:]

    def write(self, region: int, offset: int, data: bytes) -> None:
        """A REGION_WRITE that succeeds."""
        self.ask(write(region, offset, data))

    def expect_silence(self) -> None:
        """Fails if anything has come. Ask something else first, so that it would have."""
        assert not select.select([self.socket], [], [], 0)[0]

    def expect_closed(self) -> None:
        """Waits for the other end to close; anything that comes before fails."""
        try:
            rest = self.socket.recv(1 << 16)
        except ConnectionResetError:
            return
        assert rest == b"", rest

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> "RawPeer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, size: int) -> tuple[bytes, tuple[int, ...]]:
        data, fds = b"", array.array("i")
        while len(data) < size:
            part, ancillary, _, _ = self.socket.recvmsg(size - len(data), socket.CMSG_SPACE(253 * 4))
            for level, kind, content in ancillary:
                assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
                fds.frombytes(content)
            if not part:
                raise EOFError(f"the connection ended after {len(data)} of {size} bytes")
            data += part
        return data, tuple(fds)


def memory_file(size: int, content: bytes = b"") -> int:
    """A descriptor of `size` bytes of shared memory."""
    fd = os.memfd_create("test")
    os.truncate(fd, size)
    os.pwrite(fd, content, 0)
    return fd


def open_descriptors() -> int:
    """How many descriptors this process has, those of devices that nobody holds any more left out."""
    gc.collect()  # devices of earlier tests close theirs when they go
    return descriptors_now()


def descriptors_now() -> int:
    """How many descriptors this process has: cheap enough to look again and again."""
    return len(os.listdir("/proc/self/fd"))


def fired(eventfd: int) -> int:
    """How often an eventfd has been signalled since it was last asked; never waits."""
    if not select.select([eventfd], [], [], 0)[0]:
        return 0
    return os.eventfd_read(eventfd)
