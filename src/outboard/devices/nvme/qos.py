"""How much of a namespace's speed its hosts may have together: limits in commands and bytes a second."""

from dataclasses import dataclass, fields

from outboard.errors import DefinitionError

MOST_COMMANDS, MOST_BYTES = 10_000_000, 100_000_000_000
"""The largest limits: beyond them nanoseconds are too coarse, and nothing would be limited."""


@dataclass(frozen=True, slots=True)
class Qos:
    """Limits of a namespace, a second; 0: none.

    ``iops`` and ``bytes_per_second`` are for reads and writes together, the others for one of them. A command
    that moves no data, as Write Zeroes, has no bytes; Flush and what is not about blocks is not limited. What
    was not used is saved up for 20 ms. Limits are the namespace's: all queues, pollers and controllers share
    them, and take turns.

    Raises `DefinitionError` for a negative limit, or one above `MOST_COMMANDS` or `MOST_BYTES`.

    >>> Qos(iops=5000, write_bytes_per_second=100 << 20)
    Qos(iops=5000, bytes_per_second=0, read_iops=0, write_iops=0, read_bytes_per_second=0, \
write_bytes_per_second=104857600)
    """

    iops: int = 0
    bytes_per_second: int = 0
    read_iops: int = 0
    write_iops: int = 0
    read_bytes_per_second: int = 0
    write_bytes_per_second: int = 0

    def __post_init__(self) -> None:
        for each in fields(self):
            limit, most = getattr(self, each.name), MOST_COMMANDS if "iops" in each.name else MOST_BYTES
            if not 0 <= limit <= most:
                raise DefinitionError(f"{each.name} is {limit}: it is 1 to {most}, or 0 for no limit")

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return any(getattr(self, each.name) for each in fields(self))
