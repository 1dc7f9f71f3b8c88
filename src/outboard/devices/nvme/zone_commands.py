"""The commands of zoned namespaces: Zone Append, Zone Management Send and Receive.

Zoned Namespace Command Set 1.1, 3.4. What Write, Read and the rest may do is `outboard.devices.nvme.zones`'
to say.
"""

import struct
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from functools import partial

from outboard.devices.nvme.admission import FLUSHES, READS, WRITES, Access, Condition
from outboard.devices.nvme.blocks import block_count, deallocated
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.command_set import CHANGES_BLOCKS, IoCommand
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.spec import Csi, IoOpcode
from outboard.devices.nvme.state import Handler, State
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import deliver, fetch
from outboard.devices.nvme.work import Call, Work
from outboard.devices.nvme.zone import Zone, ZoneState
from outboard.devices.nvme.zone_storage import ZonedStorage
from outboard.devices.nvme.zones import Zones
from outboard.errors import StorageError

NO_POINTER = (1 << 64) - 1
"""The write pointer of a zone that cannot be written."""

SEQUENTIAL_WRITE_REQUIRED = 2
"""The type of every zone."""

_DESCRIPTOR = struct.Struct("<BBB5xQQQ32x")
_REPORT_HEADER = struct.Struct("<Q56x")
_SELECT_ALL, _ALLOCATE, _PARTIAL = 1 << 8, 1 << 9, 1 << 16
_SLBA_LOCATION, _LENGTH_LOCATION, _ACTION_LOCATION = 40, 48, 52


class Send(IntEnum):
    """Actions of Zone Management Send."""

    CLOSE = 0x01
    FINISH = 0x02
    OPEN = 0x03
    RESET = 0x04
    OFFLINE = 0x05
    SET_EXTENSION = 0x10
    COMMIT = 0x11


class Receive(IntEnum):
    """Actions of Zone Management Receive."""

    REPORT = 0x00
    EXTENDED_REPORT = 0x01


LISTED: dict[int, tuple[ZoneState, ...]] = {
    0: tuple(ZoneState),
    1: (ZoneState.EMPTY,),
    2: (ZoneState.IMPLICITLY_OPEN,),
    3: (ZoneState.EXPLICITLY_OPEN,),
    4: (ZoneState.CLOSED,),
    5: (ZoneState.FULL,),
    6: (ZoneState.READ_ONLY,),
    7: (ZoneState.OFFLINE,),
}
"""The states of the zones that a report lists, by its Zone Receive Action Specific field."""

_CHANGED_BY: dict[int, tuple[ZoneState, ...]] = {
    Send.CLOSE: (ZoneState.IMPLICITLY_OPEN, ZoneState.EXPLICITLY_OPEN),
    Send.FINISH: (ZoneState.IMPLICITLY_OPEN, ZoneState.EXPLICITLY_OPEN, ZoneState.CLOSED),
    Send.OPEN: (ZoneState.CLOSED,),
    Send.RESET: (ZoneState.IMPLICITLY_OPEN, ZoneState.EXPLICITLY_OPEN, ZoneState.CLOSED, ZoneState.FULL),
    Send.OFFLINE: (ZoneState.READ_ONLY,),
}
"""The states of the zones that an action is for, if it is for all."""


def zone_append(write: Handler) -> Handler:
    """Zone Append, that ``write`` executes at the place which is the next of the zone."""

    def append(state: State, command: Command) -> Work:
        space, zones = _zoned(state, command)
        count = block_count(command)
        if count * space.block_size > state.limits.append:
            raise CommandFailed(
                Status.INVALID_FIELD, f"{count} blocks are more than ZASL allows", location=_LENGTH_LOCATION
            )
        while True:
            _check_range(space, command.slba)
            slba = zones.append_at(command.slba, count)
            placed = replace(command, cdw10=slba & 0xFFFF_FFFF, cdw11=slba >> 32)
            work = write(state, placed)
            assert not isinstance(work, int | None)
            try:
                yield from work
            except CommandFailed as failure:
                # While guest memory was awaited another controller may have written there.
                if failure.status != Status.ZONE_INVALID_WRITE:
                    raise
            else:
                return slba

    return append


