"""The payloads about features and migration, and DIRTY_PAGES of older drafts.

vfio-user specification, "VFIO_USER_DEVICE_FEATURE", "VFIO_USER_MIG_DATA_READ" and "..._WRITE". What a
feature's data means is for the session to say.
"""

from dataclasses import dataclass
from enum import IntFlag
from struct import Struct
from typing import Self

from outboard.errors import RemoteProtocolError
from outboard.protocol.wire import Buffer, Message, pack, unpack_argsz, wrong_length

PREFIX = Struct("=II")


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
    """The reply to MIG_DATA_READ: ``size`` bytes of ``data``; fewer than asked for at the end."""

    argsz: int
    size: int
    data: bytes

    def encode(self) -> bytes:
        """The 8 bytes of the fields, then the data."""
        if len(self.data) != self.size:
            raise wrong_length(self.size, self.data, "the reply to MIG_DATA_READ")
        return pack(PREFIX, self.argsz, self.size) + self.data

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
