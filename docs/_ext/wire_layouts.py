"""How each message lies on the wire, field by field: taken from the classes that encode and decode it.

`LAYOUTS` has the structures by name. `annotate` takes a message apart: which bytes are which field, and
what they say. The tables and the captures of the documentation are both made from this, so that neither
can say anything the code does not do.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from struct import Struct

from outboard.errors import RemoteProtocolError
from outboard.protocol import migration_messages as migration
from outboard.protocol.codec import Header
from outboard.protocol.messages import (
    Area,
    Bitmap,
    Command,
    DeviceFeature,
    DeviceFlag,
    DeviceInfo,
    DmaMap,
    DmaMapFlag,
    DmaTransfer,
    DmaUnmap,
    DmaUnmapFlag,
    Empty,
    Feature,
    FeatureFlag,
    IoFdsLayout,
    IoFdType,
    IoSubRegion,
    IrqFlag,
    IrqInfo,
    Message,
    MigDataRead,
    MigDataReadReply,
    MigDataWrite,
    MigrationFlag,
    MigrationState,
    MultiWrite,
    RegionFlag,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiReply,
    SetIrqs,
    SetIrqsFlag,
    Version,
)
from outboard.protocol.region_messages import ACCESS, IoFdFlag
from outboard.protocol.states import RULES
from outboard.protocol.wire import HEADER, HEADER_SIZE, HeaderFlag
from outboard.trace.registers import flag_names, region_name
from outboard.trace.words import irq_name

CODE = re.compile(r"(\d*)([a-zA-Z])")
HEXADECIMAL = {"address", "offset", "fd_offset", "datamatch", "shadow_offset", "iova"}
NUMBERS = {1, 2, 4, 8}
ROW = 8
"""Bytes shown on one line."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a structure; ``says`` puts its number in words."""

    name: str
    offset: int
    size: int
    says: Callable[[int], str] | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of a message: where in the payload (None: in the header), what they are, what they say."""

    offset: int | None
    data: bytes
    name: str
    says: str


def flags(kind: type[IntFlag]) -> Callable[[int], str]:
    """What the bits of a flag field are called."""
    return lambda value: f"{value:#x} {flag_names(kind, value)}" if value else "0"


def named(kind: type[IntEnum]) -> Callable[[int], str]:
    """What a number is called."""
    return lambda value: f"{value} {kind(value).name}" if value in set(kind) else str(value)


def feature_flags(value: int) -> str:
    """The number of a feature and what is done with it."""
    feature, rest = value & FeatureFlag.FEATURE_MASK, value & ~FeatureFlag.FEATURE_MASK
    return f"{value:#x} {flag_names(FeatureFlag, rest)}, feature {named(Feature)(feature)}"


def header_flags(value: int) -> str:
    """Type, and the two bits."""
    kind = "reply" if value & HeaderFlag.REPLY else "command"
    bits = [name for bit, name in ((0x10, "No_reply"), (0x20, "Error")) if value & bit]
    return f"{value:#x} {', '.join([kind, *bits])}"


def structure(
    layout: Struct, names: str | type, says: Mapping[str, Callable[[int], str]] | None = None
) -> tuple[Field, ...]:
    """The fields of ``layout``; ``names`` are words, or a dataclass that has them in its order."""
    words = names.split() if isinstance(names, str) else [field.name for field in fields(names)]
    taken, offset, result = iter(words), 0, []
    for count, code in CODE.findall(layout.format):
        whole = code in "xs"
        for _ in range(1 if whole else int(count or 1)):
            size = int(count or 1) if whole else Struct("=" + code).size
            name = "(padding)" if code == "x" else next(taken)
            result.append(Field(name, offset, size, (says or {}).get(name)))
            offset += size
    return tuple(result)


def region(value: int) -> str:
    """A region's index."""
    return f"{value} {region_name(value)}"


def interrupt(value: int) -> str:
    """An interrupt's index."""
    return f"{value} {irq_name(value)}"


def signed(value: int) -> str:
    """A number of 32 bits that may be negative."""
    return str(value - (value >> 31 << 32))


ACCESS_FIELDS = structure(ACCESS, RegionRead, {"region": region})
CAPABILITY = "id version next nr_areas reserved"

