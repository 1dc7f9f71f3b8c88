"""A message's payload in words, and as fields for programs.

vfio-user specification, "VFIO-user Commands". One function for each kind of payload gives both: what a
person reads, and names with values of the kinds JSON has (bytes as hexadecimal digits).
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import IntEnum
from struct import Struct
from typing import Any

from outboard.protocol.messages import (
    DeviceFeature,
    DeviceFlag,
    DeviceInfo,
    DirtyPages,
    DmaMap,
    DmaMapFlag,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaUnmapFlag,
    DmaWrite,
    DmaWriteReply,
    Empty,
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
    RegionFlag,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiReply,
    RegionWriteReply,
    SetIrqs,
    SetIrqsFlag,
    Version,
)
from outboard.protocol.migration_messages import (
    FLAGS,
    LOGGED_RANGE,
    LOGGING_REPORT,
    LOGGING_START,
    MigrationFlag,
    MigrationState,
)
from outboard.protocol.wire import Buffer, Command
from outboard.trace.registers import Registers, flag_names, region_name

Fields = dict[str, Any]
Words = tuple[str, Fields]
"""What a person reads, and what a program does."""

SHOWN = 16
"""How many bytes of longer data are shown to a person."""


class Feature(IntEnum):
    """The features of DEVICE_FEATURE as VFIO numbers them, those too that vfio-user has no use for."""

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


IRQ_NAMES = ("INTx", "MSI", "MSI-X", "ERR", "REQ")
IO_FD_TYPES = {0: "ioeventfd", 1: "ioregionfd", 2: "shadow ioeventfd"}


def words(message: Message, payload: Buffer, fds: int, registers: Registers, *, reply: bool) -> Words:
    """What ``message`` says; ``payload`` is what it was decoded from, ``fds`` came with it."""
    if isinstance(message, Version):
        return version(message, payload)
    if isinstance(message, DmaMap):
        return dma_map(message, fds)
    if isinstance(message, SetIrqs):
        return set_irqs(message, fds)
    if isinstance(message, RegionReadReply | RegionWrite):
        return region_data(message, registers)
    if isinstance(message, RegionRead | RegionWriteReply):
        return region_access(message, registers)
    if isinstance(message, RegionWriteMulti):
        return region_writes(message, registers)
    if not reply and isinstance(message, DeviceInfo | RegionInfo | RegionIoFds | IrqInfo):
        return question(message)
    describe = SAYERS.get(type(message))
    return describe(message) if describe is not None else ("", {})


def done(message: Empty) -> Words:
    """A reply that is only a header."""
    return "done", {}


def size(count: int) -> str:
    """A number of bytes with the largest unit that divides it.

    >>> size(0xA0000), size(1 << 30), size(33)
    ('640 KiB', '1 GiB', '33 bytes')
    """
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count and not count & ((1 << shift) - 1):
            return f"{count >> shift} {unit}"
    return f"{count} byte{'s' * (count != 1)}"


def span(start: int, count: int) -> str:
    """A range of addresses, its last byte included."""
    return f"{start:#x}..{start + count - 1:#x}" if count else f"{start:#x}"


def value(data: bytes) -> str:
    """Data: a register's as a number, longer data as the first bytes."""
    if len(data) in (1, 2, 4, 8):
        return f"{int.from_bytes(data, 'little'):#0{2 + 2 * len(data)}x}"
    if len(data) <= SHOWN:
        return data.hex(" ") or "nothing"
    return f"{data[:SHOWN].hex(' ')} ... ({size(len(data))})"


def named(kind: type[IntEnum], number: int) -> str:
    """The name of a number, or the number."""
    try:
        return kind(number).name
    except ValueError:
        return str(number)


def irq_name(index: int) -> str:
    """What an interrupt index is called."""
    return IRQ_NAMES[index] if index < len(IRQ_NAMES) else f"interrupt index {index}"


def version(message: Version, payload: Buffer) -> Words:
    """VERSION: the numbers and the JSON as it came."""
    text = bytes(payload[Version.LAYOUT.size :]).rstrip(b"\0").decode(errors="replace")
    fields: Fields = {"major": message.major, "minor": message.minor}
    with suppress(ValueError, RecursionError):  # no JSON at all is allowed
        fields["json"] = json.loads(text)
    return f"{message.major}.{message.minor} {text or '(no JSON)'}", fields


