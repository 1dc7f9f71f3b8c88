"""The payloads about regions: what a region is, and reading and writing it.

vfio-user specification, "VFIO_USER_DEVICE_GET_REGION_INFO" to "VFIO_USER_REGION_WRITE_MULTI".
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntFlag
from struct import Struct
from typing import ClassVar, Self

from outboard.errors import LocalProtocolError, RemoteProtocolError
from outboard.protocol.wire import Buffer, Message, pack, unpack, unpack_argsz, unpack_exact, wrong_length

MULTI_WRITE_DATA = 8


class RegionFlag(IntFlag):
    """Bits of `RegionInfo.flags`."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    CAPS = 1 << 3


@dataclass(slots=True, frozen=True)
class Area:
    """A part of a region that may be mapped: byte offset in the region, and size."""

    LAYOUT: ClassVar[Struct] = Struct("=QQ")

    offset: int
    size: int


@dataclass(slots=True)
class RegionInfo(Message):
    """DEVICE_GET_REGION_INFO, request (only argsz and index count) and reply.

    ``size`` is the region's in bytes, ``offset`` where it starts in the descriptor the reply carries.
    ``areas`` are the parts that may be mapped; with areas, ``cap_offset`` is `AREAS_OFFSET`.
    """

    LAYOUT: ClassVar[Struct] = Struct("=IIIIQQ")
    CAPABILITY: ClassVar[Struct] = Struct("=HHI")
    SPARSE_MMAP: ClassVar[Struct] = Struct("=HHIII")
    SPARSE_MMAP_ID: ClassVar[int] = 1
    AREAS_OFFSET: ClassVar[int] = LAYOUT.size

    argsz: int
    flags: int
    index: int
    cap_offset: int
    size: int
    offset: int
    areas: tuple[Area, ...] = ()

    @property
    def needed(self) -> int:
        """The argsz that has room for the whole reply, areas included."""
        if not self.areas:
            return self.LAYOUT.size
        return self.LAYOUT.size + self.SPARSE_MMAP.size + Area.LAYOUT.size * len(self.areas)

    def fitted(self, argsz: int) -> Self:
        """The reply a requester with room for ``argsz`` bytes may have: whole, or without areas.

        >>> info = RegionInfo(0, RegionFlag.READ | RegionFlag.MMAP, 0, 0, 0x2000, 0, (Area(0x1000, 0x1000),))
        >>> whole, cut = info.fitted(64), info.fitted(32)
        >>> (whole.argsz, whole.cap_offset, len(whole.areas)), (cut.argsz, cut.cap_offset, cut.areas)
        ((64, 32, 1), (64, 0, ()))
        """
        flags, cap_offset, areas = self.flags & ~RegionFlag.CAPS, 0, self.areas
        if areas and argsz >= self.needed:
            flags, cap_offset = flags | RegionFlag.CAPS, self.AREAS_OFFSET
        else:
            areas = ()
        return replace(self, argsz=self.needed, flags=int(flags), cap_offset=cap_offset, areas=areas)

    def encode(self) -> bytes:
        """The 32 bytes of the fields, then the areas as a sparse-mmap capability."""
        fields = pack(
            self.LAYOUT, self.argsz, self.flags, self.index, self.cap_offset, self.size, self.offset
        )
        if not self.areas:
            return fields
        if self.cap_offset != self.AREAS_OFFSET:
            raise LocalProtocolError(f"areas are at offset {self.AREAS_OFFSET}, not {self.cap_offset}")
        capability = pack(self.SPARSE_MMAP, self.SPARSE_MMAP_ID, 1, 0, len(self.areas), 0)
        return b"".join((fields, capability, *(pack(Area.LAYOUT, a.offset, a.size) for a in self.areas)))

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if a capability loops or leaves the payload."""
        name = "DEVICE_GET_REGION_INFO"
        argsz, flags, index, cap_offset, size, offset = unpack_argsz(cls.LAYOUT, data, name)
        areas: tuple[Area, ...] = ()
        truncated = len(data) < argsz  # the sender had to leave the capabilities out
        if flags & RegionFlag.CAPS and cap_offset and not truncated:
            for at, identifier in cls._capabilities(data, cap_offset):
                if identifier == cls.SPARSE_MMAP_ID:
                    areas = cls._areas(data, at)
        return cls(argsz, flags, index, cap_offset, size, offset, areas)

    @classmethod
    def _capabilities(cls, data: Buffer, at: int) -> Iterator[tuple[int, int]]:
        seen = set()
        while at:
            if at in seen or at < cls.LAYOUT.size or at + cls.CAPABILITY.size > len(data):
                raise RemoteProtocolError(
                    f"a region capability is at offset {at}: met before, or outside of the {len(data)} bytes"
                )
            seen.add(at)
            identifier, _, following = cls.CAPABILITY.unpack_from(data, at)
            yield at, identifier
            at = following

    @classmethod
    def _areas(cls, data: Buffer, at: int) -> tuple[Area, ...]:
        start = at + cls.SPARSE_MMAP.size
        if start > len(data):
            raise RemoteProtocolError(f"the sparse-mmap capability at offset {at} is cut short")
        count = cls.SPARSE_MMAP.unpack_from(data, at)[3]
        end = start + count * Area.LAYOUT.size
        if end > len(data):
            raise RemoteProtocolError(
                f"{count} mappable areas do not fit in {len(data)} bytes of region info"
            )
        return tuple(Area(*fields) for fields in Area.LAYOUT.iter_unpack(data[start:end]))


@dataclass(slots=True, frozen=True)
class IoSubRegion:
    """A part of a region served by a descriptor: an ioeventfd (type 0) or an ioregionfd (type 1)."""

    LAYOUT: ClassVar[Struct] = Struct("=QQIIIIQ")

    offset: int
    size: int
    fd_index: int
    type: int
    flags: int
    datamatch: int


@dataclass(slots=True)
class RegionIoFds(Message):
    """DEVICE_GET_REGION_IO_FDS, request (flags and count 0) and reply.

    libvfio-user's sub-regions have 48 bytes where the specification has 40; both are read.
    """

    LAYOUT: ClassVar[Struct] = Struct("=IIII")
    HEAD: ClassVar[Struct] = Struct("=QQIII")
    SIZES: ClassVar[tuple[int, ...]] = (40, 48)

    argsz: int
    flags: int
    index: int
    count: int
    sub_regions: tuple[IoSubRegion, ...] = ()

    def encode(self) -> bytes:
        """The 16 bytes of the fields, then 40 bytes a sub-region."""
        fields = pack(self.LAYOUT, self.argsz, self.flags, self.index, self.count)
        subs = (
            pack(IoSubRegion.LAYOUT, s.offset, s.size, s.fd_index, s.type, s.flags, 0, s.datamatch)
            for s in self.sub_regions
        )
        return fields + b"".join(subs)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if the sub-regions are not ``count`` whole ones."""
        argsz, flags, index, count = unpack_argsz(cls.LAYOUT, data, "DEVICE_GET_REGION_IO_FDS")
        subs = data[cls.LAYOUT.size : argsz]
        if not subs or not count or len(data) < argsz:
            return cls(argsz, flags, index, count)
        size = len(subs) // count
        if size not in cls.SIZES or size * count != len(subs):
            raise RemoteProtocolError(f"{len(subs)} bytes do not hold {count} sub-regions of 40 or 48 bytes")
        return cls(argsz, flags, index, count, tuple(cls._sub_regions(subs, size)))

    @classmethod
    def _sub_regions(cls, data: Buffer, size: int) -> Iterator[IoSubRegion]:
        datamatch = Struct("=Q")
        for at in range(0, len(data), size):
            (match,) = datamatch.unpack_from(data, at + size - datamatch.size)
            offset, length, fd_index, kind, flags = cls.HEAD.unpack_from(data, at)
            yield IoSubRegion(offset, length, fd_index, kind, flags, match)