LAYOUTS: dict[str, tuple[Field, ...]] = {
    "Header": structure(HEADER, Header, {"command": named(Command), "flags": header_flags}),
    "Version": structure(Version.LAYOUT, Version),
    "DeviceInfo": structure(DeviceInfo.LAYOUT, DeviceInfo, {"flags": flags(DeviceFlag)}),
    "RegionInfo": structure(RegionInfo.LAYOUT, RegionInfo, {"flags": flags(RegionFlag), "index": region}),
    "Capability": structure(RegionInfo.CAPABILITY, CAPABILITY),
    "SparseMmap": structure(RegionInfo.SPARSE_MMAP, CAPABILITY),
    "Area": structure(Area.LAYOUT, Area, {"size": hex}),
    "RegionIoFds": structure(RegionIoFds.LAYOUT, RegionIoFds, {"index": region}),
    "IoSubRegion40": structure(
        IoSubRegion.LAYOUTS[IoFdsLayout.SPEC],
        "offset size fd_index type flags datamatch",
        {"type": named(IoFdType), "flags": flags(IoFdFlag)},
    ),
    "IoSubRegion48": structure(
        IoSubRegion.LAYOUTS[IoFdsLayout.LIBVFIO_USER],
        "offset size fd_index type flags shadow_fd_index shadow_offset datamatch",
        {"type": named(IoFdType), "flags": flags(IoFdFlag)},
    ),
    "IrqInfo": structure(IrqInfo.LAYOUT, IrqInfo, {"flags": flags(IrqFlag), "index": interrupt}),
    "SetIrqs": structure(SetIrqs.LAYOUT, SetIrqs, {"flags": flags(SetIrqsFlag), "index": interrupt}),
    "RegionRead": ACCESS_FIELDS,
    "RegionReadReply": ACCESS_FIELDS,
    "RegionWrite": ACCESS_FIELDS,
    "RegionWriteReply": ACCESS_FIELDS,
    "RegionWriteMulti": structure(RegionWriteMulti.COUNT, "count"),
    "MultiWrite": structure(MultiWrite.LAYOUT, "offset region count data", {"region": region}),
    "RegionWriteMultiReply": structure(RegionWriteMultiReply.LAYOUT, RegionWriteMultiReply),
    "DmaMap": structure(DmaMap.LAYOUT, DmaMap, {"flags": flags(DmaMapFlag)}),
    "DmaUnmap": structure(DmaUnmap.LAYOUT, DmaUnmap, {"flags": flags(DmaUnmapFlag)}),
    "Bitmap": structure(Bitmap.LAYOUT, Bitmap),
    "DmaTransfer": structure(DmaTransfer.SPEC, "address count"),
    "DmaTransferQemu10": structure(DmaTransfer.SHORT, "address count"),
    "DeviceFeature": structure(migration.PREFIX, DeviceFeature, {"flags": feature_flags}),
    "MigrationFlags": structure(migration.FLAGS, "flags", {"flags": flags(MigrationFlag)}),
    "DeviceState": structure(
        migration.DEVICE_STATE,
        "device_state data_fd",
        {"device_state": named(MigrationState), "data_fd": signed},
    ),
    "LoggingStart": structure(migration.LOGGING_START, "page_size num_ranges reserved"),
    "LoggedRange": structure(migration.LOGGED_RANGE, "iova length"),
    "LoggingReport": structure(migration.LOGGING_REPORT, "iova length page_size"),
    "MigDataRead": structure(migration.PREFIX, MigDataRead),
    "MigDataReadReply": structure(migration.PREFIX, MigDataRead),
    "MigDataWrite": structure(migration.PREFIX, MigDataRead),
}
"""Every structure, by the name of its class where it has one of its own."""

FEATURE_DATA: dict[int, str] = {
    Feature.MIGRATION: "MigrationFlags",
    Feature.MIG_DEVICE_STATE: "DeviceState",
    Feature.DMA_LOGGING_START: "LoggingStart",
    Feature.DMA_LOGGING_REPORT: "LoggingReport",
}


def size_of(name: str) -> int:
    """Bytes of the structure ``name``."""
    last = LAYOUTS[name][-1]
    return last.offset + last.size


