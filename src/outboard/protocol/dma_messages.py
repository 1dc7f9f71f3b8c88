"""The payloads about guest memory: which ranges the device may reach, and access by message.

vfio-user specification, "VFIO_USER_DMA_MAP", "VFIO_USER_DMA_UNMAP", "VFIO_USER_DMA_READ" and
"VFIO_USER_DMA_WRITE". QEMU 10.1 lays the last two out differently: see `DmaLayout`.
"""

from dataclasses import dataclass
from enum import Enum, IntFlag
from struct import Struct
from typing import ClassVar, Self

from outboard.errors import RemoteProtocolError
from outboard.protocol.wire import Buffer, Message, pack, unpack, unpack_argsz, unpack_exact, wrong_length


class DmaLayout(Enum):
    """How DMA_READ and DMA_WRITE lie on the wire.

    SPEC counts in 64 bits, so data begins at byte 16 of the payload. QEMU10 counts in 32 bits: data
    begins at byte 12, four stray bytes end the payload, and the reply to a write is only a header.
    """

    SPEC = "spec"
    QEMU10 = "qemu10"


class DmaMapFlag(IntFlag):
    """Bits of `DmaMap.flags`: what the device may do, and how it is to reach the descriptor."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    FILE_IO = 1 << 3


class DmaUnmapFlag(IntFlag):
    """Bits of `DmaUnmap.flags`."""

    DIRTY_BITMAP = 1 << 0
    ALL = 1 << 1


@dataclass(slots=True)
class DmaMap(Message):
    """DMA_MAP: ``size`` bytes at guest ``address``, from byte ``offset`` of the descriptor, if one came."""

    LAYOUT: ClassVar[Struct] = Struct("=IIQQQ")

    argsz: int
    flags: int
    offset: int
    address: int
    size: int

    def encode(self) -> bytes:
        """The 32 bytes of the payload."""
        return pack(self.LAYOUT, self.argsz, self.flags, self.offset, self.address, self.size)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if it, or its argsz, is too short."""
        return cls(*unpack_argsz(cls.LAYOUT, data, "DMA_MAP"))


@dataclass(slots=True)
class Bitmap:
    """Dirty pages asked for with an unmap (older drafts): one bit a page of ``pgsize`` bytes.

    ``size`` is the bitmap's in bytes; ``data`` is empty in a request.
    """

    LAYOUT: ClassVar[Struct] = Struct("=QQ")

    pgsize: int
    size: int
    data: bytes = b""


@dataclass(slots=True)
class DmaUnmap(Message):
    """DMA_UNMAP, request and reply: forgets the range mapped at ``address`` with ``size`` bytes."""

    LAYOUT: ClassVar[Struct] = Struct("=IIQQ")

    argsz: int
    flags: int
    address: int
    size: int
    bitmap: Bitmap | None = None

    def encode(self) -> bytes:
        """The 24 bytes of the fields, then the bitmap if there is one."""
        fields = pack(self.LAYOUT, self.argsz, self.flags, self.address, self.size)
        if self.bitmap is None:
            return fields
        return fields + pack(Bitmap.LAYOUT, self.bitmap.pgsize, self.bitmap.size) + self.bitmap.data

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if it, its argsz or its bitmap is too short."""
        argsz, flags, address, size = unpack_argsz(cls.LAYOUT, data, "DMA_UNMAP")
        if not flags & DmaUnmapFlag.DIRTY_BITMAP:
            return cls(argsz, flags, address, size)
        rest = data[cls.LAYOUT.size :]
        pgsize, bitmap_size = unpack(Bitmap.LAYOUT, rest, "the dirty bitmap of DMA_UNMAP")
        return cls(
            argsz, flags, address, size, Bitmap(pgsize, bitmap_size, bytes(rest[Bitmap.LAYOUT.size :]))
        )


class DmaTransfer(Message):
    """A message whose place on the wire depends on the peer's `DmaLayout`."""

    __slots__ = ()

    SPEC: ClassVar[Struct] = Struct("=QQ")
    SHORT: ClassVar[Struct] = Struct("=QI")

    def encode(self, layout: DmaLayout = DmaLayout.SPEC) -> bytes:
        """The payload in ``layout``."""
        raise NotImplementedError

    @classmethod
    def decode(cls, data: Buffer, layout: DmaLayout = DmaLayout.SPEC) -> Self:
        """The message in ``layout``. Raises RemoteProtocolError if the payload cannot be one."""
        raise NotImplementedError