def dma_map(message: DmaMap, fds: int) -> Words:
    """DMA_MAP; without a descriptor the device reaches the memory by messages."""
    flags = flag_names(DmaMapFlag, message.flags)
    text = f"{span(message.address, message.size)} ({size(message.size)}) {flags}"
    text += f", from {message.offset:#x} of the descriptor" if fds else ", by messages"
    fields = {"address": message.address, "size": message.size, "offset": message.offset, "flags": flags}
    return text, fields


def dma_unmap(message: DmaUnmap) -> Words:
    """DMA_UNMAP, both ways."""
    fields: Fields = {"address": message.address, "size": message.size, "flags": message.flags}
    text = f"{span(message.address, message.size)} ({size(message.size)})"
    if message.flags:
        fields["flags"] = flag_names(DmaUnmapFlag, message.flags)
        text = "everything" if message.flags == DmaUnmapFlag.ALL else f"{text} {fields['flags']}"
    if message.bitmap is not None:
        fields |= {"page_size": message.bitmap.pgsize, "bitmap_size": message.bitmap.size}
        text += f", dirty bitmap of {message.bitmap.size} bytes, page size {message.bitmap.pgsize}"
    return text, fields


def question(message: DeviceInfo | RegionInfo | RegionIoFds | IrqInfo) -> Words:
    """A request for information: of what, and how much room there is for the answer."""
    room = {"argsz": message.argsz}
    if isinstance(message, DeviceInfo):
        return f"argsz {message.argsz}", room
    name = irq_name(message.index) if isinstance(message, IrqInfo) else region_name(message.index)
    key = "irq" if isinstance(message, IrqInfo) else "region"
    return f"{name}, argsz {message.argsz}", {key: message.index, **room}


def device_info(message: DeviceInfo) -> Words:
    """What DEVICE_GET_INFO answers."""
    flags = flag_names(DeviceFlag, message.flags)
    text = f"{flags}, {message.num_regions} regions, {message.num_irqs} interrupt indexes"
    return text, {"flags": flags, "num_regions": message.num_regions, "num_irqs": message.num_irqs}


def region_info(message: RegionInfo) -> Words:
    """What DEVICE_GET_REGION_INFO answers."""
    name, flags = region_name(message.index), flag_names(RegionFlag, message.flags)
    fields = {
        "region": message.index,
        "argsz": message.argsz,
        "flags": flags,
        "size": message.size,
        "offset": message.offset,
        "areas": [{"offset": area.offset, "size": area.size} for area in message.areas],
    }
    text = f"{name} {size(message.size)} {flags}" if message.size else f"{name} is not there"
    if message.offset:
        text += f", at {message.offset:#x} of the descriptor"
    if message.areas:
        text += ", mappable " + ", ".join(span(area.offset, area.size) for area in message.areas)
    return text, fields


def region_io_fds(message: RegionIoFds) -> Words:
    """What DEVICE_GET_REGION_IO_FDS answers."""
    said = [io_sub_region(sub, message.layout) for sub in message.sub_regions]
    text = f"{region_name(message.index)} {message.count} sub-region{'s' * (message.count != 1)}"
    text = "; ".join((text, *(each for each, _ in said)))
    subs = [fields for _, fields in said]
    return text, {
        "region": message.index,
        "argsz": message.argsz,
        "count": message.count,
        "sub_regions": subs,
    }


def io_sub_region(sub: IoSubRegion, layout: IoFdsLayout) -> Words:
    """One part of a region and what serves it; libvfio-user's layout says where a shadow lies."""
    kind = IO_FD_TYPES.get(sub.type, f"type {sub.type}")
    text = f"{span(sub.offset, sub.size)} {kind} in descriptor {sub.fd_index}"
    fields: Fields = {
        "offset": sub.offset,
        "size": sub.size,
        "fd_index": sub.fd_index,
        "type": kind,
        "flags": sub.flags,
        "datamatch": sub.datamatch,
    }
    if layout is IoFdsLayout.LIBVFIO_USER:
        fields |= {"shadow_fd_index": sub.shadow_fd_index, "shadow_offset": sub.shadow_offset}
        if sub.type == IoFdType.SHADOW_IOEVENTFD:
            text += f", writes to {sub.shadow_offset:#x} of descriptor {sub.shadow_fd_index}"
    return text, fields


