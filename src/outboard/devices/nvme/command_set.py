"""What is known of a command beside how it is executed: the tables of commands are made of these.

`outboard.devices.nvme.admin` and `outboard.devices.nvme.io` have the tables. What Identify and the effects
log say of commands follows from them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outboard.devices.nvme.admission import Access, Condition
from outboard.devices.nvme.spec import Csi
from outboard.devices.nvme.state import Handler

CHANGES_BLOCKS, CHANGES_NAMESPACE, CHANGES_INVENTORY, CHANGES_CONTROLLER = 1 << 1, 1 << 2, 1 << 3, 1 << 4
"""Effects, as the log of commands' effects has them: LBCC, NCC, NIC, CCC."""

ALONE_IN_NAMESPACE, ALONE = 0b001 << 16, 0b010 << 16
"""Command Submission and Execution: no other command of the namespace, or of any, should be under way."""


@dataclass(frozen=True, slots=True)
class AdminCommand:
    """An admin command; ``pausing``: the data plane has to stand still meanwhile."""

    handler: Handler
    effects: int = 0
    pausing: bool = False


@dataclass(frozen=True, slots=True)
class IoCommand:
    """An I/O command and what it does with blocks; ``csi``: the only command set that has it, or None."""

    handler: Handler
    access: Access = Access.NONE
    effects: int = 0
    csi: Csi | None = None


@dataclass(frozen=True, slots=True)
class Commands:
    """What a controller executes, by opcode, and what may be in the way of I/O commands."""

    admin: Mapping[int, AdminCommand]
    io: Mapping[int, IoCommand]
    conditions: Sequence[Condition] = ()
