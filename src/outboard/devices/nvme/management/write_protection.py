"""Namespace Write Protection Config, a feature of each namespace (NVMe Base 2.0, 5.27.1.34 and 8.12).

Until Power Cycle and Permanent cannot be left by a command. A power cycle is the end of the subsystem's
process; the others are kept. In the way of commands it is by `outboard.devices.nvme.admission`.
"""

from typing import TYPE_CHECKING

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import Select, WriteProtection
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.work import Work, flush_of
from outboard.errors import StorageError

if TYPE_CHECKING:
    from outboard.devices.nvme.namespace import Namespace
    from outboard.devices.nvme.state import State
    from outboard.devices.nvme.subsystem import Subsystem

CAPABILITIES = 0b111
"""NWPC: all of them are offered."""


def get(state: "State", command: Command, select: Select) -> int:
    """Get Features."""
    space = state.namespace(command.nsid)
    if select == Select.DEFAULT:
        return WriteProtection.NONE
    return space.write_protection if select == Select.CURRENT else space.lasting_protection


def put(state: "State", command: Command) -> int | Work:
    """Set Features. What was written before is made durable first."""
    space = state.namespace(command.nsid)
    wanted = command.cdw11 & 7
    if wanted > WriteProtection.PERMANENT:
        raise CommandFailed(Status.INVALID_FIELD, f"write protection {wanted} is reserved", location=44)
    if space.write_protection in (WriteProtection.UNTIL_POWER_CYCLE, WriteProtection.PERMANENT):
        raise CommandFailed(
            Status.FEATURE_NOT_CHANGEABLE, f"namespace {space.nsid} stays write protected", location=44
        )
    if space.barred is not None:
        raise CommandFailed(space.barred, f"namespace {space.nsid} is being erased")
    if wanted == space.write_protection:
        return 0
    protect(state.subsystem, space, WriteProtection(wanted), but=state.identity.cntlid)
    return _flushed(state, command.nsid)


def protect(subsystem: "Subsystem", space: "Namespace", wanted: WriteProtection, *, but: int = 0) -> None:
    """Protect a namespace like that from now on, or no longer, and tell every host but controller ``but``'s.

    In the subsystem's turn. Whoever runs it may end what a host cannot. Writes that wait for a slow storage
    are to be tried again. What was written is the caller's to flush.
    """
    had, space.write_protection = space.write_protection, wanted
    subsystem.inventory.note(space)
    subsystem.reconfigure(space.nsid)
    for each in subsystem.states_of(space.nsid):
        each.abort(space, Status.COMMAND_INTERRUPTED)
    if bool(had) != bool(wanted):
        subsystem.announce(space.nsid, but=but)


def _flushed(state: "State", nsid: int) -> Work:
    space = state.namespace(nsid)
    try:
        yield flush_of(space.storage)
    except StorageError as error:
        raise CommandFailed(Status.WRITE_FAULT, str(error)) from error
    return 0