def irq_info(message: IrqInfo) -> Words:
    """What DEVICE_GET_IRQ_INFO answers."""
    index, flags = irq_name(message.index), flag_names(IrqFlag, message.flags)
    return f"{index} {message.count} vector{'s' * (message.count != 1)} {flags}", {
        "irq": message.index,
        "flags": flags,
        "count": message.count,
    }


def set_irqs(message: SetIrqs, fds: int) -> Words:
    """DEVICE_SET_IRQS, its flags turned into what they ask for."""
    flags = flag_names(SetIrqsFlag, message.flags)
    fields: Fields = {
        "irq": message.index,
        "flags": flags,
        "start": message.start,
        "count": message.count,
        "argsz": message.argsz,
    }
    if message.data:
        fields["data"] = message.data.hex()
    index = irq_name(message.index)
    last = message.start + message.count - 1
    which = f"vector {message.start}" if message.count == 1 else f"vectors {message.start} to {last}"
    if message.data and message.flags & SetIrqsFlag.DATA_BOOL:
        chosen = [str(message.start + at) for at, byte in enumerate(message.data[: message.count]) if byte]
        which = f"vectors {', '.join(chosen)}" if chosen else "no vector"
    kinds = SetIrqsFlag.DATA_NONE | SetIrqsFlag.DATA_BOOL | SetIrqsFlag.DATA_EVENTFD
    action = IRQ_ACTIONS.get(message.flags & ~kinds)
    kind = message.flags & kinds
    if action is None or kind.bit_count() != 1:
        return f"{index} {which}: {flags}", fields
    if kind == SetIrqsFlag.DATA_EVENTFD:
        return f"{index} {eventfds(action, which, fds)}", fields
    if action == "fire" and not message.count:
        return f"{index} disable", fields
    return f"{index} {action} {which}", fields


IRQ_ACTIONS = {SetIrqsFlag.MASK: "mask", SetIrqsFlag.UNMASK: "unmask", SetIrqsFlag.TRIGGER: "fire"}


def eventfds(action: str, which: str, fds: int) -> str:
    """What the eventfds of a SET_IRQS are for."""
    if action == "fire":
        return f"{which}: {fds} eventfd{'s' * (fds != 1)}" if fds else f"{which}: no eventfds"
    return (
        f"{action} {which} whenever the eventfd is signalled" if fds else f"{which}: no eventfd to {action}"
    )


def region_access(message: RegionRead | RegionWriteReply, registers: Registers) -> Words:
    """A read, or the reply to a write: where, and how much."""
    place, fields = region_place(message.region, message.offset, message.count, registers)
    return f"{place}, {size(message.count)}", fields


def region_data(message: RegionReadReply | RegionWrite, registers: Registers) -> Words:
    """What was read or is written, and what its bits say."""
    place, fields = region_place(message.region, message.offset, message.count, registers)
    fields["data"] = message.data.hex()
    text = f"{place} = {value(message.data)}"
    if bits := registers.bits(message.region, message.offset, message.data):
        text, fields["bits"] = f"{text} ({bits})", bits
    return text, fields


def region_place(region: int, offset: int, count: int, registers: Registers) -> Words:
    """A place in a region, by name where it has one."""
    fields: Fields = {"region": region, "offset": offset, "count": count}
    register = registers.name(region, offset, count)
    if register:
        fields["register"] = register
    return f"{region_name(region)} {f'{register} ' * bool(register)}[{offset:#x}]", fields


def region_writes(message: RegionWriteMulti, registers: Registers) -> Words:
    """REGION_WRITE_MULTI: each of its writes."""
    said = [
        region_data(RegionWrite(write.offset, write.region, len(write.data), write.data), registers)
        for write in message.writes
    ]
    return "; ".join(text for text, _ in said), {"writes": [fields for _, fields in said]}


def dma_access(message: DmaRead | DmaWriteReply) -> Words:
    """DMA_READ, or the reply to DMA_WRITE."""
    return f"{message.address:#x}, {size(message.count)}", {
        "address": message.address,
        "count": message.count,
    }


