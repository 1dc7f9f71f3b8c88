"""Reservation commands, and what a reservation is in the way of (NVMe Base 2.0, 7.2 to 7.5 and 8.19).

What is registered and reserved is `Namespace.reservation`. A command works on a copy, which counts when it
has been kept; by then the data planes of all controllers follow it.
"""

import struct
from collections.abc import Mapping

from outboard.devices.nvme.admission import Access, Condition
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.command_set import IoCommand
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.reservation import Group, Type
from outboard.devices.nvme.spec import AdminOpcode, IoOpcode
from outboard.devices.nvme.state import State
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import deliver, fetch
from outboard.devices.nvme.work import Work
from outboard.devices.nvme.workers import at_rest

CAPABILITIES = 0xFF
"""RESCAP: all types, persistence through power loss, and Ignore Existing Key as since 1.3."""

GROUPS: Mapping[int, Group] = {
    IoOpcode.READ: Group.READ,
    IoOpcode.COMPARE: Group.READ,
    IoOpcode.VERIFY: Group.READ,
    IoOpcode.ZONE_MANAGEMENT_RECEIVE: Group.READ,
    IoOpcode.FLUSH: Group.WRITE,
    IoOpcode.WRITE: Group.WRITE,
    IoOpcode.WRITE_UNCORRECTABLE: Group.WRITE,
    IoOpcode.WRITE_ZEROES: Group.WRITE,
    IoOpcode.DATASET_MANAGEMENT: Group.WRITE,
    IoOpcode.COPY: Group.WRITE,
    IoOpcode.ZONE_MANAGEMENT_SEND: Group.WRITE,
    IoOpcode.ZONE_APPEND: Group.WRITE,
}
"""The I/O commands that a reservation may be in the way of."""

ADMIN_GROUPS: Mapping[int, Group] = {
    AdminOpcode.SECURITY_RECEIVE: Group.READ,
    AdminOpcode.SECURITY_SEND: Group.WRITE,
    AdminOpcode.FORMAT_NVM: Group.WRITE,
    AdminOpcode.SANITIZE: Group.WRITE,
    AdminOpcode.NAMESPACE_MANAGEMENT: Group.WRITE,
    AdminOpcode.NAMESPACE_ATTACHMENT: Group.WRITE,
}
"""And the admin commands."""

_KEY, _KEYS = struct.Struct("<Q"), struct.Struct("<QQ")
_REPORT = struct.Struct("<IBHxxB14x")
_CONTROLLER, _EXTENDED_CONTROLLER = struct.Struct("<HB5x8sQ"), struct.Struct("<HB5xQ16s32x")
_EXTENDED_HEADER = 64

_IGNORE_EXISTING_KEY = 1 << 3
_EXTENDED = 1 << 0
_LEAVE_PERSISTENCE, _RESERVED_PERSISTENCE = 0, 1
_NO_CONTROLLER = 0xFFFF
"""A registrant that uses no controller now is reported with this."""


def check(state: State, space: Namespace, command: Command, access: Access) -> None:
    """Refuse an I/O command that a reservation is in the way of (an admission condition)."""
    _refuse(state, space, GROUPS.get(command.opcode, Group.OTHER))


def check_admin(state: State, space: Namespace, command: Command) -> None:
    """Refuse an admin command that a reservation is in the way of (an admission condition)."""
    _refuse(state, space, ADMIN_GROUPS.get(command.opcode, Group.OTHER))


def slow(state: State, space: Namespace) -> int:
    """The commands that Python has to refuse."""
    return sum(
        1 << opcode
        for opcode in (IoOpcode.FLUSH, IoOpcode.WRITE, IoOpcode.READ)
        if space.reservation.conflicts(state.host, GROUPS[opcode])
    )


def register(state: State, command: Command) -> int:
    """Execute Reservation Register. While the keys are fetched the namespace may go."""
    state.namespace(command.nsid)
    action, persistence = command.cdw10 & 7, command.cdw10 >> 30
    if action > 2:
        raise CommandFailed(Status.INVALID_FIELD, f"there is no action {action}", location=40)
    if persistence == _RESERVED_PERSISTENCE:
        raise CommandFailed(Status.INVALID_FIELD, "that change of persistence is reserved", location=43)
    current, new = _KEYS.unpack(fetch(state.bus, command, _KEYS.size))
    space, host = state.namespace(command.nsid), state.host
    after = space.reservation.copy()
    key = None if command.cdw10 & _IGNORE_EXISTING_KEY else current
    if action == 0:
        notices = after.register(host, new)
    elif action == 1:
        notices = after.unregister(host, key)
    else:
        notices = after.replace_key(host, key, new)
    if persistence != _LEAVE_PERSISTENCE:
        after.persistent = bool(persistence & 1)
    state.subsystem.reserve(space, after, notices)
    return 0


