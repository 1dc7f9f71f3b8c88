"""What a host reads of data placement, and sets: log pages 20h to 23h, features 1Dh and 1Eh (TP4146)."""

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.layouts import Layout
from outboard.devices.nvme.placement import (
    ENDURANCE_GROUP,
    INITIALLY_ISOLATED,
    MOST_IDENTIFIERS,
    Handle,
    Placement,
    PlacementEvent,
)
from outboard.devices.nvme.spec import BROADCAST, LogId, Select
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import deliver, fetch

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

CONFIGURATIONS_HEADER = Layout(16, count=(0, "H"), version=(2, "B"), length=(4, "I"))
CONFIGURATION = Layout(
    64,
    length=(0, "H"),
    attributes=(2, "B"),
    groups=(4, "I"),
    handles=(8, "H"),
    most_identifiers=(10, "H"),
    most_namespaces=(12, "I"),
    unit_size=(16, "Q"),
    time_limit=(24, "I"),
)
STATISTICS = Layout(64, host_bytes=(0, "u128"), media_bytes=(16, "u128"), erased_bytes=(32, "u128"))

_VALID = 1 << 7
_HOST_EVENTS = 1 << 8
"""In dword 10 of Get Log Page: the events that hosts cause, not those of the controller."""


def configurations(state: "State", command: Command) -> bytes:
    """The log of what configurations there are: one."""
    layout = _of_group(state, command.cdw11 >> 16).layout
    handles = bytes([INITIALLY_ISOLATED, 0, 0, 0]) * layout.handles
    size = -(-(CONFIGURATION.size + len(handles)) // 8) * 8
    configuration = CONFIGURATION.encode(
        length=size,
        attributes=_VALID | layout.group_bits,
        groups=layout.groups,
        handles=layout.handles,
        most_identifiers=MOST_IDENTIFIERS - 1,
        most_namespaces=state.subsystem.most_namespaces,
        unit_size=layout.unit,
    )
    header = CONFIGURATIONS_HEADER.encode(length=CONFIGURATIONS_HEADER.size + size)
    return header + (configuration + handles).ljust(size, b"\0")


def handle_usage(state: "State", command: Command) -> bytes:
    """The log of who uses which reclaim unit handle."""
    handles = _enabled(state, command.cdw11 >> 16).handles
    return struct.pack("<H6x", len(handles)) + b"".join(struct.pack("<B7x", each.use) for each in handles)


def statistics(state: "State", command: Command) -> bytes:
    """The log of what hosts and the medium have written."""
    placement = _enabled(state, command.cdw11 >> 16)
    return STATISTICS.encode(
        host_bytes=placement.host_bytes,
        media_bytes=placement.media_bytes,
        erased_bytes=placement.erased_bytes,
    )


def events(state: "State", command: Command) -> bytes:
    """The log of the events that were noted, of hosts or of the controller."""
    placement = _enabled(state, command.cdw11 >> 16)
    noted = placement.host_events if command.cdw10 & _HOST_EVENTS else placement.controller_events
    return struct.pack("<I60x", len(noted)) + b"".join(noted)


LOG_PAGES: dict[int, Callable[["State", Command], bytes]] = {
    LogId.PLACEMENT_CONFIGURATIONS: configurations,
    LogId.RECLAIM_UNIT_HANDLES: handle_usage,
    LogId.PLACEMENT_STATISTICS: statistics,
    LogId.PLACEMENT_EVENTS: events,
}


def get_enabled(state: "State", command: Command, select: Select) -> int:
    """Get feature 1Dh: whether placement is enabled."""
    placement = _of_group(state, command.cdw11 & 0xFFFF)
    return int(placement.enabled) if select == Select.CURRENT else 1


def set_enabled(state: "State", command: Command) -> int:
    """Set feature 1Dh: only an endurance group without namespaces can be changed."""
    placement = _of_group(state, command.cdw11 & 0xFFFF)
    if command.cdw12 >> 8 & 0xFF:
        raise CommandFailed(Status.INVALID_FIELD, "there is one placement configuration, 0", location=49)
    if state.subsystem.namespaces:
        raise CommandFailed(Status.COMMAND_SEQUENCE_ERROR, "the endurance group has namespaces")
    placement.enabled = bool(command.cdw12 & 1)
    state.subsystem.keep_placement()
    return 0


def get_noted(state: "State", command: Command, select: Select) -> int:
    """Get feature 1Eh: which events there are, and are noted for the handle; the number of them."""
    handle = _handle(state, command)
    noted = handle.noted if select == Select.CURRENT else ()
    most = command.cdw11 >> 16 & 0xFF
    listed = list(PlacementEvent)[:most]
    if not listed:
        raise CommandFailed(Status.INVALID_FIELD, "no event is asked for", location=46)
    data = b"".join(bytes([event, event in noted]) for event in listed)
    deliver(state.bus, command, data.ljust(2 * most, b"\0"))
    return len(listed)


def set_noted(state: "State", command: Command) -> int:
    """Set feature 1Eh: have events noted for the handle, or not."""
    handle = _handle(state, command)
    count = command.cdw11 >> 16 & 0xFF
    named = set(fetch(state.bus, command, count)) if count else set()
    if not named <= set(PlacementEvent):
        raise CommandFailed(Status.INVALID_FIELD, f"there are no placement events {sorted(named)}")
    handle.noted = handle.noted | named if command.cdw12 & 1 else handle.noted - named
    state.subsystem.keep_placement()
    return 0


def _of_group(state: "State", group: int) -> Placement:
    placement = state.subsystem.placement
    if placement is None or group != ENDURANCE_GROUP:
        raise CommandFailed(Status.INVALID_FIELD, f"endurance group {group} has no placement", location=44)
    return placement


def _enabled(state: "State", group: int) -> Placement:
    placement = _of_group(state, group)
    if not placement.enabled:
        raise CommandFailed(Status.FDP_DISABLED, "data placement is not enabled")
    return placement


def _handle(state: "State", command: Command) -> Handle:
    if command.nsid in (0, BROADCAST):
        raise CommandFailed(Status.INVALID_NAMESPACE, "placement handles are a namespace's", location=4)
    space = state.namespace(command.nsid)
    placement = state.subsystem.placement
    if placement is None or space.placed is None or not placement.enabled:
        raise CommandFailed(Status.FDP_DISABLED, "data placement is not enabled")
    number = command.cdw11 & 0xFFFF
    if number >= len(space.placed.handles):
        raise CommandFailed(Status.INVALID_FIELD, f"there is no placement handle {number}", location=44)
    return placement.handles[space.placed.handles[number]]
