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


def admit(state: "State", command: Command, access: Access) -> None:
    """Raise `CommandFailed` if anything is in the way of an I/O command."""
    space = state.namespaces.get(command.nsid)
    if space is not None:
        for condition in state.commands.conditions:
            condition.check(state, space, command, access)


def admit_admin(state: "State", command: Command) -> None:
    """Raise `CommandFailed` if anything is in the way of an admin command: on one namespace, or on all."""
    spaces = state.subsystem.namespaces
    everywhere = command.nsid == BROADCAST or command.opcode == AdminOpcode.SANITIZE
    for space in list(spaces.values()) if everywhere else [spaces.get(command.nsid)]:
        if space is not None:
            for condition in state.commands.conditions:
                condition.check_admin(state, space, command)


def slow_opcodes(state: "State", space: Namespace) -> int:
    """The commands that the data plane has to leave to Python, as bits by their opcodes."""
    opcodes = state.subsystem.faults.slow(state.identity.cntlid, space.nsid)
    for condition in state.commands.conditions:
        opcodes |= condition.slow(state, space)
    return opcodes
