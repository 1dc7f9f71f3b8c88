"""The payloads about regions: what a region is, and reading and writing it.

vfio-user specification, "VFIO_USER_DEVICE_GET_REGION_INFO" to "VFIO_USER_REGION_WRITE_MULTI".
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, IntEnum, IntFlag
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


class IoFdsLayout(Enum):
    """How a sub-region of `RegionIoFds` lies on the wire; the value is its size in bytes.

    libvfio-user has eight bytes more, for the shadow: where in shared memory a write lands.
    """

    SPEC = 40
    LIBVFIO_USER = 48


class IoFdType(IntEnum):
    """Values of `IoSubRegion.type`; the last is libvfio-user's own."""

    IOEVENTFD = 0
    IOREGIONFD = 1
    SHADOW_IOEVENTFD = 2


class IoFdFlag(IntFlag):
    """Bits of `IoSubRegion.flags`, as KVM_IOEVENTFD numbers them."""

    DATAMATCH = 1 << 0
    PIO = 1 << 1


@dataclass(slots=True, frozen=True)
class IoSubRegion:
    """A part of a region served by a descriptor: see `IoFdType`.

    ``fd_index`` and ``shadow_fd_index`` are places among the reply's descriptors. The two fields of the
    shadow are on the wire in libvfio-user's layout only.
    """

    LAYOUTS: ClassVar[dict[IoFdsLayout, Struct]] = {
        IoFdsLayout.SPEC: Struct("=QQIII4xQ"),
        IoFdsLayout.LIBVFIO_USER: Struct("=QQIIIIQQ"),
    }

    offset: int
    size: int
    fd_index: int
    type: int
    flags: int
    datamatch: int
    shadow_fd_index: int = 0
    shadow_offset: int = 0

    def encode(self, layout: IoFdsLayout) -> bytes:
        """The 40 or 48 bytes."""
        shadow = () if layout is IoFdsLayout.SPEC else (self.shadow_fd_index, self.shadow_offset)
        return pack(
            self.LAYOUTS[layout],
            self.offset,
            self.size,
            self.fd_index,
            self.type,
            self.flags,
            *shadow,
            self.datamatch,
        )

    @classmethod
    def decode_all(cls, data: Buffer, layout: IoFdsLayout) -> Iterator[Self]:
        """The sub-regions that make up `data`."""
        for offset, size, fd_index, kind, flags, *shadow, match in cls.LAYOUTS[layout].iter_unpack(data):
            yield cls(offset, size, fd_index, kind, flags, match, *shadow)


@dataclass(slots=True)
class RegionIoFds(Message):
    """DEVICE_GET_REGION_IO_FDS, request (flags and count 0) and reply.

    ``count`` may be more than there are sub-regions: then argsz says what room they need.
    """

    LAYOUT: ClassVar[Struct] = Struct("=IIII")

    argsz: int
    flags: int
    index: int
    count: int
    sub_regions: tuple[IoSubRegion, ...] = ()
    layout: IoFdsLayout = IoFdsLayout.SPEC

    def encode(self) -> bytes:
        """The 16 bytes of the fields, then 40 or 48 bytes a sub-region."""
        fields = pack(self.LAYOUT, self.argsz, self.flags, self.index, self.count)
        return fields + b"".join(sub.encode(self.layout) for sub in self.sub_regions)

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """The message. Raises RemoteProtocolError if the sub-regions are not ``count`` whole ones."""
        argsz, flags, index, count = unpack_argsz(cls.LAYOUT, data, "DEVICE_GET_REGION_IO_FDS")
        subs = data[cls.LAYOUT.size : argsz]
        if not subs or not count or len(data) < argsz:
            return cls(argsz, flags, index, count)
        sizes = {count * layout.value: layout for layout in IoFdsLayout}
        if len(subs) not in sizes:
            raise RemoteProtocolError(f"{len(subs)} bytes do not hold {count} sub-regions of 40 or 48 bytes")
        layout = sizes[len(subs)]
        return cls(argsz, flags, index, count, tuple(IoSubRegion.decode_all(subs, layout)), layout)


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