def acquire(state: State, command: Command) -> int | Work:
    """Execute Reservation Acquire. Preempt and Abort completes when no victim is at work below any more."""
    state.namespace(command.nsid)
    action, number = command.cdw10 & 7, command.cdw10 >> 8 & 0xFF
    if action > 2:
        raise CommandFailed(Status.INVALID_FIELD, f"there is no action {action}", location=40)
    if number not in list(Type):
        raise CommandFailed(Status.INVALID_FIELD, f"there is no reservation of type {number}", location=41)
    _check_key_counts(command)
    key, victim = _KEYS.unpack(fetch(state.bus, command, _KEYS.size))
    space = state.namespace(command.nsid)
    after = space.reservation.copy()
    if action == 0:
        state.subsystem.reserve(space, after, after.acquire(state.host, key, Type(number)))
        return 0
    victims, notices = after.preempt(state.host, key, victim, Type(number))
    state.subsystem.reserve(space, after, notices)
    if action == 2:
        for other in state.subsystem.states_of(space.nsid):
            if other.host in victims and other.host != state.host:
                other.abort(space, Status.ABORTED_PREEMPTED)
        return at_rest(space.storage)
    return 0


def release(state: State, command: Command) -> int:
    """Execute Reservation Release."""
    state.namespace(command.nsid)
    action, number = command.cdw10 & 7, command.cdw10 >> 8 & 0xFF
    if action > 1:
        raise CommandFailed(Status.INVALID_FIELD, f"there is no action {action}", location=40)
    _check_key_counts(command)
    (key,) = _KEY.unpack(fetch(state.bus, command, _KEY.size))
    space = state.namespace(command.nsid)
    after = space.reservation.copy()
    notices = after.clear(state.host, key) if action else after.release(state.host, key, number)
    state.subsystem.reserve(space, after, notices)
    return 0


def report(state: State, command: Command) -> int:
    """Execute Reservation Report. What does not fit is left out; what is behind the end is zeros."""
    space = state.namespace(command.nsid)
    size = (command.cdw10 + 1) * 4
    if size > state.limits.transfer:
        raise CommandFailed(
            Status.INVALID_FIELD, f"{size} bytes of report are more than MDTS allows", location=40
        )
    data = _report(state, space, extended=bool(command.cdw11 & _EXTENDED))
    deliver(state.bus, command, data[:size].ljust(size, b"\0"))
    return 0


def _refuse(state: State, space: Namespace, group: Group) -> None:
    if space.reservation.conflicts(state.host, group):
        raise CommandFailed(
            Status.RESERVATION_CONFLICT, f"namespace {space.nsid} is reserved by another host"
        )


def _check_key_counts(command: Command) -> None:
    if command.cdw10 & _IGNORE_EXISTING_KEY:
        raise CommandFailed(Status.INVALID_FIELD, "the existing key is not ignored here", location=40)


def _report(state: State, space: Namespace, *, extended: bool) -> bytes:
    reservation = space.reservation
    if not extended and any(len(host.identifier) > 8 for host in reservation.keys):
        raise CommandFailed(
            Status.HOST_IDENTIFIER_INCONSISTENT, "identifiers of 128 bits need the extended form", location=44
        )
    found: list[bytes] = []
    for host, key in reservation.keys.items():
        cntlids = [
            other.identity.cntlid for other in state.subsystem.states_of(space.nsid) if other.host == host
        ]
        status = int(reservation.holds(host))
        for cntlid in cntlids or [_NO_CONTROLLER]:
            if extended:
                found.append(_EXTENDED_CONTROLLER.pack(cntlid, status, key, host.identifier))
            else:
                found.append(_CONTROLLER.pack(cntlid, status, host.identifier, key))
    header = _REPORT.pack(
        reservation.generation, reservation.type or 0, len(found), int(reservation.persistent)
    )
    return header.ljust(_EXTENDED_HEADER if extended else 0, b"\0") + b"".join(found)


CONDITION = Condition(check, slow, check_admin)

COMMANDS: dict[int, IoCommand] = {
    IoOpcode.RESERVATION_REGISTER: IoCommand(register),
    IoOpcode.RESERVATION_REPORT: IoCommand(report),
    IoOpcode.RESERVATION_ACQUIRE: IoCommand(acquire),
    IoOpcode.RESERVATION_RELEASE: IoCommand(release),
}
