"""What the SMART / Health page counts, over the life of a controller (NVMe Base 2.0, 5.16.1.3).

The counters are kept in the subsystem's store: when the controller is shut down or let go of, and every few
minutes while it runs. A process that is killed loses what came after, and the next start counts an unsafe
shutdown.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from outboard.devices.nvme.store import Store

SECTION = "health"


def _counters(kept: Mapping[str, Any]) -> "Counters":
    """What was kept, as far as there is a counter for it."""
    counters = Counters()
    for field in fields(Counters):
        if field.name in kept:
            kind = type(getattr(counters, field.name))
            setattr(counters, field.name, kind(kept[field.name]))
    return counters


@dataclass(slots=True)
class Counters:
    """What is kept. Times are seconds; ``running`` says that nobody has shut the controller down."""

    bytes_read: int = 0
    bytes_written: int = 0
    reads: int = 0
    writes: int = 0
    media_errors: int = 0
    errors: int = 0
    power_cycles: int = 0
    unsafe_shutdowns: int = 0
    power_on: float = 0.0
    busy: float = 0.0
    warm: float = 0.0
    hot: float = 0.0
    throttled_lightly: float = 0.0
    throttled_heavily: float = 0.0
    light_throttlings: int = 0
    heavy_throttlings: int = 0
    running: bool = False


class Health:
    """The counters of the controller ``owner``, of the commands executed here and of those before.

    ``reads``, ``writes``, ``bytes_read``, ``bytes_written`` and ``media_errors`` are to be added to.
    ``extra`` gives what was counted elsewhere since power on: reads, writes, bytes read, bytes written.
    """

    def __init__(self, store: Store, owner: int) -> None:
        self.extra: Callable[[], tuple[int, int, int, int]] | None = None
        self.warnings = 0
        """Critical warnings that were told of already."""
        self._store, self._owner = store, str(owner)
        self.counters = _counters(store.section(SECTION).get(self._owner, {}))
        self.reads, self.writes = self.counters.reads, self.counters.writes
        self.bytes_read, self.bytes_written = self.counters.bytes_read, self.counters.bytes_written
        self.media_errors = self.counters.media_errors
        self._accounted = self._powered_at = time.monotonic()
        self._moved = self.reads + self.writes
        self.unsafe_start = self.counters.running
        """Whether the last power cycle ended without a shutdown."""
        self.counters.power_cycles += 1
        self.counters.unsafe_shutdowns += self.unsafe_start
        self.counters.running = False
        self._keep()

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

    @property
    def since_power_on(self) -> float:
        """Seconds."""
        return time.monotonic() - self._powered_at

    def account(self, temperature: int, warning: int, critical: int, light: int, heavy: int) -> None:
        """Add the time since the last call, in which it was as warm (kelvins); 0 is no limit at all.

        Busy is as much of it as there were commands, a second for each.
        """
        now, counters = time.monotonic(), self.counters
        elapsed, self._accounted = now - self._accounted, now
        moved = sum(self.totals[:2])
        counters.power_on += elapsed
        counters.busy += min(elapsed, moved - self._moved)
        self._moved = moved
        if temperature >= critical:
            counters.hot += elapsed
        elif temperature >= warning:
            counters.warm += elapsed
        if heavy and temperature >= heavy:
            counters.throttled_heavily += elapsed
        elif light and temperature >= light:
            counters.throttled_lightly += elapsed

    def keep(self, *, running: bool, errors: int) -> None:
        """Make durable what there is. ``running``: if nothing more comes, this was no shutdown.

        Raises `SetupError`.
        """
        self._collect(errors)
        self.counters.running = running
        self._keep()

    def save(self, errors: int) -> dict[str, float]:
        """The counters, as JSON; ``errors`` are those the error log has counted."""
        self._collect(errors)
        return {**asdict(self.counters), "warnings": self.warnings}

    def restore(self, saved: Mapping[str, float]) -> None:
        """Become the health of another process. Raises KeyError, TypeError, ValueError for what is none."""
        self.warnings = int(saved["warnings"])
        self.counters = _counters(saved)
        counted = self.extra() if self.extra else (0, 0, 0, 0)
        self.reads, self.writes = self.counters.reads - counted[0], self.counters.writes - counted[1]
        self.bytes_read = self.counters.bytes_read - counted[2]
        self.bytes_written = self.counters.bytes_written - counted[3]
        self.media_errors = self.counters.media_errors
        self._accounted, self._moved = time.monotonic(), self.counters.reads + self.counters.writes

    def power_lost(self, *, unexpectedly: bool) -> None:
        """The power was gone for a moment, and nobody had shut the controller down, or somebody had."""
        self.counters.power_cycles += 1
        self.counters.unsafe_shutdowns += unexpectedly
        self._powered_at = time.monotonic()

    def _collect(self, errors: int) -> None:
        counters = self.counters
        counters.reads, counters.writes, counters.bytes_read, counters.bytes_written = self.totals
        counters.media_errors, counters.errors = self.media_errors, errors

    def _keep(self) -> None:
        self._store.change(SECTION, self._owner, asdict(self.counters))
