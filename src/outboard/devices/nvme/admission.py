"""Whether an I/O command may be executed now: what namespaces and controllers can be in the way of.

Each condition is one thing that may stand in the way: write protection, a reservation, a sanitize operation.
Python asks all of them before it executes a command; the data plane asks none, so each also says which
commands must not be left to it for now (`slow_opcodes`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.spec import BROADCAST, AdminOpcode, IoOpcode
from outboard.devices.nvme.status import CommandFailed, Status

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

FLUSHES, WRITES, READS = 1 << IoOpcode.FLUSH, 1 << IoOpcode.WRITE, 1 << IoOpcode.READ
EVERYTHING = FLUSHES | WRITES | READS
"""What the data plane executes, as `Condition.slow` names it."""


class Access(Enum):
    """What a command does with the blocks of its namespace."""

    NONE = "nothing"
    READ = "reads"
    WRITE = "changes"


@dataclass(frozen=True, slots=True)
class Condition:
    """``check`` raises `CommandFailed` if the I/O command may not be executed.

    ``check_admin`` does so for admin commands. ``slow`` gives the I/O commands, as bits of `EVERYTHING`, that
    only Python may execute on a namespace now. Whoever changes what it depends on has the data planes look
    again (`Subsystem.reconfigure`).
    """

    check: "Callable[[State, Namespace, Command, Access], None]"
    slow: "Callable[[State, Namespace], int]"
    check_admin: "Callable[[State, Namespace, Command], None]" = lambda state, space, command: None


def _check_barred(state: "State", space: Namespace, command: Command, access: Access) -> None:
    if space.barred is not None:
        raise CommandFailed(space.barred, f"namespace {space.nsid} is being erased, or was to be")


def _check_protected(state: "State", space: Namespace, command: Command, access: Access) -> None:
    if access is Access.WRITE and space.write_protection:
        raise CommandFailed(
            Status.NAMESPACE_WRITE_PROTECTED, f"namespace {space.nsid} is write protected", location=4
        )


def _note_write(state: "State", space: Namespace, command: Command, access: Access) -> None:
    """The first write after a sanitize operation ends what the log of that says: all is erased."""
    if access is Access.WRITE and space.erased:
        # A command that a fault has struck sees a copy of its namespace.
        state.subsystem.namespaces[space.nsid].erased = space.erased = False
        state.subsystem.reconfigure(space.nsid)


MANAGEMENT: tuple[Condition, ...] = (
    Condition(_check_barred, lambda state, space: EVERYTHING if space.barred is not None else 0),
    Condition(_check_protected, lambda state, space: WRITES if space.write_protection else 0),
    Condition(_note_write, lambda state, space: WRITES if space.erased else 0),
)
"""What management puts in the way: see `outboard.devices.nvme.management`."""


def admit(state: "State", command: Command, access: Access) -> None:
    """Raise `CommandFailed` if anything is in the way of an I/O command."""
    for space in _named(state, command, access):
        for condition in state.commands.conditions:
            condition.check(state, space, command, access)


def admit_admin(state: "State", command: Command) -> None:
    """Raise `CommandFailed` if anything is in the way of an admin command: on one namespace, or on all."""
    state.subsystem.sanitizing.check_admin(command)
    spaces = state.subsystem.namespaces
    everywhere = command.nsid == BROADCAST or command.opcode == AdminOpcode.SANITIZE
    for space in list(spaces.values()) if everywhere else [spaces.get(command.nsid)]:
        if space is not None:
            for condition in state.commands.conditions:
                condition.check_admin(state, space, command)


def _named(state: "State", command: Command, access: Access) -> list[Namespace]:
    """The namespaces a command is for: only what moves no data, Flush, can be for all of them."""
    if command.nsid == BROADCAST and access is Access.NONE:
        return list(state.namespaces.values())
    return [state.namespaces[command.nsid]] if command.nsid in state.namespaces else []


def slow_opcodes(state: "State", space: Namespace) -> int:
    """The commands that the data plane has to leave to Python, as bits by their opcodes."""
    opcodes = state.subsystem.faults.slow(state.identity.cntlid, space.nsid)
    for condition in state.commands.conditions:
        opcodes |= condition.slow(state, space)
    return opcodes
