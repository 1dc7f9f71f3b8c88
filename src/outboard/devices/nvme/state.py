"""Everything a controller remembers, apart from its registers. The commands work on this."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from outboard.devices.nvme.admission import slow_opcodes
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.plane import DataPlane
from outboard.devices.nvme.error_log import ErrorLog
from outboard.devices.nvme.events import ACCESS_CHANGED, NAMESPACE_CHANGED, Event, Events
from outboard.devices.nvme.feature_values import Features
from outboard.devices.nvme.health import Health
from outboard.devices.nvme.lba_status import LbaStatusLog
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.queues import CompletionQueue, SubmissionQueue
from outboard.devices.nvme.reservation import Host
from outboard.devices.nvme.reservation_log import ReservationLog
from outboard.devices.nvme.spec import BROADCAST, PAGE, Csi, PersistentEvent
from outboard.devices.nvme.status import CommandFailed, Status, status_field
from outboard.devices.nvme.subsystem import Subsystem
from outboard.devices.nvme.telemetry import Telemetry
from outboard.devices.nvme.transfer import Bus
from outboard.devices.nvme.work import Work
from outboard.errors import SetupError
from outboard.storage import Storage

if TYPE_CHECKING:
    from outboard.devices.nvme.command_set import Commands

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """What Identify Controller says about who this is, beside the subsystem's names."""

    cntlid: int
    firmware: str
    vendor_id: int
    subsystem_vendor_id: int


@dataclass(frozen=True, slots=True)
class Limits:
    """How much there is of everything. Temperatures are kelvins, ``mdts`` is a power of two of pages.

    So is ``zasl``, for Zone Append; 0 is as much as ``mdts``.
    """

    io_queues: int = 128
    vectors: int = 129
    queue_entries: int = 4096
    mdts: int = 8
    zasl: int = 0
    aborts: int = 4
    event_requests: int = 4
    error_entries: int = 64
    warning_temperature: int = 343
    critical_temperature: int = 353

    @property
    def transfer(self) -> int:
        """Bytes one command may move."""
        return PAGE << self.mdts

    @property
    def append(self) -> int:
        """Bytes one Zone Append may move."""
        return PAGE << self.zasl if self.zasl else self.transfer


class Cancellable(Protocol):
    """Something that is under way."""

    def cancel(self) -> None:
        """Let nothing come of it."""


class Held(Cancellable, Protocol):
    """A command that a fault holds back."""

    def go_on(self) -> None:
        """Have it executed now."""

    def abort(self) -> None:
        """End it as aborted."""


@dataclass(frozen=True, slots=True)
class Outstanding:
    """A command that waits for storage, or a fused pair of them; or one that is ``held``."""

    sq: SubmissionQueue
    commands: tuple[Command, ...]
    task: Cancellable
    held: Held | None = None


@dataclass(frozen=True, slots=True)
class Hardware:
    """What can become of the function that a controller is in, and its clock: seconds, and what to call."""

    after: Callable[[float, Callable[[], None]], Cancellable]
    fail: Callable[[], None]
    vanish: Callable[[], None]
    lose_power: Callable[[], None]


