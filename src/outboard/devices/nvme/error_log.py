"""The commands that failed, as the Error Information page tells of them (NVMe Base 2.0, 5.16.1.2).

Entries are of this life of the controller: a reset removes them. How many there ever were is counted on.
What a host brought about itself, by aborting a command or deleting its queue, is no error.
"""

import logging
from collections import deque
from typing import TYPE_CHECKING

from outboard.devices.nvme import layouts
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import IoOpcode
from outboard.devices.nvme.status import CommandFailed, Status, status_field
from outboard.devices.nvme.transfer import Abandoned

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

log = logging.getLogger(__name__)

ENTRY_SIZE = 64

NOBODY = 0xFFFF
"""The queue and the command of an error that no command made."""

_NO_ERROR = frozenset({Status.ABORT_REQUESTED, Status.ABORTED_SQ_DELETION, Status.ABORTED_POWER_LOSS})

_ADDRESSED = frozenset(
    {
        IoOpcode.WRITE,
        IoOpcode.READ,
        IoOpcode.WRITE_UNCORRECTABLE,
        IoOpcode.COMPARE,
        IoOpcode.WRITE_ZEROES,
        IoOpcode.VERIFY,
        IoOpcode.COPY,
        IoOpcode.ZONE_MANAGEMENT_SEND,
        IoOpcode.ZONE_MANAGEMENT_RECEIVE,
        IoOpcode.ZONE_APPEND,
    }
)
"""The I/O commands whose dwords 10 and 11 are a block's address."""


class ErrorLog:
    """The last ``capacity`` errors, newest first, and how many there ever were: ``count`` before these."""

    def __init__(self, capacity: int, count: int = 0) -> None:
        self.count = count
        self.entries: deque[bytes] = deque(maxlen=capacity)

    def add(self, sqid: int, command: Command, status: int, failure: CommandFailed, csi: int = 0) -> None:
        """Remember a failed command of command set ``csi``; ``status`` is its 15-bit status field."""
        lba = failure.lba
        if lba is None:
            lba = command.slba if sqid and command.opcode in _ADDRESSED else 0
        location = NOBODY if failure.location is None else failure.location | failure.bit << 8
        self._add(
            sqid=sqid,
            cid=command.cid,
            status=status << 1,
            parameter_location=location,
            lba=lba,
            nsid=command.nsid,
            csi=csi,
            opcode=command.opcode,
        )

    def add_of_nobody(self, status: Status) -> None:
        """Remember what went wrong with the controller, or its doorbells, and with no command."""
        self._add(sqid=NOBODY, cid=NOBODY, status=status_field(status) << 1, parameter_location=NOBODY)

    def clear(self) -> None:
        """Remove the entries."""
        self.entries.clear()

    def _add(self, **values: int) -> None:
        self.count += 1
        self.entries.appendleft(layouts.ERROR_ENTRY.encode(error_count=self.count, version=1, **values))


def logged_failure(state: "State", sqid: int, command: Command, error: Exception) -> int:
    """Log a failure where the host can read it; return its status field. More: there is an entry."""
    if isinstance(error, Abandoned):
        raise error
    if not isinstance(error, CommandFailed):
        log.error("opcode %#x of queue %d failed", command.opcode, sqid, exc_info=error)
        error = CommandFailed(Status.INTERNAL_ERROR, repr(error))
    log.debug("queue %d, command %#x: %s", sqid, command.cid, error)
    logged = error.status not in _NO_ERROR
    field = error.field if error.field is not None else status_field(error.status, more=logged)
    if logged:
        space = state.namespaces.get(command.nsid) if sqid else None
        state.errors.add(sqid, command, field, error, space.csi if space else 0)
    return field
