"""Asynchronous events: requests that wait, events that wait, and which of them meet.

NVMe Base 2.0, 5.2. An Asynchronous Event Request completes only when there is something to say. An
event of one type is said once; the next of that type waits until the host has read the log page that
goes with it. Events for which no request is outstanding are kept, each kind once.
"""

from collections import deque
from dataclasses import dataclass

from outboard.devices.nvme.spec import ErrorEvent, EventType, IoEvent, LogId, NoticeEvent
from outboard.devices.nvme.status import CommandFailed, Status


@dataclass(frozen=True, slots=True)
class Event:
    """Something to tell the host; ``log`` is the page that says more and, once read, clears it.

    ``detail`` is the specific parameter of an event that has one.
    """

    type: EventType
    info: int
    log: LogId
    detail: int = 0

    @property
    def result(self) -> int:
        """Dwords 0 and 1 of the completion that tells it."""
        return self.type | self.info << 8 | self.log << 16 | self.detail << 32


INVALID_DOORBELL_REGISTER = Event(
    EventType.ERROR, ErrorEvent.INVALID_DOORBELL_REGISTER, LogId.ERROR_INFORMATION
)
INVALID_DOORBELL_VALUE = Event(EventType.ERROR, ErrorEvent.INVALID_DOORBELL_VALUE, LogId.ERROR_INFORMATION)
NAMESPACE_CHANGED = Event(EventType.NOTICE, NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED, LogId.CHANGED_NAMESPACES)
ACCESS_CHANGED = Event(EventType.NOTICE, NoticeEvent.NAMESPACE_ACCESS_CHANGED, LogId.NAMESPACE_ACCESS)
RESERVATION_CHANGED = Event(EventType.IO_SPECIFIC, IoEvent.RESERVATION, LogId.RESERVATION_NOTIFICATION)
ZONE_CHANGED = Event(EventType.NOTICE, NoticeEvent.ZONE_DESCRIPTOR_CHANGED, LogId.CHANGED_ZONES)
"""Of the namespace that is its detail."""

_EVENTS = (INVALID_DOORBELL_VALUE, NAMESPACE_CHANGED, ACCESS_CHANGED, RESERVATION_CHANGED, ZONE_CHANGED)
"""One for each log that clears a type of events."""

Ending = tuple[int, Status, int]
"""A command of the admin queue that ends now: ``(cid, status, result)``."""


class Events:
    """The events and the requests of one controller, which allows ``limit`` requests at a time.

    ``parked`` are the requests that wait, ``waiting`` the events that do, ``masked`` the types that wait for
    their log to be read, ``endings`` the requests that end without an event.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reset()

    def reset(self) -> None:
        """Drop everything, silently."""
        self.parked: deque[int] = deque()
        self.waiting: dict[Event, None] = {}
        self.masked: set[EventType] = set()
        self.endings: deque[Ending] = deque()

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

    def log_was_read(self, log: LogId) -> None:
        """The host read a log page, and did not ask to retain its event: it may be told the next one."""
        for event in _EVENTS:
            if event.log == log:
                self.masked.discard(event.type)

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
        self.masked.add(event.type)
        return self.parked.popleft(), Status.SUCCESS, event.result

    def _next_event(self) -> Event | None:
        return next((event for event in self.waiting if event.type not in self.masked), None)