def annotate(data: bytes) -> list[Part]:
    """The parts of one whole message, header first; together they are the message."""
    parts = [
        Part(None, part.data, part.name, part.says) for part in fields_in("Header", data[:HEADER_SIZE], 0)
    ]
    payload, at = data[HEADER_SIZE:], 0
    for name, size in walk(data):
        if name in LAYOUTS:
            parts += fields_in(name, payload[at : at + size], at)
        elif size:
            parts.append(Part(at, payload[at : at + size], name, ""))
        at += size
    if at < len(payload):
        parts.append(Part(at, payload[at:], "(not used)", ""))
    return parts


def fields_in(name: str, data: bytes, start: int) -> Iterator[Part]:
    """The fields of one structure; ``start`` is where in the payload it begins."""
    for field in LAYOUTS[name]:
        raw = data[field.offset : field.offset + field.size]
        yield Part(start + field.offset, raw, field.name, in_words(field, raw))


def in_words(field: Field, raw: bytes) -> str:
    """What a field says."""
    if len(raw) not in NUMBERS or field.name in ("data", "(padding)"):
        return ""
    value = int.from_bytes(raw, "little")
    if field.says is not None:
        return field.says(value)
    if field.name in HEXADECIMAL:
        return f"{value:#x}"
    return f"{value:#x} ({value})" if value >= 0x1000 else str(value)


def walk(data: bytes) -> Iterator[tuple[str, int]]:
    """The structures (by name) and other parts of the payload, in their order, each with its size."""
    header, payload = Header.decode(data), data[HEADER_SIZE:]
    rule = RULES[header.command]
    is_reply = bool(header.flags & HeaderFlag.REPLY)
    kind = rule.reply if is_reply else rule.request
    if not payload or kind is Empty:
        return
    if issubclass(kind, DmaTransfer):
        yield from walk_transfer(kind, payload)
        return
    yield kind.__name__, size_of(kind.__name__)
    rest = payload[size_of(kind.__name__) :]
    if kind is Version:
        yield "json", len(rest)
    elif kind is RegionInfo:
        yield from walk_region_info(RegionInfo.decode(payload))
    elif kind is RegionIoFds:
        info = RegionIoFds.decode(payload)
        name = "IoSubRegion40" if info.layout is IoFdsLayout.SPEC else "IoSubRegion48"
        yield from ((name, info.layout.value) for _ in info.sub_regions)
    elif kind is RegionWriteMulti:
        each = size_of("MultiWrite")
        yield from (("MultiWrite", each) for _ in range(len(rest) // each))
    elif kind is DmaUnmap and rest:
        yield "Bitmap", size_of("Bitmap")
        yield "bitmap", len(rest) - size_of("Bitmap")
    elif kind is DeviceFeature:
        yield from walk_feature(int.from_bytes(payload[4:8], "little"), rest)
    elif kind is MigDataReadReply:
        yield "data", MigDataReadReply.decode(payload).size
    elif kind in (RegionReadReply, RegionWrite, SetIrqs, MigDataWrite):
        yield "data", len(rest)


def walk_region_info(info: RegionInfo) -> Iterator[tuple[str, int]]:
    """What follows the fixed part of a region's description."""
    if info.areas:
        yield "SparseMmap", size_of("SparseMmap")
        yield from (("Area", size_of("Area")) for _ in info.areas)


def walk_transfer(kind: type[Message], payload: bytes) -> Iterator[tuple[str, int]]:
    """DMA by message, in whichever of its two layouts it is."""
    try:
        kind.decode(payload)
        name = "DmaTransfer"
    except RemoteProtocolError:
        name = "DmaTransferQemu10"
    count = int.from_bytes(payload[8:12], "little")
    yield name, size_of(name)
    yield "data", min(count, len(payload) - size_of(name))


def walk_feature(flags: int, data: bytes) -> Iterator[tuple[str, int]]:
    """The data of a feature."""
    name = FEATURE_DATA.get(flags & int(FeatureFlag.FEATURE_MASK))
    if name is None or len(data) < size_of(name):
        yield "data", len(data)
        return
    yield name, size_of(name)
    rest = len(data) - size_of(name)
    if name == "LoggingStart":
        each = size_of("LoggedRange")
        yield from (("LoggedRange", each) for _ in range(rest // each))
    else:
        yield "bitmap", rest
