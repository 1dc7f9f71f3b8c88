"""The controller: takes commands from the queues in turn, has them executed, posts their completions.

It knows neither PCI nor registers: see `outboard.devices.nvme.function`. NVMe Base 2.0, 3.3 and 3.5.

`Controller.process` does a bounded amount of work, so that whoever drives it can do other things in
between. A command is taken only when its completion has a place to go. Whatever a command does wrong
ends in its own completion; only queues that cannot be read or written at all end the controller.
"""

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from enum import Enum

from outboard.devices.nvme.admin import ADMIN_COMMANDS
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.events import INVALID_DOORBELL_REGISTER, INVALID_DOORBELL_VALUE, Event
from outboard.devices.nvme.io import IO_COMMANDS
from outboard.devices.nvme.queues import CompletionQueue, SubmissionQueue
from outboard.devices.nvme.state import State
from outboard.devices.nvme.status import CommandFailed, Status, status_field
from outboard.devices.nvme.transfer import Abandoned, check_flags
from outboard.devices.nvme.work import run_inline
from outboard.errors import DmaError

log = logging.getLogger(__name__)

BATCH = 64
"""Commands executed by one call of `Controller.process`."""


class Progress(Enum):
    """What `Controller.process` leaves behind."""

    IDLE = "nothing to do until a doorbell rings"
    MORE = "call again soon"
    STALLED = "a queue's memory is not there now: call again later, or give up"


