"""The commands that failed, as the Error Information page tells of them (NVMe Base 2.0, 5.16.1.2)."""

from collections import deque

from outboard.devices.nvme import layouts
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.status import CommandFailed


class ErrorLog:
    """The last ``capacity`` commands that failed, newest first, and how many there ever were."""

    def __init__(self, capacity: int) -> None:
        self.count = 0
        self.entries: deque[bytes] = deque(maxlen=capacity)

    def add(self, sqid: int, command: Command, status: int, failure: CommandFailed, lba: int) -> None:
        """Remember a failed command; ``status`` is its 15-bit status field."""
        self.count += 1
        entry = layouts.ERROR_ENTRY.encode(
            error_count=self.count,
            sqid=sqid,
            cid=command.cid,
            status=status << 1,
            parameter_location=0xFFFF if failure.location is None else failure.location,
            lba=lba,
            nsid=command.nsid,
        )
        self.entries.appendleft(entry)