def zone_management_send(state: State, command: Command) -> Work:
    """Execute Zone Management Send."""
    space, zones = _zoned(state, command)
    action = command.cdw13 & 0xFF
    if action not in set(Send):
        raise CommandFailed(
            Status.INVALID_FIELD, f"there is no zone send action {action:#x}", location=_ACTION_LOCATION
        )
    if command.cdw13 & _SELECT_ALL:
        if action not in _CHANGED_BY:
            raise CommandFailed(
                Status.INVALID_FIELD, f"action {action:#x} is for one zone", location=_ACTION_LOCATION + 1
            )
        chosen = zones.having(*_CHANGED_BY[action])
        if action == Send.OPEN:
            zones.check_open(chosen)
        if action == Send.RESET:
            # What an empty zone may hold of former times goes as well.
            chosen += [zone for zone in zones.having(ZoneState.EMPTY) if zone.stale]
    else:
        _check_range(space, command.slba)
        if action == Send.COMMIT:
            zones.commit(command.slba)
            return 0
        chosen = [zones.at(command.slba)]
        chosen[0].check_begins(command.slba)
    if action == Send.SET_EXTENSION:
        _extend(state, command, zones, chosen[0])
    elif action == Send.RESET:
        yield from _reset(state, space, zones, chosen)
    elif action == Send.OPEN:
        window = bool(command.cdw13 & _ALLOCATE)
        if window and chosen and chosen[0].stale:
            yield from _blank(state, space, zones, chosen)
        for zone in chosen:
            zones.open_explicitly(zone, window=window)
    else:
        for zone in chosen:
            _ACTIONS[action](zones, zone)
    yield from _keep(space)
    return 0


_ACTIONS: dict[int, Callable[[Zones, Zone], None]] = {
    Send.CLOSE: Zones.close,
    Send.FINISH: Zones.finish,
    Send.OFFLINE: Zones.go_offline,
}


def _extend(state: State, command: Command, zones: Zones, zone: Zone) -> None:
    size = zones.geometry.layout.extension
    if size == 0:
        raise CommandFailed(
            Status.INVALID_FIELD, "descriptors have no extension here", location=_ACTION_LOCATION
        )
    zones.extend(zone, fetch(state.bus, command, size))


def _reset(state: State, space: Namespace, zones: Zones, chosen: list[Zone]) -> Work:
    for zone in chosen:
        zones.check_reset(zone)
        # What is written now is void, and must not come behind the zeros.
        zone.generation += 1
    before = [(zone, zone.written) for zone in chosen]
    yield from _blank(state, space, zones, chosen)
    for zone, written in before:
        zones.mark_stale(zone, zone.written != written)
        if written > zone.start:
            deallocated(state, space, zone.start, zones.geometry.size)
        zones.reset(zone)
    return 0


def _blank(state: State, space: Namespace, zones: Zones, chosen: list[Zone]) -> Work:
    """Make the storage read as zeros where these zones hold anything; neighbours in one go."""
    runs: list[list[int]] = []
    for zone in sorted(chosen, key=lambda zone: zone.number):
        if zone.written > zone.start or zone.stale:
            if runs and runs[-1][1] == zone.start:
                runs[-1][1] += zones.geometry.size
            else:
                runs.append([zone.start, zone.start + zones.geometry.size])
    storage = space.storage
    make_zeros = storage.discard if storage.discard_zeroes else storage.write_zeroes
    try:
        for start, end in runs:
            for base, unit in ((0, space.block_size), (space.metadata_offset, space.metadata)):
                if unit:
                    yield Call(storage, partial(make_zeros, base + start * unit, (end - start) * unit))
    except StorageError as error:
        state.health.media_errors += 1
        raise CommandFailed(Status.WRITE_FAULT, str(error)) from error
    for zone in chosen:
        zones.mark_stale(zone, False)
    return 0


