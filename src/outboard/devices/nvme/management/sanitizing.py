"""Sanitize operations: everything on the drive is made irretrievable (NVMe Base 2.0, 5.24 and 8.21).

The drive is one: while an operation is under way, or after one failed, no namespace answers, and few admin
commands are executed. It goes on through resets, and begins anew after a power cycle: section ``sanitize`` of
the store.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from outboard.devices.nvme import layouts
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.events import SANITIZE_COMPLETED
from outboard.devices.nvme.management.background import Interrupted, Operation, Step, Steps
from outboard.devices.nvme.management.erasing import Told, erase, overwrite
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.spec import AdminOpcode, LogId, PersistentEvent, SanitizeAction, SanitizeStatus
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.workers import wait_for_rest
from outboard.errors import StorageError

if TYPE_CHECKING:
    from outboard.devices.nvme.subsystem import Subsystem

log = logging.getLogger(__name__)

SECTION = "sanitize"

CAPABILITIES = 0b111 | 0b01 << 30
"""SANICAP: crypto erase, block erase, overwrite; what is not deallocated stays as the operation left it."""

FULL_PROGRESS = 0xFFFF
GLOBAL_DATA_ERASED = 1 << 8

BYTES_A_SECOND = 256 << 20
"""What the estimates of an overwrite assume; everything else takes a second, unless it has to write."""

LONGEST_TIME = 0xFFFF_FFFE
"""Seconds that an estimate can say."""

_ALLOWED_COMMANDS = frozenset(
    {
        AdminOpcode.DELETE_IO_SQ,
        AdminOpcode.CREATE_IO_SQ,
        AdminOpcode.GET_LOG_PAGE,
        AdminOpcode.DELETE_IO_CQ,
        AdminOpcode.CREATE_IO_CQ,
        AdminOpcode.IDENTIFY,
        AdminOpcode.ABORT,
        AdminOpcode.SET_FEATURES,
        AdminOpcode.GET_FEATURES,
        AdminOpcode.ASYNC_EVENT_REQUEST,
        AdminOpcode.KEEP_ALIVE,
        AdminOpcode.DOORBELL_BUFFER_CONFIG,
    }
)
_ALLOWED_LOGS = frozenset(
    {
        LogId.SUPPORTED,
        LogId.ERROR_INFORMATION,
        LogId.HEALTH,
        LogId.CHANGED_NAMESPACES,
        LogId.COMMANDS_EFFECTS,
        LogId.RESERVATION_NOTIFICATION,
        LogId.SANITIZE_STATUS,
    }
)
"""What is executed although the drive is sanitized: what starts a controller, and says how far it is."""


@dataclass(frozen=True, slots=True)
class Request:
    """Dwords 10 and 11 of Sanitize."""

    dword10: int
    pattern: int

    @property
    def action(self) -> int:
        """SANACT."""
        return self.dword10 & 7

    @property
    def unrestricted(self) -> bool:
        """AUSE: a failure can be left by Exit Failure Mode."""
        return bool(self.dword10 >> 3 & 1)

    @property
    def passes(self) -> int:
        """OWPASS, of an overwrite; 0 otherwise."""
        return (self.dword10 >> 4 & 0xF or 16) if self.action == SanitizeAction.OVERWRITE else 0

    @property
    def inverts(self) -> bool:
        """OIPBP: the pattern is inverted between passes."""
        return bool(self.dword10 >> 8 & 1)

    @property
    def keeps(self) -> bool:
        """NDAS: nothing is deallocated afterwards."""
        return bool(self.dword10 >> 9 & 1)

    def patterns(self) -> Iterator[bytes]:
        """What each pass writes; the last one is what was asked for."""
        for left in reversed(range(self.passes)):
            inverted = self.inverts and left & 1
            yield (self.pattern ^ (0xFFFF_FFFF if inverted else 0)).to_bytes(4, "little")


Pass = Callable[[Namespace, Told], Iterator[Step]]
"""The steps that go once over a namespace."""


def _overwrite(pattern: bytes, space: Namespace, told: Told) -> Iterator[Step]:
    return overwrite(space.storage, space.metadata_offset, pattern, told)


class Sanitizing:
    """The sanitize operation of one subsystem, the last one or the one under way. All in its turn."""

    def __init__(self, subsystem: "Subsystem") -> None:
        self._subsystem = subsystem
        saved = subsystem.store.get(SECTION, {})
        self.status = SanitizeStatus(saved.get("status", SanitizeStatus.NEVER))
        self.request = Request(int(saved.get("dword10", 0)), int(saved.get("pattern", 0)) & 0xFFFF_FFFF)
        self.passes_done = int(saved.get("passes_done", 0)) & 0x1F
        self.left = bool(saved.get("left", False))
        self.progress = FULL_PROGRESS

    def go_on(self) -> None:
        """Begin anew what a power cycle has ended."""
        if self.status == SanitizeStatus.IN_PROGRESS:
            self.begin(self.request)

    @property
    def barrier(self) -> Status | None:
        """The status of whatever is not allowed now."""
        if self.status == SanitizeStatus.IN_PROGRESS:
            return Status.SANITIZE_IN_PROGRESS
        return Status.SANITIZE_FAILED if self.status == SanitizeStatus.FAILED and not self.left else None

    def bar(self, space: Namespace) -> None:
        """Let no I/O command through to a namespace, if that is how it is."""
        space.barred = self.barrier

    def check_admin(self, command: Command) -> None:
        """Raise `CommandFailed` for an admin command that may not be executed now."""
        barrier = self.barrier
        if barrier is None:
            return
        allowed = command.opcode in _ALLOWED_COMMANDS or command.opcode == AdminOpcode.SANITIZE
        if command.opcode == AdminOpcode.GET_LOG_PAGE:
            allowed = command.cdw10 & 0xFF in _ALLOWED_LOGS
        if not allowed:
            raise CommandFailed(barrier, f"opcode {command.opcode:#x} has to wait for a sanitize operation")

    def begin(self, request: Request) -> None:
        """Sanitize, from now on in the background."""
        self.request, self.passes_done, self.progress, self.left = request, 0, 0, False
        self._become(SanitizeStatus.IN_PROGRESS)
        for nsid, space in self._subsystem.namespaces.items():
            for state in self._subsystem.states_of(nsid):
                state.abort(space, Status.SANITIZE_IN_PROGRESS)
        self._subsystem.background.start(Operation("sanitize", self._steps))

    def leave_failure(self) -> None:
        """Exit Failure Mode: what is left of the data may be used; the log goes on to tell of the failure."""
        self.left = True
        self._become(self.status)

    def _become(self, status: SanitizeStatus) -> None:
        self.status = status
        self._keep()
        for nsid, space in self._subsystem.namespaces.items():
            self.bar(space)
            space.erased = status == SanitizeStatus.COMPLETED
            self._subsystem.reconfigure(nsid)

    def _keep(self) -> None:
        kept = {
            "status": self.status,
            "dword10": self.request.dword10,
            "pattern": self.request.pattern,
            "passes_done": self.passes_done,
            "left": self.left,
        }
        self._subsystem.keep(SECTION, kept)

    def _steps(self, operation: Operation) -> Steps:
        spaces = list(self._subsystem.namespaces.values())
        passes = list(self._passes())
        total = sum(space.storage.size for space in spaces) * len(passes) or 1
        before = 0
        status = SanitizeStatus.COMPLETED

        def told(done: int) -> None:
            self.progress = min((before + done) * FULL_PROGRESS // total, FULL_PROGRESS - 1)

        for number, make in enumerate(passes, 1):
            for space in spaces:
                if self._subsystem.namespaces.get(space.nsid) is not space:
                    continue
                operation.target = space
                try:
                    yield partial(wait_for_rest, space.storage)
                    yield from make(space, told)
                except Interrupted:
                    continue
                except Exception as error:
                    expected = isinstance(error, StorageError)
                    log.warning(
                        "namespace %d could not be sanitized: %s", space.nsid, error, exc_info=not expected
                    )
                    status = SanitizeStatus.FAILED
                before += space.storage.size
            operation.target = None
            if number <= self.request.passes and status != SanitizeStatus.FAILED:
                self.passes_done = number
        self.progress = FULL_PROGRESS
        if status == SanitizeStatus.COMPLETED:
            for space in spaces:
                space.was_erased(deallocated=not self.request.keeps)
                self._subsystem.relocate(space)
                self._subsystem.uncorrectable.renew(space)
        self._become(status)
        completion = layouts.SANITIZE_COMPLETION_EVENT.encode(sprog=self.progress, sstat=self._sstat)
        self._subsystem.remember(PersistentEvent.SANITIZE_COMPLETION, completion)
        for state in self._subsystem.controllers.values():
            state.report(SANITIZE_COMPLETED)

    def _passes(self) -> Iterator[Pass]:
        request = self.request
        for pattern in request.patterns():
            yield partial(_overwrite, pattern)
        zoned = any(space.zones is not None for space in self._subsystem.namespaces.values())
        if not request.passes or not request.keeps or zoned:
            yield self._erased

    def _erased(self, space: Namespace, told: Told) -> Iterator[Step]:
        """Zeros; not where a pattern is to stay, and may: in zones that are empty there can be none."""
        if self.request.passes and self.request.keeps and space.zones is None:
            return iter(())
        return erase(space.storage, told, keep=self.request.keeps)

    @property
    def _sstat(self) -> int:
        """SSTAT: how it stands, the passes that are done, whether nothing was written since."""
        spaces = self._subsystem.namespaces.values()
        erased = self.status == SanitizeStatus.COMPLETED and all(space.erased for space in spaces)
        return self.status | self.passes_done << 3 | erased * GLOBAL_DATA_ERASED

    def log(self) -> bytes:
        """The Sanitize Status log page."""
        spaces = self._subsystem.namespaces.values()
        size = sum(space.storage.size for space in spaces)
        writing = min(1 + size // BYTES_A_SECOND, LONGEST_TIME)
        erase_time = 1 if all(space.storage.discard_zeroes for space in spaces) else writing
        return layouts.SANITIZE_LOG.encode(
            sprog=self.progress,
            sstat=self._sstat,
            scdw10=self.request.dword10,
            overwrite_time=min(16 * writing, LONGEST_TIME),
            block_erase_time=erase_time,
            crypto_erase_time=erase_time,
            overwrite_time_kept=min(16 * writing, LONGEST_TIME),
            block_erase_time_kept=writing,
            crypto_erase_time_kept=writing,
        )
