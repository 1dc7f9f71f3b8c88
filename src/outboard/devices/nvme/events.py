"""Asynchronous events: requests that wait, events that wait, and which of them meet.

NVMe Base 2.0, 5.2. An Asynchronous Event Request completes only when there is something to say. After an
event its type is masked until the host has read the log page that goes with that event. Events for which no
request is outstanding are kept, each kind once; to read an event's log is to have heard of it.
"""

from collections import deque
from dataclasses import dataclass, field

from outboard.devices.nvme.spec import ErrorEvent, EventType, HealthEvent, IoEvent, LogId, NoticeEvent
from outboard.devices.nvme.status import CommandFailed, Status

NAMESPACE_NOTICES, FIRMWARE_NOTICES, TELEMETRY_NOTICES, ACCESS_NOTICES = 1 << 8, 1 << 9, 1 << 10, 1 << 11
LBA_STATUS_NOTICES, ZONE_NOTICES = 1 << 13, 1 << 27
"""Bits of Asynchronous Event Configuration."""

CRITICAL_WARNINGS = 0xFF
"""The bits of it that are those of the SMART / Health page."""

OFFERED_NOTICES = NAMESPACE_NOTICES | FIRMWARE_NOTICES | LBA_STATUS_NOTICES | ZONE_NOTICES
"""The notices that can come, as OAES has them. It says nothing of telemetry: who has that tells of it."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something to tell the host; ``log`` is the page that says more and, once read, clears it.

    ``detail`` is the specific parameter of an event that has one: the namespace whose log that is.
    ``wanted_by`` are bits of Asynchronous Event Configuration: without one of them set it is not told.
    """

    type: EventType
    info: int
    log: LogId
    detail: int = 0
    wanted_by: int = field(default=0, compare=False)

    @property
    def result(self) -> int:
        """Dwords 0 and 1 of the completion that tells it."""
        return self.type | self.info << 8 | self.log << 16 | self.detail << 32

    def is_cleared_by(self, log: LogId, nsid: int) -> bool:
        """Whether to read this page, of this namespace, is to have heard of it."""
        return self.log == log and self.detail in (0, nsid)


def _error(info: ErrorEvent) -> Event:
    return Event(EventType.ERROR, info, LogId.ERROR_INFORMATION)


def _notice(info: NoticeEvent, log: LogId, wanted_by: int) -> Event:
    return Event(EventType.NOTICE, info, log, wanted_by=wanted_by)


INVALID_DOORBELL_REGISTER = _error(ErrorEvent.INVALID_DOORBELL_REGISTER)
INVALID_DOORBELL_VALUE = _error(ErrorEvent.INVALID_DOORBELL_VALUE)

NAMESPACE_CHANGED = _notice(
    NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED, LogId.CHANGED_NAMESPACES, NAMESPACE_NOTICES
)
FIRMWARE_ACTIVATION_STARTING = _notice(
    NoticeEvent.FIRMWARE_ACTIVATION_STARTING, LogId.FIRMWARE_SLOT, FIRMWARE_NOTICES
)
TELEMETRY_CHANGED = _notice(NoticeEvent.TELEMETRY_CHANGED, LogId.CONTROLLER_TELEMETRY, TELEMETRY_NOTICES)
ACCESS_CHANGED = _notice(NoticeEvent.NAMESPACE_ACCESS_CHANGED, LogId.NAMESPACE_ACCESS, ACCESS_NOTICES)
LBA_STATUS_ALERT = _notice(NoticeEvent.LBA_STATUS_ALERT, LogId.LBA_STATUS, LBA_STATUS_NOTICES)
ZONE_CHANGED = _notice(NoticeEvent.ZONE_DESCRIPTOR_CHANGED, LogId.CHANGED_ZONES, ZONE_NOTICES)
"""Of the namespace that is its detail."""

RESERVATION_LOG_AVAILABLE = Event(EventType.IO_SPECIFIC, IoEvent.RESERVATION, LogId.RESERVATION_NOTIFICATION)
SANITIZE_COMPLETED = Event(EventType.IO_SPECIFIC, IoEvent.SANITIZE_COMPLETED, LogId.SANITIZE_STATUS)


def health_event(info: HealthEvent, warning: int) -> Event:
    """The event that tells of critical warnings; ``warning`` is their bit in the SMART / Health page."""
    return Event(EventType.HEALTH, info, LogId.HEALTH, wanted_by=warning)


Ending = tuple[int, Status, int]
"""A command of the admin queue that ends now: ``(cid, status, result)``."""


class Events:
    """The events and the requests of one controller, which allows ``limit`` requests at a time.

    ``parked`` are the requests that wait, ``waiting`` the events that do, ``endings`` the commands that end
    without an event: requests, and those of ``deferred``, which wait for an operation, by its name.
    ``masked`` are the types of which nothing is told, with the event whose log has to be read.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reset()

    def reset(self) -> None:
        """Drop everything, silently."""
        self.parked: deque[int] = deque()
        self.waiting: dict[Event, None] = {}
        self.masked: dict[EventType, Event] = {}
        self.endings: deque[Ending] = deque()
        self.deferred: dict[int, str] = {}

    def defer(self, cid: int, operation: str) -> None:
        """An admin command came that ends with an operation in the background."""
        self.deferred[cid] = operation

    def finish(self, operation: str, status: Status = Status.SUCCESS) -> bool:
        """An operation has ended, and with it the commands that wait for it; False if none does."""
        ended = [cid for cid, awaited in self.deferred.items() if awaited == operation]
        for cid in ended:
            del self.deferred[cid]
            self.endings.append((cid, status, 0))
        return bool(ended)

    def park(self, cid: int) -> None:
        """An Asynchronous Event Request came; raises `CommandFailed` if it is one too many."""
        if len(self.parked) >= self.limit:
            raise CommandFailed(
                Status.EVENT_REQUEST_LIMIT_EXCEEDED, f"{self.limit} event requests are outstanding already"
            )
        self.parked.append(cid)

    def post(self, event: Event) -> None:
        """Something happened."""
        self.waiting[event] = None

    def configured(self, wanted: int) -> None:
        """Asynchronous Event Configuration has this value now: forget what the host does not want to hear."""
        for event in [each for each in self.waiting if each.wanted_by and not each.wanted_by & wanted]:
            del self.waiting[event]

    def log_was_read(self, log: LogId, nsid: int = 0) -> None:
        """The host read a log page, that of ``nsid`` if it is a namespace's, and did not retain its event."""
        self.masked = {
            kind: event for kind, event in self.masked.items() if not event.is_cleared_by(log, nsid)
        }
        for event in [each for each in self.waiting if each.is_cleared_by(log, nsid)]:
            del self.waiting[event]

    def abort(self, cid: int) -> bool:
        """End the request ``cid`` as aborted; False if no such request is outstanding."""
        if cid not in self.parked:
            return False
        self.parked.remove(cid)
        self.endings.append((cid, Status.ABORT_REQUESTED, 0))
        return True

    @property
    def due(self) -> bool:
        """Whether `next_ending` has one."""
        return bool(self.endings) or (bool(self.parked) and self._next_event() is not None)

    def next_ending(self) -> Ending | None:
        """Return the next request that ends, or None."""
        if self.endings:
            return self.endings.popleft()
        event = self._next_event()
        if event is None or not self.parked:
            return None
        del self.waiting[event]
        self.masked[event.type] = event
        return self.parked.popleft(), Status.SUCCESS, event.result

    def _next_event(self) -> Event | None:
        return next((event for event in self.waiting if event.type not in self.masked), None)
