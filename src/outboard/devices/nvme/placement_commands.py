"""The commands of data placement: I/O Management Receive and Send, Directive Receive and Send.

TP4146, and NVMe Base 2.0, 5.8, 5.9 and 8.7. Directives other than data placement are not offered.
"""

import struct

from outboard.devices.nvme.admission import Access
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.command_set import AdminCommand, IoCommand
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.placement import DATA_PLACEMENT, MOST_IDENTIFIERS, Placed, Placement
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, Csi, IoOpcode
from outboard.devices.nvme.state import State
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import deliver, fetch

_NOTHING = 0x00
_HANDLE_STATUS = _HANDLE_UPDATE = 0x01
"""Management operations, of Receive and of Send."""

_STATUS_HEADER = struct.Struct("<14xH")
_STATUS = struct.Struct("<HHIQ16x")
_IDENTIFY, _RETURN_PARAMETERS, _ENABLE = 0, 1, 1


def io_management_receive(state: State, command: Command) -> int:
    """Execute I/O Management Receive: the handles of a namespace, and how full their units are."""
    space = state.namespace(command.nsid)
    operation = command.cdw10 & 0xFF
    if operation == _NOTHING:
        return 0
    if operation != _HANDLE_STATUS:
        raise _no_operation(operation)
    placement, placed = _placed(state, space)
    size = (command.cdw11 + 1) * 4
    if size > state.limits.transfer:
        raise CommandFailed(Status.INVALID_FIELD, f"{size} bytes are more than MDTS allows", location=44)
    found = [
        _STATUS.pack(identifier, handle, 0, placement.groups[group].room(handle) // space.block_size)
        for identifier, handle, group in placement.identifiers(placed)
    ]
    data = _STATUS_HEADER.pack(len(found)) + b"".join(found)
    deliver(state.bus, command, data[:size].ljust(size, b"\0"))
    return 0


def io_management_send(state: State, command: Command) -> int:
    """Execute I/O Management Send: let handles have other units. All are checked before the first has."""
    space = state.namespace(command.nsid)
    operation = command.cdw10 & 0xFF
    if operation == _NOTHING:
        return 0
    if operation != _HANDLE_UPDATE:
        raise _no_operation(operation)
    placement, placed = _placed(state, space)
    count = (command.cdw10 >> 16) + 1
    if count > MOST_IDENTIFIERS:
        raise CommandFailed(
            Status.INVALID_FIELD, f"{count} placement identifiers: {MOST_IDENTIFIERS} can be", location=42
        )
    identifiers = struct.unpack(f"<{count}H", fetch(state.bus, command, 2 * count))
    for identifier in identifiers:
        if placement.parse(placed, identifier) is None:
            raise CommandFailed(
                Status.INVALID_FIELD, f"namespace {space.nsid} has no placement identifier {identifier:#x}"
            )
    for identifier in identifiers:
        placement.renew(space, placed, identifier)
    return 0


def directive_receive(state: State, command: Command) -> int:
    """Execute Directive Receive: which directives there are, and are enabled."""
    kind, operation = command.cdw11 >> 8 & 0xFF, command.cdw11 & 0xFF
    if (kind, operation) != (_IDENTIFY, _RETURN_PARAMETERS):
        raise _no_directive(kind, operation)
    placing = _places(state, command.nsid)
    size = (command.cdw10 + 1) * 4
    if size > state.limits.transfer:
        raise CommandFailed(Status.INVALID_FIELD, f"{size} bytes are more than MDTS allows", location=40)
    enabled = state.subsystem.placement is not None and state.subsystem.placement.enabled and placing
    supported = 1 << _IDENTIFY | placing << DATA_PLACEMENT
    current = 1 << _IDENTIFY | enabled << DATA_PLACEMENT
    persistent = placing << DATA_PLACEMENT
    data = b"".join(bytes([bits]).ljust(32, b"\0") for bits in (supported, current, persistent))
    deliver(state.bus, command, data[:size].ljust(size, b"\0"))
    return 0


def directive_send(state: State, command: Command) -> int:
    """Execute Directive Send: to enable what is enabled. Data placement comes and goes by its feature."""
    kind, operation = command.cdw11 >> 8 & 0xFF, command.cdw11 & 0xFF
    if (kind, operation) != (_IDENTIFY, _ENABLE):
        raise _no_directive(kind, operation)
    target, enable = command.cdw12 >> 8 & 0xFF, command.cdw12 & 1
    if target != DATA_PLACEMENT or not enable or not _places(state, command.nsid):
        raise CommandFailed(
            Status.INVALID_FIELD, f"directive type {target:#x} cannot be switched so", location=48
        )
    return 0


def _places(state: State, nsid: int) -> bool:
    return nsid != BROADCAST and state.namespace(nsid).placed is not None


def _placed(state: State, space: Namespace) -> tuple[Placement, Placed]:
    placement = state.subsystem.placement
    if placement is None or space.placed is None or not placement.enabled:
        raise CommandFailed(Status.FDP_DISABLED, "data placement is not enabled")
    return placement, space.placed


def _no_operation(operation: int) -> CommandFailed:
    return CommandFailed(
        Status.INVALID_FIELD, f"there is no management operation {operation:#x}", location=40
    )


def _no_directive(kind: int, operation: int) -> CommandFailed:
    return CommandFailed(
        Status.INVALID_FIELD, f"there is no operation {operation:#x} of directive type {kind:#x}", location=44
    )


IO_COMMANDS: dict[int, IoCommand] = {
    IoOpcode.IO_MANAGEMENT_RECEIVE: IoCommand(io_management_receive, Access.READ, csi=Csi.NVM),
    IoOpcode.IO_MANAGEMENT_SEND: IoCommand(io_management_send, Access.WRITE, csi=Csi.NVM),
}

ADMIN_COMMANDS: dict[int, AdminCommand] = {
    AdminOpcode.DIRECTIVE_SEND: AdminCommand(directive_send),
    AdminOpcode.DIRECTIVE_RECEIVE: AdminCommand(directive_receive),
}
