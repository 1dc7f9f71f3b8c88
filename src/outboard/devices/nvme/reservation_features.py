"""Host Identifier, Reservation Notification Mask and Persistence (NVMe Base 2.0, 5.27.1.25 to 5.27.1.27)."""

from typing import TYPE_CHECKING

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.reservation_log import MASKABLE
from outboard.devices.nvme.spec import BROADCAST, Select
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import deliver, fetch

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

_SHORT, _LONG = 8, 16
_EXTENDED = 1 << 0


def get_identifier(state: "State", command: Command, select: Select) -> int:
    """Get Host Identifier, in the format that is asked for."""
    size = _size(command)
    identifier = state.host_identifier if select == Select.CURRENT else b""
    if len(identifier) > size:
        raise CommandFailed(
            Status.HOST_IDENTIFIER_INCONSISTENT, "the host has an identifier of 128 bits", location=44
        )
    deliver(state.bus, command, identifier.ljust(size, b"\0"))
    return 0


def set_identifier(state: "State", command: Command) -> int:
    """Set Host Identifier. One of zeros is none: the host is then known by its controller only."""
    size = _size(command)
    identifier = fetch(state.bus, command, size)
    if not any(identifier):
        identifier = b""
    for other in state.subsystem.controllers.values():
        if other is not state and identifier and len(other.host_identifier) not in (0, size):
            raise CommandFailed(
                Status.HOST_IDENTIFIER_INCONSISTENT,
                f"controller {other.identity.cntlid} has an identifier of the other format",
                location=44,
            )
    state.host_identifier = identifier
    state.plane.configure()
    return 0


def get_mask(state: "State", command: Command, select: Select) -> int:
    """Get Reservation Notification Mask, of one namespace."""
    space = state.namespace(command.nsid)
    return state.reservation_log.masks.get(space.nsid, 0) if select == Select.CURRENT else 0


def set_mask(state: "State", command: Command) -> int:
    """Set Reservation Notification Mask, of one namespace or of all."""
    for space in _spaces(state, command):
        state.reservation_log.masks[space.nsid] = command.cdw11 & MASKABLE
    return 0


def get_persistence(state: "State", command: Command, select: Select) -> int:
    """Get Reservation Persistence, of one namespace."""
    space = state.namespace(command.nsid)
    return int(space.reservation.persistent) if select == Select.CURRENT else 0


def set_persistence(state: "State", command: Command) -> int:
    """Set Reservation Persistence, of one namespace or of all."""
    for space in _spaces(state, command):
        after = space.reservation.copy()
        after.persistent = bool(command.cdw11 & 1)
        state.subsystem.reserve(space, after)
    return 0


def _size(command: Command) -> int:
    return _LONG if command.cdw11 & _EXTENDED else _SHORT


def _spaces(state: "State", command: Command) -> list[Namespace]:
    if command.nsid == BROADCAST:
        return list(state.namespaces.values())
    return [state.namespace(command.nsid)]
