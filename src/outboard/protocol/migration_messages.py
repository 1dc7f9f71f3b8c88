"""The payloads about features and migration, and DIRTY_PAGES of older drafts.

vfio-user specification, "VFIO_USER_DEVICE_FEATURE", "VFIO_USER_MIG_DATA_READ" and "..._WRITE". What a
feature's data means is for both ends to say; its layout is here.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Self

from outboard.errors import RemoteProtocolError
from outboard.protocol.wire import Buffer, Message, pack, unpack_argsz, wrong_length

PREFIX = Struct("=II")


class Feature(IntEnum):
    """The features that DEVICE_FEATURE knows, as VFIO numbers them."""

    PCI_VF_TOKEN = 0
    MIGRATION = 1
    MIG_DEVICE_STATE = 2
    LOW_POWER_ENTRY = 3
    LOW_POWER_ENTRY_WITH_WAKEUP = 4
    LOW_POWER_EXIT = 5
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    DMA_LOGGING_REPORT = 8
    MIG_DATA_SIZE = 9
    BUS_MASTER = 10


class MigrationFlag(IntFlag):
    """What the feature MIGRATION says a device can do."""

    STOP_COPY = 1 << 0
    P2P = 1 << 1
    PRE_COPY = 1 << 2


class MigrationState(IntEnum):
    """The states of a device that migrates, as VFIO numbers them."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    RUNNING_P2P = 5
    PRE_COPY = 6
    PRE_COPY_P2P = 7


FLAGS = Struct("=Q")
"""The data of MIGRATION: `MigrationFlag` bits."""

DEVICE_STATE = Struct("=Ii")
"""The data of MIG_DEVICE_STATE: a `MigrationState`, and a descriptor that vfio-user has no use for (-1)."""

LOGGING_START = Struct("=QII")
"""The data of DMA_LOGGING_START: page size in bytes, how many ranges follow, and nothing."""

LOGGED_RANGE = Struct("=QQ")
"""A range of DMA_LOGGING_START: IOVA and bytes."""

LOGGING_REPORT = Struct("=QQQ")
"""The data of DMA_LOGGING_REPORT: IOVA, bytes, page size; the reply goes on with the bitmap."""


class FeatureFlag(IntFlag):
    """Bits of `DeviceFeature.flags`: the feature's number, and what to do with it."""

    FEATURE_MASK = 0xFFFF
    GET = 1 << 16
    SET = 1 << 17
    PROBE = 1 << 18


@dataclass(slots=True)
class DeviceFeature(Message):
    """DEVICE_FEATURE, request and reply: reads, sets or probes one feature."""

    argsz: int
    flags: int
    data: bytes = b""

    def encode(self) -> bytes:
        """The 8 bytes of the fields, then the feature's data."""
        return pack(PREFIX, self.argsz, self.flags) + self.data

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if it, or its argsz, is too short."""
        argsz, flags = unpack_argsz(PREFIX, data, "DEVICE_FEATURE")
        return cls(argsz, flags, bytes(data[PREFIX.size :]))


@dataclass(slots=True)
class DirtyPages(Message):
    """DIRTY_PAGES: gone from the specification, its number kept."""

    argsz: int
    flags: int
    data: bytes = b""

    def encode(self) -> bytes:
        """The 8 bytes of the fields, then the data."""
        return pack(PREFIX, self.argsz, self.flags) + self.data

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if it, or its argsz, is too short."""
        argsz, flags = unpack_argsz(PREFIX, data, "DIRTY_PAGES")
        return cls(argsz, flags, bytes(data[PREFIX.size :]))


@dataclass(slots=True)
class MigDataRead(Message):
    """MIG_DATA_READ: up to ``size`` bytes of the device's migration stream."""

    argsz: int
    size: int

    @property
    def transfer(self) -> int:
        """Bytes asked for."""
        return self.size

    def encode(self) -> bytes:
        """The 8 bytes of the payload."""
        return pack(PREFIX, self.argsz, self.size)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if its argsz has no room for ``size`` bytes."""
        argsz, size = unpack_argsz(PREFIX, data, "MIG_DATA_READ")
        if argsz < PREFIX.size + size:
            raise RemoteProtocolError(f"MIG_DATA_READ asks for {size} bytes, its argsz is {argsz}")
        return cls(argsz, size)


def _data(data: Buffer, name: str) -> tuple[int, int, bytes]:
    argsz, size = unpack_argsz(PREFIX, data, name)
    if len(data) < PREFIX.size + size:
        raise RemoteProtocolError(f"{name} announces {size} bytes but carries {len(data) - PREFIX.size}")
    return argsz, size, bytes(data[PREFIX.size : PREFIX.size + size])


@dataclass(slots=True)
class MigDataReadReply(Message):
    """The reply to MIG_DATA_READ: ``size`` bytes of ``data``; fewer than asked for at the end.

    ``padding`` bytes of nothing may follow, as with libvfio-user.
    """

    argsz: int
    size: int
    data: bytes
    padding: int = 0

    def encode(self) -> bytes:
        """The 8 bytes of the fields, then the data."""
        if len(self.data) != self.size:
            raise wrong_length(self.size, self.data, "the reply to MIG_DATA_READ")
        return pack(PREFIX, self.argsz, self.size) + self.data + bytes(self.padding)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if there is less data than announced."""
        return cls(*_data(data, "the reply to MIG_DATA_READ"))


@dataclass(slots=True)
class MigDataWrite(Message):
    """MIG_DATA_WRITE: the next ``size`` bytes of a migration stream."""

    argsz: int
    size: int
    data: bytes

    @property
    def transfer(self) -> int:
        """Bytes carried."""
        return self.size

    def encode(self) -> bytes:
        """The 8 bytes of the fields, then the data."""
        if len(self.data) != self.size:
            raise wrong_length(self.size, self.data, "MIG_DATA_WRITE")
        return pack(PREFIX, self.argsz, self.size) + self.data

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if there is less data than announced."""
        return cls(*_data(data, "MIG_DATA_WRITE"))
