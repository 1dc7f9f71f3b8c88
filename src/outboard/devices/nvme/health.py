"""What the SMART / Health page counts (NVMe Base 2.0, 5.16.1.3)."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Health:
    """Counters of the SMART / Health page, of the commands executed here.

    ``extra`` gives what was counted elsewhere: reads, writes, bytes read, bytes written.
    """

    bytes_read: int = 0
    bytes_written: int = 0
    reads: int = 0
    writes: int = 0
    media_errors: int = 0
    unsafe_shutdowns: int = 0
    since: float = field(default_factory=time.monotonic)
    extra: Callable[[], tuple[int, int, int, int]] | None = None

    @property
    def totals(self) -> tuple[int, int, int, int]:
        """Reads, writes, bytes read, bytes written, wherever they were counted."""
        reads, writes, bytes_read, bytes_written = self.extra() if self.extra else (0, 0, 0, 0)
        return (
            self.reads + reads,
            self.writes + writes,
            self.bytes_read + bytes_read,
            self.bytes_written + bytes_written,
        )