def _keep(space: Namespace) -> Work:
    """Make the zones durable: a host that was told of a transition relies on it."""
    storage = space.storage
    if isinstance(storage, ZonedStorage) and storage.table is not None:
        yield Call(storage, storage.table.sync)
    return 0


def zone_management_receive(state: State, command: Command) -> int:
    """Execute Zone Management Receive: report zones, from the one of a block on."""
    space, zones = _zoned(state, command)
    action, listed = command.cdw13 & 0xFF, command.cdw13 >> 8 & 0xFF
    extended = action == Receive.EXTENDED_REPORT
    extension = zones.geometry.layout.extension if extended else 0
    if action not in set(Receive) or (extended and not extension):
        raise CommandFailed(
            Status.INVALID_FIELD, f"there is no zone receive action {action:#x}", location=_ACTION_LOCATION
        )
    if listed not in LISTED:
        raise CommandFailed(
            Status.INVALID_FIELD, f"no zones are listed by {listed:#x}", location=_ACTION_LOCATION + 1
        )
    _check_range(space, command.slba)
    size = (command.cdw12 + 1) * 4
    if size > state.limits.transfer:
        raise CommandFailed(
            Status.INVALID_FIELD,
            f"a report of {size} bytes is more than MDTS allows",
            location=_LENGTH_LOCATION,
        )
    room = max(0, size - _REPORT_HEADER.size) // (_DESCRIPTOR.size + extension)
    found = [zone for zone in zones.zones[zones.at(command.slba).number :] if zone.state in LISTED[listed]]
    parts = [_REPORT_HEADER.pack(min(room, len(found)) if command.cdw13 & _PARTIAL else len(found))]
    for zone in found[:room]:
        parts += [_described(zone), zone.extension.ljust(extension, b"\0")[:extension]]
    deliver(state.bus, command, b"".join(parts)[:size].ljust(size, b"\0"))
    return 0


def _described(zone: Zone) -> bytes:
    unwritable = zone.state in (ZoneState.FULL, ZoneState.READ_ONLY, ZoneState.OFFLINE)
    return _DESCRIPTOR.pack(
        SEQUENTIAL_WRITE_REQUIRED,
        zone.state << 4,
        zone.attributes,
        zone.end - zone.start,
        zone.start,
        NO_POINTER if unwritable else zone.pointer,
    )


def _zoned(state: State, command: Command) -> tuple[Namespace, Zones]:
    space = state.namespace(command.nsid)
    if space.zones is None:
        raise CommandFailed(
            Status.INVALID_OPCODE,
            f"namespace {command.nsid} has no zones for {command.opcode:#x}",
            location=0,
        )
    return space, space.zones


def _check_range(space: Namespace, slba: int) -> None:
    if slba >= space.blocks:
        raise CommandFailed(
            Status.LBA_OUT_OF_RANGE, f"block {slba:#x} of {space.blocks:#x}", location=_SLBA_LOCATION
        )


def commands(write: Handler) -> dict[int, IoCommand]:
    """The commands of zoned namespaces, where ``write`` executes Write."""
    return {
        IoOpcode.ZONE_MANAGEMENT_SEND: IoCommand(
            zone_management_send, Access.WRITE, CHANGES_BLOCKS, csi=Csi.ZONED
        ),
        IoOpcode.ZONE_MANAGEMENT_RECEIVE: IoCommand(zone_management_receive, Access.READ, csi=Csi.ZONED),
        IoOpcode.ZONE_APPEND: IoCommand(zone_append(write), Access.WRITE, CHANGES_BLOCKS, csi=Csi.ZONED),
    }


def _check(state: State, space: Namespace, command: Command, access: Access) -> None:
    """Commands ask the zones of the blocks they name, when they come to them."""


def _slow(state: State, space: Namespace) -> int:
    if space.zones is None:
        return 0
    kept = isinstance(space.storage, ZonedStorage) and space.storage.table is not None
    return WRITES | (FLUSHES if kept else 0) | (0 if space.zones.readable_at_once else READS)


ZONES = Condition(_check, _slow)
"""Zones as what keeps the data plane from writing."""