ACCESS = Struct("=QII")


@dataclass(slots=True)
class RegionRead(Message):
    """REGION_READ: ``count`` bytes at byte ``offset`` of ``region``."""

    offset: int
    region: int
    count: int

    @property
    def transfer(self) -> int:
        """Bytes asked for."""
        return self.count

    def encode(self) -> bytes:
        """The 16 bytes of the payload."""
        return pack(ACCESS, self.offset, self.region, self.count)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError for any other length."""
        return cls(*unpack_exact(ACCESS, data, "REGION_READ"))


@dataclass(slots=True)
class RegionReadReply(Message):
    """The reply to REGION_READ: ``count`` bytes of ``data``."""

    offset: int
    region: int
    count: int
    data: bytes

    def encode(self) -> bytes:
        """The 16 bytes of the fields, then the data."""
        if len(self.data) != self.count:
            raise wrong_length(self.count, self.data, "the reply to REGION_READ")
        return pack(ACCESS, self.offset, self.region, self.count) + self.data

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if there is less data than announced."""
        offset, region, count = unpack(ACCESS, data, "the reply to REGION_READ")
        if len(data) < ACCESS.size + count:
            raise RemoteProtocolError(
                f"a read of region {region} answers {count} bytes but carries {len(data) - ACCESS.size}"
            )
        return cls(offset, region, count, bytes(data[ACCESS.size : ACCESS.size + count]))


