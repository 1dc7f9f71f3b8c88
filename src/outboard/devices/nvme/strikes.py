"""What becomes of a command that faults have struck, from where it would be executed to where it ends.

First it is held (delayed, or hung), then executed, perhaps with its storage altered, or not at all; then it
ends as the faults say, or the controller does. Everything else a controller does with it is as always: it can
be aborted, its queue can be deleted, and a reset forgets it.
"""

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from outboard.devices.nvme.admission import Access
from outboard.devices.nvme.altered import Altered, through, view
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.injection import Strike
from outboard.devices.nvme.queues import SubmissionQueue
from outboard.devices.nvme.spec import IoOpcode
from outboard.devices.nvme.state import Cancellable, Outstanding, State
from outboard.devices.nvme.status import CommandFailed, Status, status_field
from outboard.devices.nvme.work import Work

if TYPE_CHECKING:
    from outboard.devices.nvme.controller import Controller

Complete = Callable[[SubmissionQueue, int, int, int], None]
"""Completes a command of a queue: its identifier, its status field, dwords 0 and 1 of its completion."""

_CODE = 0x7FF
"""SCT and SC of a status field."""


class Held:
    """A command that waits for its time, or for nothing: `go_on` ends the wait, `cancel` the command."""

    def __init__(self, struck: "Struck") -> None:
        self._struck = struck
        self.timer: Cancellable | None = None

    def cancel(self) -> None:
        """Let nothing come of it."""
        if self.timer is not None:
            self.timer.cancel()

    def go_on(self) -> None:
        """Have it executed now; nothing once it was let go, though its time has come."""
        if self._let_go():
            self._struck.execute()
            self._struck.controller.progressed()

    def abort(self) -> None:
        """End it as aborted: the host asks for that."""
        self._let_go()
        self._struck.controller.complete(
            self._struck.sq, self._struck.command.cid, status_field(Status.ABORT_REQUESTED), 0
        )

    def _let_go(self) -> bool:
        self.cancel()
        return self._struck.controller.state.outstanding.pop(self, None) is not None


class Struck:
    """``command`` of ``sq``, which has its place in the completion queue, and was struck by ``strike``."""

    def __init__(
        self, controller: "Controller", sq: SubmissionQueue, command: Command, strike: Strike
    ) -> None:
        self.controller = controller
        self.sq = sq
        self.command = command
        self._strike = strike
        self._altered: list[Altered] = []

    def begin(self) -> None:
        """Do what comes first."""
        if self._strike.hang == "reset":
            forget(self.controller.state, self.sq)
        elif self._strike.hang or self._strike.delay > 0:
            self._hold()
        else:
            self.execute()

    def execute(self) -> None:
        """Have it executed, as far as the faults let it be."""
        self.controller.carry_out(self.sq, self.command, self._handle, self._ended)

    def _hold(self) -> None:
        state = self.controller.state
        held = Held(self)
        if not self._strike.hang:
            assert state.hardware is not None
            held.timer = state.hardware.after(self._strike.delay, held.go_on)
        state.outstanding[held] = Outstanding(self.sq, (self.command,), held, held)

    def _handle(self) -> int | Work | None:
        faults = self._strike.faults
        torn = any(fault.torn is not None or fault.torn_bytes is not None for fault in faults)
        if not torn and any(fault.ends_controller for fault in faults):
            return 0
        if not torn and self._strike.field is not None:
            return self._failing()
        if not any(fault.alters for fault in faults) or not self._has_data:
            outcome = self.controller.handle(self.sq, self.command)
            if outcome is None:
                # An event request, which waits: its completion is the one that faults are about.
                self.controller.event_requests[self.command.cid] = self._complete
            return outcome
        seen, self._altered = view(self.controller.state, self.command, self._strike)
        outcome = self.controller.handle(self.sq, self.command, seen)
        return self._altering(outcome) if isinstance(outcome, Generator) else outcome

    @property
    def _has_data(self) -> bool:
        """Whether the command is for blocks; others may change the namespace itself."""
        io = self.controller.state.commands.io.get(self.command.opcode)
        return self.command.opcode == IoOpcode.FLUSH or (io is not None and io.access is not Access.NONE)

    def _altering(self, work: Work) -> Work:
        result = yield from through(work, self._altered)
        return result if self._strike.field is None else self._failing()

    def _failing(self) -> int:
        """End with the status that was asked for; one that says success is not in the error log."""
        field = self._strike.field
        assert field is not None
        if field & _CODE:
            raise CommandFailed(Status.INTERNAL_ERROR, "a fault was injected", field=field)
        return 0

    def _ended(self, sq: SubmissionQueue, commands: tuple[Command, ...], outcome: int | Exception) -> None:
        self._complete(sq, self.command.cid, *self.controller.judge(sq, self.command, outcome))

    def _complete(self, sq: SubmissionQueue, cid: int, field: int, result: int) -> None:
        """Complete it, or do not."""
        faults = self._strike.faults
        if ending := next((fault for fault in faults if fault.ends_controller), None):
            hardware = self.controller.state.hardware
            assert hardware is not None
            forget(self.controller.state, sq)
            for altered in self._altered:
                altered.settle()
            if ending.fatal:
                hardware.fail()
            elif ending.removal:
                hardware.vanish()
            else:
                self.controller.state.subsystem.power_cut(self._strike.seed)
            return
        if not field and self._strike.field is not None:
            field = self._strike.field
        if any(fault.lost_completion for fault in faults):
            forget(self.controller.state, sq)
        elif any(fault.lost_interrupt for fault in faults):
            complete_unheard(self.controller.state, sq, cid, field, result)
        else:
            self.controller.complete(sq, cid, field, result)


def complete_unheard(state: State, sq: SubmissionQueue, cid: int, field: int, result: int) -> None:
    """Post the completion of a command that was counted as pending, with no interrupt that says so."""
    with state.plane.paused():
        signal = sq.cq.signal
        sq.cq.pending -= 1
        sq.cq.post(state.bus, sq, cid, field, result)
        sq.cq.signal = signal


def forget(state: State, sq: SubmissionQueue) -> None:
    """A command that was counted as pending never completes."""
    with state.plane.paused():
        sq.cq.pending -= 1
