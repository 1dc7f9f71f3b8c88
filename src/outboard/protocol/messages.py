"""The payloads of all messages: one dataclass each, its layout beside it.

vfio-user specification, "VFIO-user Commands". Here are the version, the device, its regions and its
interrupts; `dma_messages` and `migration_messages` hold the others, and this module has them all.
Flags are plain integers on the messages; the flag classes name their bits.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import ClassVar, Self

from outboard.errors import RemoteProtocolError
from outboard.protocol.capabilities import Capabilities
from outboard.protocol.dma_messages import (
    Bitmap,
    DmaLayout,
    DmaMap,
    DmaMapFlag,
    DmaRead,
    DmaReadReply,
    DmaTransfer,
    DmaUnmap,
    DmaUnmapFlag,
    DmaWrite,
    DmaWriteReply,
)
from outboard.protocol.migration_messages import (
    DeviceFeature,
    DirtyPages,
    Feature,
    FeatureFlag,
    MigDataRead,
    MigDataReadReply,
    MigDataWrite,
    MigrationFlag,
    MigrationState,
)
from outboard.protocol.region_messages import (
    Area,
    IoFdFlag,
    IoFdsLayout,
    IoFdType,
    IoSubRegion,
    MultiWrite,
    RegionFlag,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiReply,
    RegionWriteReply,
)
from outboard.protocol.wire import Buffer, Command, Message, pack, unpack, unpack_argsz

__all__ = [
    "Area",
    "Bitmap",
    "Command",
    "DeviceFeature",
    "DeviceFlag",
    "DeviceInfo",
    "DeviceReset",
    "DirtyPages",
    "DmaLayout",
    "DmaMap",
    "DmaMapFlag",
    "DmaRead",
    "DmaReadReply",
    "DmaTransfer",
    "DmaUnmap",
    "DmaUnmapFlag",
    "DmaWrite",
    "DmaWriteReply",
    "Empty",
    "Feature",
    "FeatureFlag",
    "IoFdFlag",
    "IoFdType",
    "IoFdsLayout",
    "IoSubRegion",
    "IrqFlag",
    "IrqIndex",
    "IrqInfo",
    "Message",
    "MigDataRead",
    "MigDataReadReply",
    "MigDataWrite",
    "MigrationFlag",
    "MigrationState",
    "MultiWrite",
    "RegionFlag",
    "RegionInfo",
    "RegionIoFds",
    "RegionRead",
    "RegionReadReply",
    "RegionWrite",
    "RegionWriteMulti",
    "RegionWriteMultiReply",
    "RegionWriteReply",
    "SetIrqs",
    "SetIrqsFlag",
    "Version",
]


class DeviceFlag(IntFlag):
    """Bits of `DeviceInfo.flags`."""

    RESET = 1 << 0
    PCI = 1 << 1


class IrqIndex(IntEnum):
    """The interrupt indexes of a PCI device."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class IrqFlag(IntFlag):
    """Bits of `IrqInfo.flags`."""

    EVENTFD = 1 << 0
    MASKABLE = 1 << 1
    AUTOMASKED = 1 << 2
    NORESIZE = 1 << 3


class SetIrqsFlag(IntFlag):
    """Bits of `SetIrqs.flags`: one kind of data and one action."""

    DATA_NONE = 1 << 0
    DATA_BOOL = 1 << 1
    DATA_EVENTFD = 1 << 2
    MASK = 1 << 3
    UNMASK = 1 << 4
    TRIGGER = 1 << 5


@dataclass(slots=True)
class Empty(Message):
    """A reply that is only a header."""

    def encode(self) -> bytes:
        """No bytes."""
        return b""

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """Any payload: libvfio-user echoes some requests where only a header is due."""
        return cls()


@dataclass(slots=True)
class DeviceReset(Message):
    """DEVICE_RESET: puts the device into its state after power-on. It has no payload."""

    def encode(self) -> bytes:
        """No bytes."""
        return b""

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if there is a payload."""
        if len(data):
            raise RemoteProtocolError(f"DEVICE_RESET has {len(data)} bytes of payload, it takes none")
        return cls()


@dataclass(slots=True)
class Version(Message):
    """VERSION, request and reply. ``capabilities`` is None where the peer sent no JSON (SPDK)."""

    LAYOUT: ClassVar[Struct] = Struct("=HH")

    major: int
    minor: int
    capabilities: Capabilities | None

    def encode(self) -> bytes:
        """The two numbers, then the JSON text with its NUL."""
        text = b"" if self.capabilities is None else self.capabilities.encode()
        return pack(self.LAYOUT, self.major, self.minor) + text

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError for bad JSON or values no peer can mean."""
        major, minor = unpack(cls.LAYOUT, data, "VERSION")
        text = bytes(data[cls.LAYOUT.size :])
        return cls(major, minor, Capabilities.decode(text) if text else None)


@dataclass(slots=True)
class DeviceInfo(Message):
    """DEVICE_GET_INFO, request (counts and flags 0) and reply."""

    LAYOUT: ClassVar[Struct] = Struct("=IIII")

    argsz: int
    flags: int
    num_regions: int
    num_irqs: int

    def encode(self) -> bytes:
        """The 16 bytes of the payload."""
        return pack(self.LAYOUT, self.argsz, self.flags, self.num_regions, self.num_irqs)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if it, or its argsz, is too short."""
        return cls(*unpack_argsz(cls.LAYOUT, data, "DEVICE_GET_INFO"))


@dataclass(slots=True)
class IrqInfo(Message):
    """DEVICE_GET_IRQ_INFO, request (flags and count 0) and reply: ``count`` vectors at ``index``."""

    LAYOUT: ClassVar[Struct] = Struct("=IIII")

    argsz: int
    flags: int
    index: int
    count: int

    def encode(self) -> bytes:
        """The 16 bytes of the payload."""
        return pack(self.LAYOUT, self.argsz, self.flags, self.index, self.count)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if it, or its argsz, is too short."""
        return cls(*unpack_argsz(cls.LAYOUT, data, "DEVICE_GET_IRQ_INFO"))


@dataclass(slots=True)
class SetIrqs(Message):
    """DEVICE_SET_IRQS: acts on the vectors ``start`` to ``start + count`` of ``index``.

    ``data`` is whatever follows the fields: one byte a vector for DATA_BOOL, nothing otherwise.
    Whether it, the flags and the descriptors fit together is for the interrupts to say.
    """

    LAYOUT: ClassVar[Struct] = Struct("=IIIII")

    argsz: int
    flags: int
    index: int
    start: int
    count: int
    data: bytes = b""

    def encode(self) -> bytes:
        """The 20 bytes of the fields, then the data."""
        return pack(self.LAYOUT, self.argsz, self.flags, self.index, self.start, self.count) + self.data

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if it, or its argsz, is too short."""
        argsz, flags, index, start, count = unpack_argsz(cls.LAYOUT, data, "DEVICE_SET_IRQS")
        return cls(argsz, flags, index, start, count, bytes(data[cls.LAYOUT.size :]))