@dataclass(slots=True)
class State:
    """A controller between its registers and its namespaces, those of ``subsystem`` that are attached to it.

    ``commands`` are those it executes. ``wake`` has it look at what there is to do, from any thread.
    ``restart`` has it reset with its subsystem, from any thread.
    ``fused`` are first commands of fused pairs, by the identifiers of their queues, whose second is awaited.
    ``outstanding`` are the commands that wait in Python; ``drain`` returns when all have ended but those that
    were cancelled; ``still``, which other threads may call, too, when no storage is at work for any of them,
    ``rest`` when one of the storages is not; ``let_go`` then forgets that. ``pause`` says whether the host is
    to see that processing is paused (CSTS.PP).
    ``host_identifier`` is what the host has set (Set Features 81h), of 8 or 16 bytes, or nothing.
    ``granted`` is the number of I/O queues of each kind the host was given (Set Features 07h).
    ``entry_sizes_set`` says whether CC.IOSQES and CC.IOCQES have the only values there are, ``command_sets``
    which the host enables: ``namespaces`` are those of them.
    ``event_context`` is the copy of the persistent event log that the host reads.
    """

    subsystem: Subsystem
    identity: Identity
    limits: Limits
    commands: "Commands"
    namespaces: dict[int, Namespace]
    bus: Bus
    plane: DataPlane
    wake: Callable[[], None]
    restart: Callable[[], None] = lambda: None
    features: Features = field(init=False)
    events: Events = field(init=False)
    health: Health = field(init=False)
    errors: ErrorLog = field(init=False)
    telemetry: Telemetry = field(init=False)
    event_context: bytes | None = None
    changed_namespaces: set[int] = field(default_factory=set)
    changed_zones: dict[int, dict[int, None]] = field(default_factory=dict)
    lba_status: LbaStatusLog = field(default_factory=LbaStatusLog)
    submission: dict[int, SubmissionQueue] = field(default_factory=dict)
    completion: dict[int, CompletionQueue] = field(default_factory=dict)
    fused: dict[int, Command] = field(default_factory=dict)
    outstanding: dict[object, Outstanding] = field(default_factory=dict)
    drain: Callable[[], None] = lambda: None
    still: Callable[[], None] = lambda: None
    let_go: Callable[[Storage], None] = lambda storage: None
    pause: Callable[[bool], None] = lambda paused: None
    rest: Callable[[Storage], None] = lambda storage: None
    host_identifier: bytes = b""
    reservation_log: ReservationLog = field(default_factory=ReservationLog)
    granted: int = field(init=False)
    entry_sizes_set: bool = False
    hardware: Hardware | None = None
    command_sets: frozenset[Csi] = frozenset(Csi)

    def __post_init__(self) -> None:
        store, cntlid = self.subsystem.store, self.identity.cntlid
        self.features = Features(self.limits.warning_temperature, store, cntlid)
        self.events = Events(self.limits.event_requests)
        self.health = Health(store, cntlid)
        self.errors = ErrorLog(self.limits.error_entries, self.health.counters.errors)
        self.telemetry = Telemetry(store, cntlid)
        self.granted = self.limits.io_queues
        self.health.extra = self.plane.totals
        self.plane.adopt(
            self.submission, self.completion, self.features, lambda space: slow_opcodes(self, space)
        )
        self.plane.waiting.noticed = self.wake
        self.features.on_change = self.plane.configure

    def reset(self) -> None:
        """Forget what a controller level reset forgets; counters and namespaces stay.

        Only while the data plane is paused.
        """
        self.bus.end_life()
        for waiting in self.outstanding.values():
            waiting.task.cancel()
        self.outstanding.clear()
        self.fused.clear()
        # Before others have their turns, and it could pass.
        self.subsystem.self_tests.controller_was_reset(self.identity.cntlid)
        # What a storage still does for this life must not undo what the next one writes.
        self.still()
        self.submission.clear()
        self.completion.clear()
        self.plane.reset()
        self.host_identifier = b""
        self.subsystem.host_left(self.identity.cntlid)
        self.features.reset()
        self.events.reset()
        self.errors.clear()
        self.health.warnings = 0
        self.event_context = None
        self.changed_namespaces.clear()
        self.changed_zones.clear()
        self.lba_status.forget()
        self.subsystem.ana.was_reset(self.identity.cntlid)
        self.reservation_log.reset()
        self.granted = self.limits.io_queues
        self.subsystem.controller_was_reset(self.identity.cntlid)

    @property
    def host(self) -> Host:
        """The host that uses the controller, as reservations know it."""
        return Host(self.host_identifier, 0 if self.host_identifier else self.identity.cntlid)

    def report(self, event: Event) -> None:
        """Tell the host of ``event`` when it can be told, if it wants to be."""
        if not event.wanted_by or self.features.tells(event.wanted_by):
            self.events.post(event)
            self.wake()

    def report_doorbell(self, event: Event, status: Status) -> None:
        """Log what the host did wrong with a doorbell, and tell it."""
        self.errors.add_of_nobody(status)
        self.events.post(event)

    def remember(self, kind: PersistentEvent, data: bytes = b"") -> None:
        """Add to the persistent event log what happened to this controller."""
        cntlid, timestamp = self.identity.cntlid, self.features.timestamp
        try:
            self.subsystem.persistent_events.add(kind, data, cntlid=cntlid, timestamp=timestamp)
        except SetupError:
            log.exception("an event is remembered for as long as this process runs only")

    @property
    def attached(self) -> dict[int, Namespace]:
        """The namespaces that are attached, of whatever command set; from any thread."""
        cntlid = self.identity.cntlid
        spaces = list(self.subsystem.namespaces.items())
        return {nsid: space for nsid, space in spaces if cntlid in space.attached}

    def enable_sets(self, command_sets: frozenset[Csi]) -> None:
        """The host enables these command sets: namespaces of others are not there for it."""
        self.command_sets = command_sets
        self.namespaces.clear()
        self.namespaces |= {n: space for n, space in self.attached.items() if space.csi in command_sets}
        self.plane.configure()

    def namespace_changed(self, nsid: int) -> None:
        """Tell the host, if it wants to be told, that something about a namespace is not as it was."""
        self.changed_namespaces.add(nsid)
        self.report(NAMESPACE_CHANGED)

    def access_changed(self, group: int) -> None:
        """Tell the host, if it wants to be told, that a group of namespaces is reached in another way."""
        concerned = any(space.ana_group == group for space in self.namespaces.values())
        if concerned:
            self.report(ACCESS_CHANGED)

    def withdraw(self, sq: SubmissionQueue) -> list[int]:
        """Take back the commands of ``sq`` that Python has; their identifiers. Only while paused."""
        first = self.fused.pop(sq.id, None)
        cids = [first.cid] if first is not None else []
        cids += [Command.decode(entry).cid for entry in self.plane.withdraw(sq)]
        for key, waiting in list(self.outstanding.items()):
            if waiting.sq is sq:
                waiting.task.cancel()
                del self.outstanding[key]
                cids += [command.cid for command in waiting.commands]
        with self.bus.one_life():
            self.still()
        sq.cq.pending -= len(cids)
        return cids

    def abort(self, space: Namespace, status: Status, *, alone: bool = False) -> None:
        """End with ``status`` the I/O commands of a namespace that wait for storage, from any thread.

        Those for all namespaces, too, unless they can go on without it, ``alone``.
        The data plane has nothing of the namespace under way afterwards. The storage may be at work still,
        for as long as it likes: for that `outboard.devices.nvme.workers` has ways to wait.
        """
        with self.plane.paused():
            pass
        for key, waiting in list(self.outstanding.items()):
            nsid = waiting.commands[0].nsid
            if waiting.sq.id and (nsid == space.nsid or (nsid == BROADCAST and not alone)):
                waiting.task.cancel()
                del self.outstanding[key]
                for command in waiting.commands:
                    self._end(waiting.sq, command.cid, status_field(status))
        self.wake()

    def _end(self, sq: SubmissionQueue, cid: int, field: int) -> None:
        if sq.cq.fast:
            self.plane.complete(sq, cid, field, 0)
        else:
            sq.cq.pending -= 1
            sq.cq.owe(sq, cid, field, 0)

    def abort_held(self, sq: SubmissionQueue, cid: int) -> bool:
        """End a command that a fault holds back as aborted; False if there is no such command."""
        for waiting in self.outstanding.values():
            if waiting.held is not None and waiting.sq is sq and waiting.commands[0].cid == cid:
                waiting.held.abort()
                return True
        return False

    def namespace(self, nsid: int) -> Namespace:
        """Return the namespace; raise `CommandFailed` (Invalid Namespace or Format) if there is none."""
        try:
            return self.namespaces[nsid]
        except KeyError:
            raise CommandFailed(
                Status.INVALID_NAMESPACE, f"there is no namespace {nsid:#x}", location=4
            ) from None


Handler = Callable[[State, Command], int | Work | None]
"""Executes a command: returns dword 0 of its completion, None if it completes later, or work to be run.

Raises `CommandFailed` for every other end.
"""