def _encode_data(address: int, data: bytes, layout: DmaLayout) -> bytes:
    if layout is DmaLayout.SPEC:
        return pack(DmaTransfer.SPEC, address, len(data)) + data
    return pack(DmaTransfer.SHORT, address, len(data)) + data + bytes(4)


def _decode_data(data: Buffer, layout: DmaLayout, name: str) -> tuple[int, int, bytes]:
    address, count = unpack(DmaTransfer.SPEC, data, name)
    start = DmaTransfer.SPEC.size
    room = len(data) - start
    if layout is DmaLayout.QEMU10:
        address, count = DmaTransfer.SHORT.unpack_from(data)
        start = DmaTransfer.SHORT.size
    if count != room:
        raise RemoteProtocolError(f"{name} announces {count} bytes of data but has room for {room}")
    return address, count, bytes(data[start : start + count])


@dataclass(slots=True)
class DmaRead(DmaTransfer):
    """DMA_READ: the device wants ``count`` bytes of guest memory at ``address``."""

    address: int
    count: int

    @property
    def transfer(self) -> int:
        """Bytes asked for."""
        return self.count

    def encode(self, layout: DmaLayout = DmaLayout.SPEC) -> bytes:
        """The 16 bytes of the payload: the same in both layouts, for counts are little-endian there."""
        return pack(self.SPEC, self.address, self.count)

    @classmethod
    def decode(cls, data: Buffer, layout: DmaLayout = DmaLayout.SPEC) -> Self:
        """The message. Raises RemoteProtocolError for any other length."""
        address, count = unpack_exact(cls.SPEC, data, "DMA_READ")
        return cls(address, count & 0xFFFF_FFFF if layout is DmaLayout.QEMU10 else count)


@dataclass(slots=True)
class DmaReadReply(DmaTransfer):
    """The reply to DMA_READ: ``count`` bytes of ``data``."""

    address: int
    count: int
    data: bytes

    def encode(self, layout: DmaLayout = DmaLayout.SPEC) -> bytes:
        """The fields, then the data where ``layout`` has it."""
        if len(self.data) != self.count:
            raise wrong_length(self.count, self.data, "the reply to DMA_READ")
        return _encode_data(self.address, self.data, layout)

    @classmethod
    def decode(cls, data: Buffer, layout: DmaLayout = DmaLayout.SPEC) -> Self:
        """The message. Raises RemoteProtocolError if the data is not exactly ``count`` bytes."""
        return cls(*_decode_data(data, layout, "the reply to DMA_READ"))


@dataclass(slots=True)
class DmaWrite(DmaTransfer):
    """DMA_WRITE: the device puts ``count`` bytes of ``data`` into guest memory at ``address``."""

    address: int
    count: int
    data: bytes

    @property
    def transfer(self) -> int:
        """Bytes carried."""
        return self.count

    def encode(self, layout: DmaLayout = DmaLayout.SPEC) -> bytes:
        """The fields, then the data where ``layout`` has it."""
        if len(self.data) != self.count:
            raise wrong_length(self.count, self.data, "DMA_WRITE")
        return _encode_data(self.address, self.data, layout)

    @classmethod
    def decode(cls, data: Buffer, layout: DmaLayout = DmaLayout.SPEC) -> Self:
        """The message. Raises RemoteProtocolError if the data is not exactly ``count`` bytes."""
        return cls(*_decode_data(data, layout, "DMA_WRITE"))


@dataclass(slots=True)
class DmaWriteReply(DmaTransfer):
    """The reply to DMA_WRITE. QEMU 10.1 sends only a header, which arrives as `Empty`."""

    address: int
    count: int

    def encode(self, layout: DmaLayout = DmaLayout.SPEC) -> bytes:
        """The 16 bytes of the payload; none for QEMU10."""
        return b"" if layout is DmaLayout.QEMU10 else pack(self.SPEC, self.address, self.count)

    @classmethod
    def decode(cls, data: Buffer, layout: DmaLayout = DmaLayout.SPEC) -> Self:
        """The message; drafts before 2026 count in 32 bits. Raises RemoteProtocolError if it is shorter."""
        if len(data) < cls.SPEC.size:
            return cls(*unpack(cls.SHORT, data, "the reply to DMA_WRITE"))
        return cls(*unpack(cls.SPEC, data, "the reply to DMA_WRITE"))
