"""The controller: takes commands from the queues in turn, has them executed, posts their completions.

It knows neither PCI nor registers: see `outboard.devices.nvme.function`. NVMe Base 2.0, 3.3 and 3.5.

I/O queues are the data plane's (`outboard.devices.nvme.datapath`). What comes here is the admin queue, what
the data plane leaves to Python, and whole queues whose memory it cannot reach.

`Controller.process` does a bounded amount of work, so that whoever drives it can do other things in
between. A command is taken only when its completion has a place to go. Whatever a command does wrong
ends in its own completion; only queues that cannot be read or written at all end the controller.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from enum import Enum
from functools import partial

from outboard.devices.nvme import power, vitals
from outboard.devices.nvme.admission import admit, admit_admin
from outboard.devices.nvme.arbitration import OUTSTANDING, burst_of, held_up, in_turn
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.loop import IDLE, MORE
from outboard.devices.nvme.datapath.records import CQ_INTERRUPTS
from outboard.devices.nvme.datapath.stripes import undisturbed
from outboard.devices.nvme.error_log import logged_failure
from outboard.devices.nvme.events import INVALID_DOORBELL_REGISTER, INVALID_DOORBELL_VALUE
from outboard.devices.nvme.io import flush_each
from outboard.devices.nvme.pairing import PAIRING, Pairing
from outboard.devices.nvme.queues import CompletionQueue, SubmissionQueue
from outboard.devices.nvme.spec import IoOpcode
from outboard.devices.nvme.state import Outstanding, State
from outboard.devices.nvme.status import CommandFailed, Status, status_field
from outboard.devices.nvme.strikes import Complete, Struck
from outboard.devices.nvme.transfer import Abandoned, check_admin_flags, check_io_flags
from outboard.devices.nvme.work import Work, run_inline
from outboard.devices.nvme.workers import Task, Workers
from outboard.errors import DmaError
from outboard.loop import Loop
from outboard.native.libc import SECOND

log = logging.getLogger(__name__)

BATCH = 64
"""Commands executed by one call of `Controller.process`."""

SLOW = 1 << 16
"""More commands than can wait for Python."""

Ending = Callable[[SubmissionQueue, tuple[Command, ...], int | Exception], None]
"""Completes commands that have ended: gets dword 0, or what was raised."""


class Progress(Enum):
    """What `Controller.process` leaves behind."""

    IDLE = "nothing to do until a doorbell rings"
    MORE = "call again soon"
    STALLED = "a queue's memory is not there now: call again later, or give up"


class Controller:
    """Executes the commands of ``state``'s queues; ``interrupt`` is called once a batch for each queue.

    ``progressed`` is called when a command that waited for storage has ended: `process` has to run.
    """

    def __init__(
        self,
        state: State,
        interrupt: Callable[[CompletionQueue], None],
        progressed: Callable[[], None],
    ) -> None:
        self.state = state
        self.enabled = False
        self.paused = False
        """Set: take no command, and tell no event (CSTS.PP)."""
        self._interrupt = interrupt
        self.progressed = progressed
        self._processing = False
        self._last_served = 0
        self._out_of_reach: list[SubmissionQueue | CompletionQueue] = []
        self._pairing = Pairing(self)
        self.event_requests: dict[int, Complete] = {}
        self._workers: Workers | None = None
        self._flushing: Task | None = None
        self.deferred = 0.0
        """In how many seconds `process` has to run again although nothing happens; 0: not at all."""

    def enable(self, asq: int, sq_size: int, acq: int, cq_size: int) -> None:
        """Start with the admin queues at these addresses, of so many entries."""
        state, plane = self.state, self.state.plane
        vitals.check(state)
        power.began(state)
        state.subsystem.begin_here()
        with plane.paused():
            cq = CompletionQueue(*plane.record_of_cq(0), id=0, address=acq, size=cq_size, submitters=1)
            state.completion[0] = cq
            record = plane.record_of_sq(0)
            state.submission[0] = SubmissionQueue(*record, id=0, address=asq, size=sq_size, cq=cq)
            plane.configure()
            plane.place()
        self._last_served = 0
        self.enabled = True

    def stop(self) -> None:
        """Take no more commands (shutdown); what is there stays readable."""
        self.enabled = False
        self.state.plane.halt()

    def reset(self) -> None:
        """End this life: no DMA, completion or interrupt of it comes later."""
        self.enabled = self.paused = False
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        with self.state.plane.paused():
            self.state.plane.frozen = False
            self.state.reset()
        self.event_requests.clear()

    def freeze(self) -> None:
        """Come to rest: I/O that waits for storage will be begun anew, as what was taken and not begun yet.

        To be completed it would need guest memory, for which a client that waits for the answer to its wish
        may not be asked by message.
        """
        state = self.state
        with state.plane.paused():
            state.plane.frozen = True
            state.plane.place()
        state.subsystem.background.look()
        # The first of a fused pair goes before what may be its second.
        taken = [(state.submission[qid], first.encode()) for qid, first in state.fused.items()]
        state.fused.clear()
        for sq, entry in [*taken, *state.plane.slow_commands(SLOW)]:
            state.plane.keep_slow(sq, entry)
        for key, waiting in list(state.outstanding.items()):
            command, *pair = waiting.commands
            # A fused pair that has written would not compare once more, nor is preempted who was already.
            again = not pair and command.opcode != IoOpcode.RESERVATION_ACQUIRE
            if waiting.sq.id and again and state.plane.keep_slow(waiting.sq, command.encode()):
                waiting.task.cancel()
                del state.outstanding[key]
            elif waiting.held is not None:
                waiting.held.go_on()
        state.drain()
        for cq in state.completion.values():
            with self._reaching(cq):
                cq.settle(state.bus)
        self._signal()

    def thaw(self) -> None:
        """Go on; the host hears once more of what it has not consumed."""
        with self.state.plane.paused():
            self.state.plane.frozen = self.paused
            self.state.plane.place()
        self.state.subsystem.begin_here()
        for cq in self.state.completion.values():
            cq.signal = cq.used > 0

    def start_workers(self, loop: Loop) -> None:
        """From now on storage that may block is called in threads of its own."""
        if self._workers is None:
            workers = self._workers = Workers(
                loop, self.state.subsystem.turn, partial(undisturbed, self.state.subsystem)
            )
            self.state.drain, self.state.still = workers.drain, workers.still
            self.state.rest, self.state.let_go = workers.rest, workers.let_go

    def stop_workers(self) -> None:
        """End those threads, when what they do now is done."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def flush(self, done: Callable[[], None]) -> None:
        """Make everything durable that was written, then call ``done``."""
        if self._workers is not None:
            self._flushing = self._workers.start(flush_each(self.state), lambda outcome: done())
        else:
            run_inline(flush_each(self.state))
            done()

    def ring(self, doorbell: int, value: int) -> bool:
        """The host wrote ``value`` to doorbell number ``doorbell``; True if `process` has something to do.

        Even numbers are submission queues' tails, odd ones completion queues' heads (DSTRD is 0).
        """
        if not self.enabled:
            return False
        plane = self.state.plane
        queues = self.state.completion if doorbell & 1 else self.state.submission
        queue = queues.get(doorbell >> 1)
        if queue is None:
            self.state.report_doorbell(INVALID_DOORBELL_REGISTER, Status.INVALID_QUEUE_ID)
        elif not queue.ring(value):
            self.state.report_doorbell(INVALID_DOORBELL_VALUE, Status.INVALID_FIELD)
        elif queue.fast:
            if isinstance(queue, SubmissionQueue):
                plane.wake(queue.cq.id)
            else:
                plane.wake_for_head(queue)
            return plane.inline
        return self.pending

    @property
    def pending(self) -> bool:
        """Whether there is a command to take, or an event to tell, and room for the answer."""
        state = self.state
        if not self.enabled or self.paused or self._processing:
            return False
        return (
            any(sq.ready and not held_up(state, sq) for sq in state.submission.values())
            or any(cq.owed for cq in state.completion.values())
            or (state.events.due and state.completion[0].room > 0)
            or (state.plane.slow and len(state.outstanding) < OUTSTANDING)
        )

    @property
    def unconsumed(self) -> bool:
        """Whether a completion waits in a queue that interrupts: what holds an INTx line up."""
        return any(cq.interrupts and cq.used for cq in self.state.completion.values())

    def process(self) -> Progress:
        """Execute up to `BATCH` commands. Called from within itself, by way of a DMA message: nothing."""
        if self._processing or not self.enabled or self.paused:
            return Progress.IDLE
        self._processing = True
        self._out_of_reach.clear()
        self.deferred = 0.0
        more = False
        try:
            more = self._process()
        except Abandoned:
            log.debug("reset while memory was awaited: the rest of the batch is dropped")
        finally:
            self._processing = False
            self._signal()
        if self._out_of_reach:
            return Progress.STALLED
        return Progress.MORE if more or self.pending else Progress.IDLE

    def _process(self) -> bool:
        """The work of one call; whether the loop of the data plane has more to do in this thread."""
        state, plane = self.state, self.state.plane
        left = plane.run()
        self._look_at_doorbells()
        for sq, entry in plane.slow_commands(min(BATCH, OUTSTANDING - len(state.outstanding))):
            command = Command.decode(entry)
            # What a limit held has left its place in the queue: it comes between no fused pair.
            (self.execute_alone if plane.waiting.concerns(command) else self._execute)(sq, command)
            if not self.enabled:
                break
        if indebted := [cq for cq in state.completion.values() if cq.owed]:
            for cq in indebted:
                with self._reaching(cq):
                    cq.settle(state.bus)
            with plane.paused():
                plane.place()
        budget = BATCH
        while (
            self.enabled and budget > 0 and (queues := in_turn(state, self._last_served, self._out_of_reach))
        ):
            for sq in queues:
                with self._reaching(sq):
                    budget -= self._serve(sq, min(budget, burst_of(state, sq)))
                if budget <= 0:
                    break
            self._tell_events()
        self._tell_events()
        wait = self._serve_waiting()
        plane.hand_back_late()
        if plane.inline and plane.returning:
            left = plane.run()
        deferred: list[float] = [each / SECOND for each in (left, wait) if each > 0]
        if self.state.fused and self._pairing.end_lonely():
            deferred.append(PAIRING)
        self.deferred = min(deferred, default=0.0)
        return left == MORE or wait == MORE or (plane.inline and plane.returning)

    def _serve_waiting(self) -> int:
        """Execute what has waited for its time; `MORE`, `IDLE`, or in how many nanoseconds more is due."""
        waiting = self.state.plane.waiting
        for _ in range(BATCH):
            if not self.enabled or len(self.state.outstanding) >= OUTSTANDING:
                return IDLE
            now = time.monotonic_ns()
            waiter = waiting.pop(now)
            if waiter is None:
                # By the same clock: what becomes due in between would be neither taken nor waited for.
                return max(waiting.due_in(now), IDLE)
            # It is no second of a fused pair: those do not wait.
            self.execute_alone(waiter[0], Command.decode(waiter[1]))
        return MORE

    def _look_at_doorbells(self) -> None:
        """Look at doorbells that do not ring, and at what the data plane says of those it looked at."""
        state, plane = self.state, self.state.plane
        bad = sum(not sq.fast and not sq.look() for sq in state.submission.values())
        for _ in range(plane.take_bad_doorbells() + bad):
            self.state.report_doorbell(INVALID_DOORBELL_VALUE, Status.INVALID_FIELD)

    @contextmanager
    def _reaching(self, queue: SubmissionQueue | CompletionQueue) -> Iterator[None]:
        """Leave ``queue`` alone for the rest of the batch if its memory is not there."""
        try:
            yield
        except DmaError as error:
            log.debug("%s queue %d is out of reach: %s", type(queue).__name__, queue.id, error)
            self._out_of_reach.append(queue)

    def _serve(self, sq: SubmissionQueue, limit: int) -> int:
        """Execute up to ``limit`` commands of ``sq``; return how many."""
        if self.state.submission.get(sq.id) is not sq:
            return 0
        entries = sq.peek(self.state.bus, min(limit, sq.cq.room))
        self._last_served = sq.id
        for taken, entry in enumerate(entries):
            # It may have become the data plane's while a message was awaited.
            if not self.enabled or sq.cq.owed or sq.fast:
                return taken
            sq.advance()
            sq.cq.pending += 1
            command = Command.decode(entry)
            if sq.id and self.state.plane.waiting.concerns(command):
                self.state.plane.waiting.put(sq, entry)
            else:
                self._execute(sq, command)
        return len(entries)

    def _execute(self, sq: SubmissionQueue, command: Command) -> None:
        """Begin one command, whose completion has its place; complete it, unless it waits for something."""
        if sq.id and self._pairing.concerns(sq, command):
            self._pairing.take(sq, command)
            return
        self.execute_alone(sq, command)

    def execute_alone(self, sq: SubmissionQueue, command: Command) -> None:
        """Begin a command that is none of a pair, unless a fault has other plans."""
        faults, strike = self.state.subsystem.faults, None
        if faults.armed and command.cid not in sq.aborted:
            strike = faults.strike(self.state.identity.cntlid, sq.id, command)
        if strike is None:
            self.carry_out(sq, command, lambda: self.handle(sq, command), self._ended)
        else:
            Struck(self, sq, command, strike).begin()

    def carry_out(
        self, sq: SubmissionQueue, command: Command, handle: Callable[[], int | Work | None], end: Ending
    ) -> None:
        """Begin one command by ``handle``, and ``end`` it, at once or when it need not wait any more."""
        try:
            outcome = handle()
        except Exception as error:
            end(sq, (command,), error)
            return
        if outcome is None:
            sq.cq.pending -= 1
        elif isinstance(outcome, Generator):
            self.begin(sq, (command,), outcome, end)
        else:
            end(sq, (command,), outcome)

    def handle(self, sq: SubmissionQueue, command: Command, state: State | None = None) -> int | Work | None:
        """Execute one command; ``state``: as somebody else sees this controller."""
        # First of all: an identifier left behind would end a later command that has it too.
        if command.cid in sq.aborted:
            sq.aborted -= {command.cid}
            raise CommandFailed(Status.ABORT_REQUESTED)
        return self._handle_io(state or self.state, command) if sq.id else self._handle_admin(command)

    def _handle_io(self, state: State, command: Command) -> int | Work | None:
        io = state.commands.io.get(command.opcode)
        if io is None:
            raise _unknown(command)
        check_io_flags(command)
        admit(state, command, io.access)
        return io.handler(state, command)

    def _handle_admin(self, command: Command) -> int | Work | None:
        state = self.state
        admin = state.commands.admin.get(command.opcode)
        if admin is None:
            raise _unknown(command)
        check_admin_flags(command)
        if command.cid in state.events.parked or command.cid in state.events.deferred:
            raise CommandFailed(
                Status.COMMAND_ID_CONFLICT, f"command {command.cid:#x} is outstanding", location=2
            )
        admit_admin(state, command)
        with state.plane.paused() if admin.pausing else nullcontext():
            return admin.handler(state, command)

    def begin(self, sq: SubmissionQueue, commands: tuple[Command, ...], work: Work, end: Ending) -> None:
        """Run what may wait for storage: here as far as it goes, the rest when storage answers."""
        since = time.monotonic_ns()
        if self._workers is None:
            outcome: int | Exception
            try:
                outcome = run_inline(work)
            except Exception as error:
                outcome = error
            self._note(sq, commands, since, outcome)
            end(sq, commands, outcome)
            return
        key = object()

        def ended(outcome: int | Exception) -> None:
            mine = self.state.outstanding.pop(key, None)
            if isinstance(outcome, Abandoned):
                return
            self._note(sq, commands, since, outcome)
            end(sq, commands, outcome)
            if mine and not self._processing:
                self.progressed()

        task = Task(work, ended)
        # At once: while it awaits guest memory another controller may take its namespace away.
        self.state.outstanding[key] = Outstanding(sq, commands, task)
        self._workers.begin(task)

    def _note(
        self, sq: SubmissionQueue, commands: tuple[Command, ...], since: int, outcome: int | Exception
    ) -> None:
        """Count a command that has succeeded, or the write of a pair, which its comparison let happen."""
        if not isinstance(outcome, Exception) and (len(commands) == 1 or outcome == 0):
            self.state.plane.in_python.note(sq, commands[-1], since)

    def _ended(self, sq: SubmissionQueue, commands: tuple[Command, ...], outcome: int | Exception) -> None:
        (command,) = commands
        self.complete(sq, command.cid, *self.judge(sq, command, outcome))

    def fail(self, sq: SubmissionQueue, command: Command, error: Exception) -> None:
        """Complete a command that has failed."""
        self.complete(sq, command.cid, *self.judge(sq, command, error))

    def judge(self, sq: SubmissionQueue, command: Command, outcome: int | Exception) -> tuple[int, int]:
        """The status field of a command that has ended, and dwords 0 and 1; a failure is logged."""
        if not isinstance(outcome, Exception):
            return 0, outcome
        result = outcome.result if isinstance(outcome, CommandFailed) else 0
        return logged_failure(self.state, sq.id, command, outcome), result

    def complete(self, sq: SubmissionQueue, cid: int, field: int, result: int) -> None:
        """Post the completion of a command that was counted as pending; by whoever posts there."""
        if sq.cq.fast:
            self.state.plane.complete(sq, cid, field, result)
        else:
            sq.cq.pending -= 1
            sq.cq.post(self.state.bus, sq, cid, field, result)

    def _tell_events(self) -> None:
        """Complete event requests, as far as the admin completion queue has room."""
        state = self.state
        if not self.enabled or not state.events.due:
            return
        sq = state.submission[0]
        with self._reaching(sq.cq):
            while sq.cq.room > 0 and (ending := state.events.next_ending()):
                cid, status, result = ending
                sq.cq.pending += 1
                self.event_requests.pop(cid, self.complete)(sq, cid, status_field(status), result)

    def _signal(self) -> None:
        for cq in self.state.completion.values():
            wanted = cq.take_signal()
            if cq.signal or wanted:
                cq.record[CQ_INTERRUPTS] += not wanted
                cq.signal = False
                self._interrupt(cq)


def _unknown(command: Command) -> CommandFailed:
    return CommandFailed(Status.INVALID_OPCODE, f"opcode {command.opcode:#x} is unknown", location=0)
