"""What every message has: a command, a header of 16 bytes, and a payload with a fixed start.

vfio-user specification, "Header" and "Message IDs". All fields are in the byte order of the host.
"""

from enum import IntEnum, IntFlag
from struct import Struct
from struct import error as StructError
from typing import Self

from outboard.errors import LocalProtocolError, RemoteProtocolError

Buffer = bytes | bytearray | memoryview

HEADER = Struct("=HHIII")
HEADER_SIZE = HEADER.size

VERSION_MAJOR = 0
VERSION_MINOR = 1  # the specification prints no number; SPDK and the Rust crate send 0.1, QEMU 0.0


class Command(IntEnum):
    """The message ids of vfio-user."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    DIRTY_PAGES = 14
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class HeaderFlag(IntFlag):
    """Bits of the header's flags: the type in bits 0 to 3, then No_reply and Error."""

    COMMAND = 0x0
    REPLY = 0x1
    TYPE_MASK = 0xF
    NO_REPLY = 0x10
    ERROR = 0x20


class Message:
    """The payload of one message. Each subclass keeps its layout beside its fields."""

    __slots__ = ()

    @property
    def transfer(self) -> int:
        """Bytes of data this message carries or asks for: what ``max_data_xfer_size`` bounds."""
        return 0

    def encode(self) -> bytes:
        """The payload, without the header. Raises LocalProtocolError if a field does not fit."""
        raise NotImplementedError

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message in the payload ``data``. Raises RemoteProtocolError if it cannot be one."""
        raise NotImplementedError


def pack(layout: Struct, *values: int) -> bytes:
    """``values`` laid out by ``layout``. Raises LocalProtocolError if one does not fit its field."""
    try:
        return layout.pack(*values)
    except StructError as error:
        raise LocalProtocolError(
            f"the fields {values} do not fit the layout {layout.format!r}: {error}"
        ) from error


def unpack(layout: Struct, data: Buffer, name: str) -> tuple[int, ...]:
    """The fields at the start of ``data``; what follows them is the caller's.

    Raises RemoteProtocolError if the payload is too short.
    """
    if len(data) < layout.size:
        raise RemoteProtocolError(
            f"{name} has {len(data)} bytes of payload, at least {layout.size} are needed"
        )
    return layout.unpack_from(data)


def unpack_exact(layout: Struct, data: Buffer, name: str) -> tuple[int, ...]:
    """The fields that make up the whole of ``data``. Raises RemoteProtocolError for any other length."""
    if len(data) != layout.size:
        raise RemoteProtocolError(
            f"{name} has {len(data)} bytes of payload, exactly {layout.size} are needed"
        )
    return layout.unpack(data)


def unpack_argsz(layout: Struct, data: Buffer, name: str) -> tuple[int, ...]:
    """The fields of a payload that begins with argsz, which must have room for all of them.

    Bytes after the fields are left alone: SPDK pads its region info requests to 4080 bytes.
    """
    fields = unpack(layout, data, name)
    if fields[0] < layout.size:
        raise RemoteProtocolError(f"{name} has argsz {fields[0]}, at least {layout.size} is needed")
    return fields


def wrong_length(count: int, data: bytes, name: str) -> LocalProtocolError:
    """What to raise when ``data`` has not the ``count`` bytes its message announces."""
    return LocalProtocolError(f"{name} announces {count} bytes of data but carries {len(data)}")
