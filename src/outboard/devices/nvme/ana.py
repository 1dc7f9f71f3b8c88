"""Asymmetric namespace access: how good a path each controller is (NVMe Base 2.0, 8.1 and 5.16.1.13).

Namespaces are in groups (`Namespace.ana_group`), and each controller has a state for each group, which
whoever runs the subsystem sets (`Subsystem.set_ana`). Where a group cannot be reached, commands end with a
status of the path, at which a host with another path takes that one.
"""

import struct
from enum import IntEnum
from typing import TYPE_CHECKING

from outboard.devices.nvme.admission import EVERYTHING, Access, Condition
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.namespace import ANA_GROUPS, Namespace
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.errors import DefinitionError

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

CAPABILITIES = 0b0101_1111
"""ANACAP: every state is reported; a namespace stays in its group while it is attached."""

TRANSITION = 10
"""ANATT: seconds after which Linux, and after twice which it resets, takes a path for dead that changes."""

_HEADER, _GROUP = struct.Struct("<QH6x"), struct.Struct("<IIQB15x")
_GROUPS_ONLY = 1 << 8


class AnaState(IntEnum):
    """How a controller can access a group of namespaces.

    ``CHANGE`` is for ten seconds at most: hosts wait for the state that comes then.
    """

    OPTIMIZED = 0x1
    NON_OPTIMIZED = 0x2
    INACCESSIBLE = 0x3
    PERSISTENT_LOSS = 0x4
    CHANGE = 0xF


_STATUSES = {
    AnaState.INACCESSIBLE: Status.ANA_INACCESSIBLE,
    AnaState.PERSISTENT_LOSS: Status.ANA_PERSISTENT_LOSS,
    AnaState.CHANGE: Status.ANA_TRANSITION,
}
"""How commands end in the states that let none through."""


class AnaStates:
    """The states of a subsystem's groups by controller, and how often they changed."""

    def __init__(self) -> None:
        self._states: dict[tuple[int, int], AnaState] = {}
        self._changes: dict[tuple[int, int], int] = {}

    def of(self, cntlid: int, group: int) -> AnaState:
        """The state of a group for a controller; optimized unless it was set."""
        return self._states.get((cntlid, group), AnaState.OPTIMIZED)

    def set(self, cntlid: int, group: int, state: AnaState) -> None:
        """Set it. Raises `DefinitionError` for a group that there cannot be."""
        if not 1 <= group <= ANA_GROUPS:
            raise DefinitionError(f"ANA groups are 1 to {ANA_GROUPS}: {group} is not")
        self._states[cntlid, group] = AnaState(state)
        self.changed(cntlid, group)

    def changed(self, cntlid: int, group: int) -> None:
        """What a controller says of a group is not what it was."""
        self._changes[cntlid, group] = self.changes(cntlid, group) + 1

    def changes(self, cntlid: int, group: int) -> int:
        """How often that was since the controller's last reset."""
        return self._changes.get((cntlid, group), 0)

    def was_reset(self, cntlid: int) -> None:
        """A controller was reset: changes are counted anew, states stay."""
        for group in range(1, ANA_GROUPS + 1):
            self._changes.pop((cntlid, group), None)

    def forget(self, cntlid: int) -> None:
        """A controller is gone: the next one with this identifier begins anew."""
        self.was_reset(cntlid)
        for group in range(1, ANA_GROUPS + 1):
            self._states.pop((cntlid, group), None)


def state_of(state: "State", space: Namespace) -> AnaState:
    """The state of a namespace's group for a controller."""
    return state.subsystem.ana.of(state.identity.cntlid, space.ana_group)


def reachable(state: "State", space: Namespace) -> bool:
    """Whether a controller has access to a namespace."""
    return state_of(state, space) not in _STATUSES


def require_access(state: "State", space: Namespace) -> None:
    """Raise `CommandFailed`, with the path's status, if a controller has no access to a namespace."""
    found = state_of(state, space)
    if found in _STATUSES:
        raise CommandFailed(
            _STATUSES[found], f"group {space.ana_group} is {found.name} by this controller", location=4
        )


def check(state: "State", space: Namespace, command: Command, access: Access) -> None:
    """Every I/O command needs the path (an admission condition)."""
    require_access(state, space)


def slow(state: "State", space: Namespace) -> int:
    """Without a path every command is for Python to refuse."""
    return 0 if reachable(state, space) else EVERYTHING


CONDITION = Condition(check, slow)


def log(state: "State", command: Command) -> bytes:
    """Return the Asymmetric Namespace Access log: the groups of which the controller has a namespace."""
    states, cntlid = state.subsystem.ana, state.identity.cntlid
    groups: dict[int, list[int]] = {}
    for nsid, space in sorted(state.namespaces.items()):
        groups.setdefault(space.ana_group, []).append(nsid)
    page = b""
    for group in sorted(groups):
        nsids = [] if command.cdw10 & _GROUPS_ONLY else groups[group]
        page += _GROUP.pack(group, len(nsids), states.changes(cntlid, group), states.of(cntlid, group))
        page += struct.pack(f"<{len(nsids)}I", *nsids)
    total = sum(states.changes(cntlid, group) for group in range(1, ANA_GROUPS + 1))
    return _HEADER.pack(total, len(groups)) + page
