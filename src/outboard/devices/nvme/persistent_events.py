"""The persistent event log: what happened to a subsystem, over all its power cycles (NVMe Base 2.0, 5.16).

Events are kept in the store, newest first. A host reads them from a context of its own: a copy of the log
that stays as it is while new events come, and that it establishes and releases.
"""

from typing import TYPE_CHECKING

from outboard.devices.nvme import layouts, vitals
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.spec import HardwareError, LogId, PersistentEvent
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.store import Store

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State

SECTION = "persistent_events"

UNITS = 1
"""The largest log, in 64 KiB (PELS)."""

HEADER, EVENT_HEADER = 512, 24
_BEHIND_HEADER = 20
"""Bytes of the log's header that its header length does not count."""

SUPPORTED = {
    PersistentEvent.HEALTH_SNAPSHOT,
    PersistentEvent.FIRMWARE_COMMIT,
    PersistentEvent.TIMESTAMP_CHANGE,
    PersistentEvent.POWER_ON_OR_RESET,
    PersistentEvent.HARDWARE_ERROR,
    PersistentEvent.CHANGE_NAMESPACE,
    PersistentEvent.FORMAT_START,
    PersistentEvent.FORMAT_COMPLETION,
    PersistentEvent.SANITIZE_START,
    PersistentEvent.SANITIZE_COMPLETION,
    PersistentEvent.TELEMETRY_CREATED,
    PersistentEvent.THERMAL_EXCURSION,
}
"""The kinds of events that can come."""

READ, ESTABLISH, RELEASE, ESTABLISH_FOR_HEADER = range(4)
"""What a host wants done with its context."""

_CONTEXT_EXISTED = 1 << 18


class PersistentEvents:
    """The events of a subsystem, kept in ``store``.

    >>> events = PersistentEvents(Store())
    >>> events.add(PersistentEvent.HARDWARE_ERROR, bytes(4))
    >>> len(events)
    1
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._entries)

    def add(
        self, kind: PersistentEvent, data: bytes = b"", *, cntlid: int = 0, timestamp: bytes = bytes(8)
    ) -> None:
        """An event happened: ``data`` is as the specification says for this kind. Raises `SetupError`.

        ``cntlid`` is the controller it happened to, ``timestamp`` what that calls the time (feature 0Eh). The
        oldest events go when there is no more room.
        """
        entry = layouts.PERSISTENT_EVENT.encode(
            type=kind,
            revision=1,
            header_length=EVENT_HEADER - 3,
            cntlid=cntlid,
            timestamp=timestamp,
            length=len(data),
        )
        entries = [(entry + data).hex(), *self._entries]
        room = UNITS * 65536 - HEADER
        while sum(map(len, entries)) > 2 * room:
            entries.pop()
        events = {"generation": (self.generation + 1) % 65536, "entries": entries}
        self._store.put(SECTION, events, anyway=True)

    @property
    def generation(self) -> int:
        """A number that changes with every event."""
        return int(self._store.section(SECTION).get("generation", 0))

    @property
    def encoded(self) -> bytes:
        """The events, as they follow each other in the log."""
        return b"".join(map(bytes.fromhex, self._entries))

    @property
    def _entries(self) -> list[str]:
        entries: list[str] = self._store.section(SECTION).get("entries", [])
        return entries


def persistent_event_log(state: "State", command: Command) -> bytes:
    """The log page: what the host's context holds, once it has one."""
    action = command.cdw10 >> 8 & 3
    existed = state.event_context is not None
    if action == RELEASE:
        state.event_context = None
        return _log(state, existed)
    if action == READ and not existed:
        raise CommandFailed(Status.COMMAND_SEQUENCE_ERROR, "there is no context to read from", location=41)
    if action == ESTABLISH and existed:
        raise CommandFailed(Status.COMMAND_SEQUENCE_ERROR, "there is a context already", location=41)
    if state.event_context is None:
        state.event_context = _log(state, existed)
    if action == ESTABLISH_FOR_HEADER:
        return state.event_context[:HEADER]
    return state.event_context


def _log(state: "State", existed: bool) -> bytes:
    subsystem, identity = state.subsystem, state.identity
    events = subsystem.persistent_events
    body = events.encoded
    supported = sum(1 << kind for kind in SUPPORTED)
    header = layouts.PERSISTENT_EVENT_HEADER.encode(
        lid=LogId.PERSISTENT_EVENTS,
        events=len(events),
        length=HEADER + len(body),
        revision=2,
        header_length=HEADER - _BEHIND_HEADER,
        timestamp=state.features.timestamp,
        power_on_hours=int(state.health.counters.power_on) // 3600,
        power_cycles=state.health.counters.power_cycles,
        vid=identity.vendor_id,
        ssvid=identity.subsystem_vendor_id,
        sn=subsystem.serial.encode().ljust(20),
        mn=subsystem.model.encode().ljust(40),
        subnqn=subsystem.nqn.encode(),
        generation=events.generation,
        context=_CONTEXT_EXISTED if existed else 0,
        supported=supported.to_bytes(32, "little"),
    )
    return header + body


def switched_on(state: "State") -> None:
    """Remember that a controller was switched on, how it is, and what became of it the last time."""
    if state.health.unsafe_start:
        failed(state, HardwareError.UNSAFE_SHUTDOWN)
    was_reset(state)
    state.remember(PersistentEvent.HEALTH_SNAPSHOT, vitals.page(state))


def failed(state: "State", error: HardwareError) -> None:
    """Remember that something of a controller is broken."""
    state.remember(PersistentEvent.HARDWARE_ERROR, error.to_bytes(4, "little"))


def was_reset(state: "State") -> None:
    """Remember that a controller was switched on or reset."""
    event = layouts.POWER_ON_EVENT.encode(
        firmware=state.identity.firmware.encode().ljust(8),
        cntlid=state.identity.cntlid,
        power_cycles=state.health.counters.power_cycles,
        since_power_on=int(state.health.since_power_on * 1000),
        timestamp=state.features.timestamp,
    )
    state.remember(PersistentEvent.POWER_ON_OR_RESET, event)
