"""The messages of vfio-user as bytes, written down from the specification once more.

vfio-user specification, "Header" and the section of each message. Nothing of the package's own codec is
used: a mistake there cannot hide behind itself. A `Body` is a command and its payload; a peer gives it an
id and sends it.
"""

import errno
import os
import struct
from typing import NamedTuple

HEADER = struct.Struct("=HHIII")
HEADER_SIZE = 16

VERSION, DMA_MAP, DMA_UNMAP, DEVICE_INFO, REGION_INFO, REGION_IO_FDS, IRQ_INFO, SET_IRQS = range(1, 9)
REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE, RESET, DIRTY_PAGES, WRITE_MULTI, FEATURE = range(9, 17)
MIG_DATA_READ, MIG_DATA_WRITE = 17, 18

NAMES = {
    VERSION: "VERSION",
    DMA_MAP: "DMA_MAP",
    DMA_UNMAP: "DMA_UNMAP",
    DEVICE_INFO: "DEVICE_GET_INFO",
    REGION_INFO: "DEVICE_GET_REGION_INFO",
    REGION_IO_FDS: "DEVICE_GET_REGION_IO_FDS",
    IRQ_INFO: "DEVICE_GET_IRQ_INFO",
    SET_IRQS: "DEVICE_SET_IRQS",
    REGION_READ: "REGION_READ",
    REGION_WRITE: "REGION_WRITE",
    DMA_READ: "DMA_READ",
    DMA_WRITE: "DMA_WRITE",
    RESET: "DEVICE_RESET",
    DIRTY_PAGES: "DIRTY_PAGES",
    WRITE_MULTI: "REGION_WRITE_MULTI",
    FEATURE: "DEVICE_FEATURE",
    MIG_DATA_READ: "MIG_DATA_READ",
    MIG_DATA_WRITE: "MIG_DATA_WRITE",
}

TYPE, REPLY, NO_REPLY, ERROR = 0x0F, 0x01, 0x10, 0x20
DATA_NONE, DATA_BOOL, DATA_EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32
INTX, MSI, MSIX, ERR, REQ = range(5)
INDEXES = ("INTx", "MSI", "MSI-X", "ERR", "REQ")
ROM, CONFIG = 6, 7
READABLE, WRITABLE, MAPPABLE, HAS_CAPS = 1, 2, 4, 8
FEATURE_GET, FEATURE_SET, FEATURE_PROBE = 1 << 16, 1 << 17, 1 << 18
MIGRATION, MIG_STATE, LOG_START, LOG_STOP, LOG_REPORT = 1, 2, 6, 7, 8

PAGE = 4096
DEFAULT_TRANSFER = 1 << 20
MOST_DATA = 64 << 20
"""More than any peer may announce: QEMU's own limit for max_data_xfer_size."""

QEMU_JSON = (
    b'{"capabilities": {"migration": {"pgsize": 4096, "max_bitmap_size": 268435456}, "max_msg_fds": 16,'
    b' "max_data_xfer_size": 1048576, "pgsizes": 4096, "max_dma_maps": 65535, "write_multiple": true}}\0'
)
"""What QEMU 10.1 says of itself: 193 bytes, and its buffer for the answer is no larger."""


class Message(NamedTuple):
    """One whole message as it came; ``fds`` belong to whoever received it."""

    id: int
    command: int
    size: int
    flags: int
    error: int
    payload: bytes
    fds: tuple[int, ...] = ()

    @property
    def is_reply(self) -> bool:
        """Whether its type says that it answers a command."""
        return self.flags & TYPE == REPLY

    @property
    def is_error(self) -> bool:
        """Whether it refuses a command."""
        return bool(self.flags & ERROR)

    def __str__(self) -> str:
        """The message in words."""
        if self.is_error:
            text = f"an error reply ({errno_name(self.error)}) to {name(self.command)}"
            return text + (f" with {len(self.payload)} bytes of payload" if self.payload else "")
        kind = "a successful reply to" if self.is_reply else "the command"
        with_fds = f" and {len(self.fds)} descriptors" if self.fds else ""
        return f"{kind} {name(self.command)} with {len(self.payload)} bytes of payload{with_fds}"