def dma_data(message: DmaReadReply | DmaWrite) -> Words:
    """Guest memory as it was read, or is written."""
    fields = {"address": message.address, "count": message.count, "data": message.data.hex()}
    return f"{message.address:#x} = {value(message.data)}", fields


def multi_reply(message: RegionWriteMultiReply) -> Words:
    """How many writes of a REGION_WRITE_MULTI were done."""
    return f"{message.count} writes done", {"count": message.count}


def old_dirty_pages(message: DirtyPages) -> Words:
    """DIRTY_PAGES of older drafts."""
    fields = {"argsz": message.argsz, "flags": message.flags, "data": message.data.hex()}
    return f"flags {message.flags:#x}", fields


def migration_data(message: MigDataRead | MigDataReadReply | MigDataWrite) -> Words:
    """A part of the migration stream, or the wish for one."""
    fields: Fields = {"size": message.size, "argsz": message.argsz}
    if isinstance(message, MigDataRead):
        return f"up to {size(message.size)}", fields
    fields["data"] = message.data.hex()
    return value(message.data) if message.data else "the end of the stream", fields


def feature(message: DeviceFeature) -> Words:
    """DEVICE_FEATURE: what is done with which feature, and its data."""
    number = message.flags & FeatureFlag.FEATURE_MASK
    what = flag_names(FeatureFlag, message.flags & ~FeatureFlag.FEATURE_MASK).replace("|", " ")
    name = named(Feature, number)
    fields: Fields = {"feature": name, "do": what, "argsz": message.argsz}
    text = f"{what} {name}"
    if not message.data:
        return text, fields
    said = feature_data(number, message.data)
    if said is None:
        said = value(message.data), {"data": message.data.hex()}
    return f"{text}: {said[0]}", fields | said[1]


MIG_STATE = Struct("=I")  # less than `DEVICE_STATE` will do: a peer may leave the descriptor out


def feature_data(number: int, data: bytes) -> Words | None:
    """What the data of a feature says; None where it has none of a known layout."""
    if number == Feature.MIGRATION and len(data) >= FLAGS.size:
        flags = flag_names(MigrationFlag, *FLAGS.unpack_from(data))
        return flags, {"flags": flags}
    if number == Feature.MIG_DEVICE_STATE and len(data) >= MIG_STATE.size:
        state = named(MigrationState, *MIG_STATE.unpack_from(data))
        return state, {"state": state}
    if number == Feature.DMA_LOGGING_START and len(data) >= LOGGING_START.size:
        page, _, _ = LOGGING_START.unpack_from(data)
        rest = data[LOGGING_START.size :]
        whole = rest[: len(rest) - len(rest) % LOGGED_RANGE.size]
        ranges = list(LOGGED_RANGE.iter_unpack(whole))
        text = f"pages of {size(page)} in " + (", ".join(span(*each) for each in ranges) or "all memory")
        return text, {"page_size": page, "ranges": ranges}
    if number == Feature.DMA_LOGGING_REPORT and len(data) >= LOGGING_REPORT.size:
        address, count, page = LOGGING_REPORT.unpack_from(data)
        bitmap = data[LOGGING_REPORT.size :]
        fields: Fields = {"address": address, "size": count, "page_size": page}
        text = f"{span(address, count)} in pages of {size(page)}"
        if bitmap:
            dirty = int.from_bytes(bitmap, "little").bit_count()
            text, fields = f"{text}, {dirty} dirty", fields | {"dirty": dirty, "bitmap": bitmap.hex()}
        return text, fields
    return None


SAYERS: Mapping[type[Message], Callable[[Any], Words]] = {
    Empty: done,
    DmaUnmap: dma_unmap,
    DeviceInfo: device_info,
    RegionInfo: region_info,
    RegionIoFds: region_io_fds,
    IrqInfo: irq_info,
    DmaRead: dma_access,
    DmaWriteReply: dma_access,
    DmaReadReply: dma_data,
    DmaWrite: dma_data,
    RegionWriteMultiReply: multi_reply,
    DirtyPages: old_dirty_pages,
    DeviceFeature: feature,
    MigDataRead: migration_data,
    MigDataReadReply: migration_data,
    MigDataWrite: migration_data,
}


def command_name(number: int) -> str:
    """The name of a command, or its number in words."""
    name = named(Command, number)
    return f"command {name}" if name.isdecimal() else name