class Controller:
    """Executes the commands of ``state``'s queues; ``interrupt`` is called once a batch for each queue."""

    def __init__(self, state: State, interrupt: Callable[[CompletionQueue], None]) -> None:
        self.state = state
        self.enabled = False
        self._interrupt = interrupt
        self._processing = False
        self._last_served = 0
        self._out_of_reach: list[SubmissionQueue | CompletionQueue] = []

    def enable(self, asq: int, sq_size: int, acq: int, cq_size: int) -> None:
        """Start with the admin queues at these addresses, of so many entries."""
        cq = CompletionQueue(0, acq, cq_size, submitters=1)
        self.state.completion[0] = cq
        self.state.submission[0] = SubmissionQueue(0, asq, sq_size, cq)
        self._last_served = 0
        self.enabled = True

    def stop(self) -> None:
        """Take no more commands (shutdown); what is there stays readable."""
        self.enabled = False

    def reset(self) -> None:
        """End this life: no DMA, completion or interrupt of it comes later."""
        self.enabled = False
        self.state.reset()

    def ring(self, doorbell: int, value: int) -> bool:
        """The host wrote ``value`` to doorbell number ``doorbell``; True if `process` has something to do.

        Even numbers are submission queues' tails, odd ones completion queues' heads (DSTRD is 0).
        """
        if not self.enabled:
            return False
        queues = self.state.completion if doorbell & 1 else self.state.submission
        queue = queues.get(doorbell >> 1)
        if queue is None:
            self.state.events.post(INVALID_DOORBELL_REGISTER)
        elif not queue.ring(value):
            self.state.events.post(INVALID_DOORBELL_VALUE)
        return self.pending

    def report(self, event: Event) -> None:
        """Tell the host of ``event`` when it can be told."""
        self.state.events.post(event)

    @property
    def pending(self) -> bool:
        """Whether there is a command to take, or an event to tell, and room for the answer."""
        state = self.state
        if not self.enabled or self._processing:
            return False
        return (
            any(sq.ready for sq in state.submission.values())
            or any(cq.owed for cq in state.completion.values())
            or (state.events.due and state.completion[0].room > 0)
        )

    @property
    def unconsumed(self) -> bool:
        """Whether a completion waits in a queue that interrupts: what holds an INTx line up."""
        return any(cq.interrupts and cq.head != cq.tail for cq in self.state.completion.values())

    def process(self) -> Progress:
        """Execute up to `BATCH` commands. Called from within itself, by way of a DMA message: nothing."""
        if self._processing or not self.enabled:
            return Progress.IDLE
        self._processing = True
        self._out_of_reach.clear()
        try:
            self._process()
        except Abandoned:
            log.debug("reset while memory was awaited: the rest of the batch is dropped")
        finally:
            self._processing = False
            self._signal()
        if self._out_of_reach:
            return Progress.STALLED
        return Progress.MORE if self.pending else Progress.IDLE

    def _process(self) -> None:
        state = self.state
        for cq in [cq for cq in state.completion.values() if cq.owed]:
            with self._reaching(cq):
                cq.settle(state.bus)
        budget = BATCH
        while self.enabled and budget > 0 and (queues := self._in_turn()):
            for sq in queues:
                with self._reaching(sq):
                    budget -= self._serve(sq, min(budget, state.features.burst))
                if budget <= 0:
                    break
            self._tell_events()
        self._tell_events()

    @contextmanager
    def _reaching(self, queue: SubmissionQueue | CompletionQueue) -> Iterator[None]:
        """Leave ``queue`` alone for the rest of the batch if its memory is not there."""
        try:
            yield
        except DmaError as error:
            log.debug("%s queue %d is out of reach: %s", type(queue).__name__, queue.id, error)
            self._out_of_reach.append(queue)

    def _in_turn(self) -> list[SubmissionQueue]:
        """The queues with something to take, beginning after the one that was served last."""
        return sorted(
            (sq for sq in self.state.submission.values() if sq.ready and sq not in self._out_of_reach),
            key=lambda sq: (sq.id <= self._last_served, sq.id),
        )

    def _serve(self, sq: SubmissionQueue, limit: int) -> int:
        """Execute up to ``limit`` commands of ``sq``; return how many."""
        if self.state.submission.get(sq.id) is not sq:
            return 0
        entries = sq.peek(self.state.bus, min(limit, sq.cq.room))
        self._last_served = sq.id
        for taken, entry in enumerate(entries):
            if not self.enabled:
                return taken
            sq.advance()
            self._execute(sq, Command.decode(entry))
        return len(entries)

    def _execute(self, sq: SubmissionQueue, command: Command) -> None:
        """Execute one command and, unless it waits for an event, complete it."""
        result: int | None = 0
        field = 0
        try:
            result = self._handle(sq, command)
        except CommandFailed as failure:
            field = self._fail(sq, command, failure)
        except Abandoned:
            raise
        except Exception as error:
            log.exception("opcode %#x of queue %d failed", command.opcode, sq.id)
            field = self._fail(sq, command, CommandFailed(Status.INTERNAL_ERROR, repr(error)))
        if result is not None:
            sq.cq.post(self.state.bus, sq, command.cid, field, result)

    def _handle(self, sq: SubmissionQueue, command: Command) -> int | None:
        # First of all: an identifier left behind would end a later command that has it too.
        if command.cid in sq.aborted:
            sq.aborted -= {command.cid}
            raise CommandFailed(Status.ABORT_REQUESTED)
        commands = IO_COMMANDS if sq.id else ADMIN_COMMANDS
        handler = commands.get(command.opcode)
        if handler is None:
            raise CommandFailed(Status.INVALID_OPCODE, f"opcode {command.opcode:#x} is unknown", location=0)
        check_flags(sq.id, command)
        if sq.id == 0 and command.cid in self.state.events.parked:
            raise CommandFailed(
                Status.COMMAND_ID_CONFLICT, f"command {command.cid:#x} is outstanding", location=2
            )
        result = handler(self.state, command)
        return run_inline(result) if isinstance(result, Generator) else result

    def _fail(self, sq: SubmissionQueue, command: Command, failure: CommandFailed) -> int:
        """Log a failure where the host can read it; return its status field."""
        field = status_field(failure.status, more=True)
        lba = command.slba if sq.id else 0
        self.state.errors.add(sq.id, command, field, failure, lba)
        log.debug("queue %d, command %#x: %s", sq.id, command.cid, failure)
        return field

    def _tell_events(self) -> None:
        """Complete event requests, as far as the admin completion queue has room."""
        state = self.state
        if not state.events.due:
            return
        sq = state.submission[0]
        with self._reaching(sq.cq):
            while sq.cq.room > 0 and (ending := state.events.next_ending()):
                cid, status, result = ending
                sq.cq.post(state.bus, sq, cid, status_field(status), result)

    def _signal(self) -> None:
        for cq in self.state.completion.values():
            if cq.signal:
                cq.signal = False
                self._interrupt(cq)