class Body(NamedTuple):
    """A command and its payload, yet without id."""

    command: int
    payload: bytes = b""

    def message(self, id: int, flags: int = 0, *, size: int | None = None, error: int = 0) -> bytes:
        """The whole message; ``size`` lies about its length."""
        length = HEADER_SIZE + len(self.payload) if size is None else size
        return HEADER.pack(id, self.command, length, flags, error) + self.payload


def name(command: int) -> str:
    """The command's name in the specification."""
    return NAMES.get(command, f"command {command}")


def errno_name(number: int) -> str:
    """An errno as people write it."""
    return errno.errorcode.get(number, f"errno {number}")


def version(major: int = 0, minor: int = 0, text: bytes = QEMU_JSON) -> Body:
    """VERSION; ``text`` is the JSON with its NUL."""
    return Body(VERSION, struct.pack("=HH", major, minor) + text)


def device_info(argsz: int = 16) -> Body:
    """DEVICE_GET_INFO."""
    return Body(DEVICE_INFO, struct.pack("=IIII", argsz, 0, 0, 0))


def region_info(index: int, argsz: int = 32) -> Body:
    """DEVICE_GET_REGION_INFO."""
    return Body(REGION_INFO, struct.pack("=IIIIQQ", argsz, 0, index, 0, 0, 0))


def region_io_fds(index: int, argsz: int = 16, flags: int = 0, count: int = 0) -> Body:
    """DEVICE_GET_REGION_IO_FDS."""
    return Body(REGION_IO_FDS, struct.pack("=IIII", argsz, flags, index, count))


def irq_info(index: int, argsz: int = 16) -> Body:
    """DEVICE_GET_IRQ_INFO."""
    return Body(IRQ_INFO, struct.pack("=IIII", argsz, 0, index, 0))


def set_irqs(
    index: int, flags: int, start: int = 0, count: int = 1, data: bytes = b"", argsz: int | None = None
) -> Body:
    """DEVICE_SET_IRQS; ``data`` is a byte for each vector where the flags say BOOL."""
    size = 20 + len(data) if argsz is None else argsz
    return Body(SET_IRQS, struct.pack("=IIIII", size, flags, index, start, count) + data)


def region_read(region: int, offset: int, count: int) -> Body:
    """REGION_READ."""
    return Body(REGION_READ, struct.pack("=QII", offset, region, count))


def region_write(region: int, offset: int, data: bytes, count: int | None = None) -> Body:
    """REGION_WRITE; ``count`` lies about the length of the data."""
    return Body(
        REGION_WRITE, struct.pack("=QII", offset, region, len(data) if count is None else count) + data
    )


def write_multi(*writes: tuple[int, int, bytes], count: int | None = None) -> Body:
    """REGION_WRITE_MULTI of (region, offset, up to 8 bytes); ``count`` lies about their number."""
    entries = b"".join(struct.pack("=QII8s", at, region, len(data), data) for region, at, data in writes)
    return Body(WRITE_MULTI, struct.pack("=Q", len(writes) if count is None else count) + entries)


def dma_map(address: int, size: int, offset: int = 0, flags: int = 3, argsz: int = 32) -> Body:
    """DMA_MAP."""
    return Body(DMA_MAP, struct.pack("=IIQQQ", argsz, flags, offset, address, size))


def dma_unmap(address: int, size: int, flags: int = 0, argsz: int = 24) -> Body:
    """DMA_UNMAP."""
    return Body(DMA_UNMAP, struct.pack("=IIQQ", argsz, flags, address, size))


def feature(flags: int, data: bytes = b"", argsz: int | None = None) -> Body:
    """DEVICE_FEATURE; ``flags`` holds the feature's number and what to do with it."""
    return Body(FEATURE, struct.pack("=II", 8 + len(data) if argsz is None else argsz, flags) + data)


def mig_data_read(size: int) -> Body:
    """MIG_DATA_READ."""
    return Body(MIG_DATA_READ, struct.pack("=II", 8 + size, size))


def mig_data_write(data: bytes) -> Body:
    """MIG_DATA_WRITE."""
    return Body(MIG_DATA_WRITE, struct.pack("=II", 8 + len(data), len(data)) + data)


def close_all(fds: tuple[int, ...]) -> None:
    """Close descriptors that came and are not wanted."""
    for fd in fds:
        os.close(fd)