@dataclass(slots=True)
class RegionWrite(Message):
    """REGION_WRITE: ``count`` bytes of ``data`` to byte ``offset`` of ``region``."""

    offset: int
    region: int
    count: int
    data: bytes

    @property
    def transfer(self) -> int:
        """Bytes carried."""
        return self.count

    def encode(self) -> bytes:
        """The 16 bytes of the fields, then the data."""
        if len(self.data) != self.count:
            raise wrong_length(self.count, self.data, "REGION_WRITE")
        return pack(ACCESS, self.offset, self.region, self.count) + self.data

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if the data is not exactly ``count`` bytes."""
        offset, region, count = unpack(ACCESS, data, "REGION_WRITE")
        if len(data) != ACCESS.size + count:
            raise RemoteProtocolError(
                f"a write to region {region} announces {count} bytes but carries {len(data) - ACCESS.size}"
            )
        return cls(offset, region, count, bytes(data[ACCESS.size :]))


@dataclass(slots=True)
class RegionWriteReply(Message):
    """The reply to REGION_WRITE: the request without its data."""

    offset: int
    region: int
    count: int

    def encode(self) -> bytes:
        """The 16 bytes of the payload."""
        return pack(ACCESS, self.offset, self.region, self.count)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if the payload is too short."""
        return cls(*unpack(ACCESS, data, "the reply to REGION_WRITE"))


@dataclass(slots=True, frozen=True)
class MultiWrite:
    """One write of a REGION_WRITE_MULTI: up to 8 bytes of ``data`` at ``offset`` of ``region``."""

    LAYOUT: ClassVar[Struct] = Struct("=QII8s")

    offset: int
    region: int
    data: bytes

    def encode(self) -> bytes:
        """The 24 bytes of one write. Raises LocalProtocolError for more than 8 bytes of data."""
        if len(self.data) > MULTI_WRITE_DATA:
            raise LocalProtocolError(
                f"one write of a REGION_WRITE_MULTI has {len(self.data)} bytes, 8 at most"
            )
        return pack(ACCESS, self.offset, self.region, len(self.data)) + self.data.ljust(
            MULTI_WRITE_DATA, b"\0"
        )


@dataclass(slots=True)
class RegionWriteMulti(Message):
    """REGION_WRITE_MULTI: small writes, done in order."""

    COUNT: ClassVar[Struct] = Struct("=Q")

    writes: tuple[MultiWrite, ...]

    def encode(self) -> bytes:
        """The number of writes, then 24 bytes each."""
        return pack(self.COUNT, len(self.writes)) + b"".join(write.encode() for write in self.writes)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if count and length differ, or a write is over 8 bytes."""
        (count,) = unpack(cls.COUNT, data, "REGION_WRITE_MULTI")
        room = len(data) - cls.COUNT.size
        if count * MultiWrite.LAYOUT.size != room:
            raise RemoteProtocolError(
                f"REGION_WRITE_MULTI announces {count} writes in {room} bytes, 24 bytes each"
            )
        writes = []
        for offset, region, size, content in MultiWrite.LAYOUT.iter_unpack(data[cls.COUNT.size :]):
            if size > MULTI_WRITE_DATA:
                raise RemoteProtocolError(f"one write of a REGION_WRITE_MULTI has {size} bytes, 8 at most")
            writes.append(MultiWrite(offset, region, content[:size]))
        return cls(tuple(writes))


@dataclass(slots=True)
class RegionWriteMultiReply(Message):
    """The reply to REGION_WRITE_MULTI: how many writes were done."""

    LAYOUT: ClassVar[Struct] = Struct("=Q")

    count: int

    def encode(self) -> bytes:
        """The 8 bytes of the payload."""
        return pack(self.LAYOUT, self.count)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if the payload is too short."""
        return cls(*unpack(cls.LAYOUT, data, "the reply to REGION_WRITE_MULTI"))
