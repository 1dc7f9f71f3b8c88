"""The values of features: current, default and saved (NVMe Base 2.0, 5.27 and 4.4).

A reset brings back what was saved, or else the default. What is saved is kept in the subsystem's store, for
each controller, and outlives a power cycle.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from outboard.devices.nvme.events import ACCESS_NOTICES, CRITICAL_WARNINGS, OFFERED_NOTICES, TELEMETRY_NOTICES
from outboard.devices.nvme.spec import FeatureId, Select
from outboard.devices.nvme.store import Store

SECTION = "features"
OVER, UNDER = 0, 1
"""The sides of a temperature threshold."""

BEHAVIOR_SIZE, TRANSITIONS_SIZE = 512, 256

NOT_COALESCED = 1 << 16
"""Of an interrupt vector: Coalescing Disable."""

_COALESCING_TICK = 100_000
"""Nanoseconds in which an aggregation time is counted."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A value of one dword, of which a host may set the bits in ``mask``.

    ``saveable``: Save may be set with it. ``lasting``: it is always saved, whatever Save says.
    """

    default: int
    mask: int
    saveable: bool = True
    lasting: bool = False


PLAIN: dict[int, Plain] = {
    FeatureId.ARBITRATION: Plain(default=4, mask=0xFFFF_FF07),
    FeatureId.POWER_MANAGEMENT: Plain(default=0, mask=0xFF),
    FeatureId.TEMPERATURE_THRESHOLD: Plain(default=0, mask=0xFFFF),
    FeatureId.ERROR_RECOVERY: Plain(default=0, mask=0x1_FFFF),
    FeatureId.VOLATILE_WRITE_CACHE: Plain(default=1, mask=1),
    FeatureId.INTERRUPT_COALESCING: Plain(default=0, mask=0xFFFF),
    FeatureId.INTERRUPT_VECTOR_CONFIGURATION: Plain(default=0, mask=NOT_COALESCED),
    FeatureId.WRITE_ATOMICITY: Plain(default=0, mask=1),
    FeatureId.ASYNC_EVENT_CONFIGURATION: Plain(
        default=0, mask=CRITICAL_WARNINGS | OFFERED_NOTICES | TELEMETRY_NOTICES | ACCESS_NOTICES
    ),
    FeatureId.AUTONOMOUS_POWER_STATES: Plain(default=0, mask=1),
    FeatureId.KEEP_ALIVE_TIMER: Plain(default=0, mask=0xFFFF_FFFF, saveable=False),
    FeatureId.HOST_THERMAL_MANAGEMENT: Plain(default=0, mask=0xFFFF_FFFF),
    FeatureId.LBA_STATUS_ATTRIBUTES: Plain(default=0, mask=0xFFFF),
    FeatureId.COMMAND_SET_PROFILE: Plain(default=0, mask=0x1FF),
    FeatureId.SANITIZE_CONFIGURATION: Plain(default=0, mask=1),
    FeatureId.SOFTWARE_PROGRESS_MARKER: Plain(default=0, mask=0xFF, lasting=True),
}
"""The features of one dword. Some have several values, told apart by an index: see `Features.get`."""

OF_THE_DATA_PATH = frozenset(
    {
        FeatureId.ARBITRATION,
        FeatureId.VOLATILE_WRITE_CACHE,
        FeatureId.INTERRUPT_COALESCING,
        FeatureId.INTERRUPT_VECTOR_CONFIGURATION,
    }
)


class Features:
    """The values of one controller, whose saved ones are kept in ``store`` under ``owner``.

    ``on_change`` is called when one changes that commands and interrupts depend on: `burst`,
    `write_cache`, `coalescing` or `coalesced`. ``behavior`` is what the host says it can do, ``transitions``
    its table of autonomous power state transitions. While the power state is one without I/O, ``resting`` are
    the commands counted before it, and the state to go back to.
    """

    def __init__(self, warning_temperature: int, store: Store | None = None, owner: int = 0) -> None:
        self.on_change: Callable[[], None] | None = None
        self._store = store or Store()
        self._owner = str(owner)
        self._defaults = {_key(FeatureId.TEMPERATURE_THRESHOLD, OVER): warning_temperature}
        self.reset()

    def reset(self) -> None:
        """Bring the saved values back, and the defaults of the others."""
        self._current: dict[str, int] = {}
        self.behavior = bytes(BEHAVIOR_SIZE)
        self.transitions = self.saved_transitions
        self.resting: tuple[int, int] | None = None
        self._reset_at = self._since = time.monotonic()
        self._timestamp = 0
        self._origin = self._interrupted = False
        self._changed()

    def get(self, fid: int, index: int = 0, select: Select = Select.CURRENT) -> int:
        """A value of a feature of one dword.

        ``index`` is 0, the side of a temperature threshold, an interrupt vector, or a namespace (0: any that
        was not named).
        """
        key = _key(fid, index)
        if select == Select.CURRENT:
            if key not in self._current:
                self._current[key] = self.get(fid, index, Select.SAVED)
            return self._current[key]
        value = self._defaults.get(key, PLAIN[fid].default)
        if select == Select.SAVED:
            value = int(self._saved.get("plain", {}).get(key, value)) & PLAIN[fid].mask
        return value

    def set(self, fid: int, value: int, index: int = 0, *, save: bool = False) -> None:
        """Set a value, as far as a host may; and save it. Raises `SetupError` if it cannot be kept."""
        key = _key(fid, index)
        value &= PLAIN[fid].mask
        if save or PLAIN[fid].lasting:
            self._save(plain={**self._saved.get("plain", {}), key: value})
        self._current[key] = value
        if fid in OF_THE_DATA_PATH:
            self._changed()

    def set_transitions(self, table: bytes, *, save: bool = False) -> None:
        """Set the table of autonomous power state transitions; and save it."""
        if save:
            self._save(transitions=table.hex())
        self.transitions = table

    def forget_namespace(self, nsid: int) -> None:
        """A namespace is gone: the next one with its identifier begins with the defaults."""
        key = _key(FeatureId.ERROR_RECOVERY, nsid)
        self._current.pop(key, None)
        saved = self._saved.get("plain", {})
        if key in saved:
            plain = {name: value for name, value in saved.items() if name != key}
            self._store.change(SECTION, self._owner, {**self._saved, "plain": plain}, anyway=True)

    @property
    def saved_transitions(self) -> bytes:
        """The table that was saved, or one that says nothing."""
        table = bytes.fromhex(self._saved.get("transitions", ""))
        return table[:TRANSITIONS_SIZE].ljust(TRANSITIONS_SIZE, b"\0")

    @property
    def _saved(self) -> Mapping[str, Any]:
        saved: Mapping[str, Any] = self._store.section(SECTION).get(self._owner, {})
        return saved

    def _save(self, **values: Any) -> None:
        self._store.change(SECTION, self._owner, {**self._saved, **values})

    def save(self) -> dict[str, Any]:
        """The current values, as JSON."""
        return {
            "current": self._current,
            "behavior": self.behavior.hex(),
            "transitions": self.transitions.hex(),
            "timestamp": self.timestamp.hex(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take back what `save` gave. Raises KeyError, ValueError, TypeError."""
        self._current = {
            key: int(value) & PLAIN[int(key.split(".")[0])].mask
            for key, value in dict(saved["current"]).items()
        }
        self.behavior = bytes.fromhex(saved["behavior"])[:BEHAVIOR_SIZE].ljust(BEHAVIOR_SIZE, b"\0")
        table = bytes.fromhex(saved["transitions"])
        self.transitions = table[:TRANSITIONS_SIZE].ljust(TRANSITIONS_SIZE, b"\0")
        timestamp = bytes.fromhex(saved["timestamp"]).ljust(8, b"\0")
        self._timestamp, self._since = int.from_bytes(timestamp[:6], "little"), time.monotonic()
        # Nobody knows how long it stood still on the way.
        self._origin, self._interrupted = bool(timestamp[6] >> 1), True
        self._changed()

    def _changed(self) -> None:
        if self.on_change:
            self.on_change()

    @property
    def burst(self) -> int:
        """Commands taken from one queue before its neighbour's turn, as the host recommends."""
        return 1 << (self.get(FeatureId.ARBITRATION) & 7)

    @property
    def weights(self) -> tuple[int, int, int]:
        """Commands that the high, the medium and the low class have in one turn, where these are weighted."""
        value = self.get(FeatureId.ARBITRATION)
        return (value >> 24) + 1, (value >> 16 & 0xFF) + 1, (value >> 8 & 0xFF) + 1

    @property
    def write_cache(self) -> bool:
        """Whether a write may be completed before it is durable."""
        return bool(self.get(FeatureId.VOLATILE_WRITE_CACHE))

    @property
    def coalescing(self) -> tuple[int, int]:
        """Completions to gather before an interrupt (1: none), and nanoseconds to wait at most (0: none).

        For I/O queues only.
        """
        value = self.get(FeatureId.INTERRUPT_COALESCING)
        return (value & 0xFF) + 1, (value >> 8 & 0xFF) * _COALESCING_TICK

    def coalesced(self, vector: int) -> bool:
        """Whether the host leaves `coalescing` on for this vector."""
        return not self.get(FeatureId.INTERRUPT_VECTOR_CONFIGURATION, vector)

    def reports_deallocated(self, nsid: int) -> bool:
        """Whether the host wants an error when it reads deallocated blocks of a namespace (DULBE)."""
        return bool(self.get(FeatureId.ERROR_RECOVERY, nsid) & 1 << 16)

    def copies_across(self, kind: int) -> bool:
        """Whether the host has enabled copy descriptors of format ``kind`` (2 or 3)."""
        return bool(self.behavior[4] >> kind & 1)

    @property
    def wanted_events(self) -> int:
        """Asynchronous Event Configuration."""
        return self.get(FeatureId.ASYNC_EVENT_CONFIGURATION)

    def tells(self, notice: int) -> bool:
        """Whether the host wants events of this bit of Asynchronous Event Configuration."""
        return bool(self.wanted_events & notice)

    def threshold(self, side: int) -> int:
        """The temperature (kelvins) over or under which a drive complains."""
        return self.get(FeatureId.TEMPERATURE_THRESHOLD, side)

    @property
    def since_reset(self) -> int:
        """Milliseconds."""
        return int((time.monotonic() - self._reset_at) * 1000)

    @property
    def timestamp(self) -> bytes:
        """The clock as Get Features gives it: milliseconds since 1970, or since the reset if it is not set.

        Then come its origin (1: a host set it), and whether it may have stood still since (Synch).
        """
        now = self._timestamp + int((time.monotonic() - self._since) * 1000)
        attributes = int(self._origin) << 1 | int(self._interrupted)
        return (now & (1 << 48) - 1).to_bytes(6, "little") + bytes([attributes, 0])

    @timestamp.setter
    def timestamp(self, data: bytes) -> None:
        self._timestamp, self._since = int.from_bytes(data[:6], "little"), time.monotonic()
        self._origin, self._interrupted = True, False


def _key(fid: int, index: int) -> str:
    """How a value is named in JSON."""
    return f"{int(fid)}.{index}"
