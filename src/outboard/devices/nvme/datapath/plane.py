"""The data plane as Python sees it: where the queues are, who serves them, and how all of it is paused.

A queue is served by a poller if its ring, and that of its completion queue, lie in memory that can be
reached by address; all submission queues of one completion queue are served alike, by one poller. What the
host maps, unmaps, creates and deletes changes that, and happens while every poller is paused.

Without pollers the same loop runs in the device's own thread, after each doorbell message, and returns.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from outboard.devices.nvme import protection
from outboard.devices.nvme.datapath.counting import InPython, queue_counters, space_counters
from outboard.devices.nvme.datapath.lanes import Message
from outboard.devices.nvme.datapath.loop import IDLE, serve
from outboard.devices.nvme.datapath.placing import (
    DOORBELL,
    doorbell_address,
    fill_buffers,
    place_doorbells,
    reach,
)
from outboard.devices.nvme.datapath.records import (
    BATCH,
    BY_PYTHON,
    BY_SLOW_LANE,
    CLASS_RECORD,
    CLASS_WEIGHT,
    CQ_BASE,
    CQ_DELAY,
    CQ_FD,
    CQ_HEAD_AT,
    CQ_RECORD,
    CQ_STARVED,
    CQ_THRESHOLD,
    CQ_UNTOLD,
    LOW,
    NO_INTERRUPT,
    NS_KIND,
    PL_BAD,
    PL_BURST,
    PL_CLASSES,
    PL_LONGEST_NAP,
    PL_POLLED,
    PL_QUEUE_COUNT,
    PL_WATCH_COUNT,
    PL_WEIGHTED,
    SQ_BASE,
    SQ_RECORD,
    URGENT,
)
from outboard.devices.nvme.datapath.spaces import describe
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.datapath.waiting import Waiting
from outboard.devices.nvme.datapath.workspace import MICROSECOND, Workspace
from outboard.devices.nvme.feature_values import Features
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.queues import CompletionQueue, SubmissionQueue
from outboard.dma import GuestMemory
from outboard.loop import Loop
from outboard.native.jit import available
from outboard.native.memory import store32
from outboard.native.poller import CONTROL, NOTICE_FD, NOTICED, STOP, Poller
from outboard.native.translation import READ, WRITE
from outboard.native.words import Block, Record
from outboard.storage.fast import Descriptor, fast_of


class DataPlane:
    """Serves the I/O queues of one controller: those of ``memory`` that it can reach, the others not.

    While ``frozen`` is set, `place` leaves all of them to Python. ``weighted``: arbitration is by the queues'
    priorities. ``waiting`` are commands of limited namespaces that Python will execute, ``in_python`` counts
    what it has executed. ``io_queues`` is the number of queue pairs, ``mdts`` the largest transfer in bytes,
    ``doorbells`` the address of their words. ``vector_fd`` gives the eventfd of an interrupt vector that may
    be written to directly, or a negative number; ``line_heard`` says whether interrupts go by a line.
    """

    def __init__(
        self,
        memory: GuestMemory,
        namespaces: Mapping[int, Namespace],
        *,
        most_namespaces: int,
        io_queues: int,
        mdts: int,
        doorbells: int,
        vector_fd: Callable[[CompletionQueue], int],
        line_heard: Callable[[], bool],
        tuning: Tuning,
    ) -> None:
        self.tuning = tuning
        self.offers_shadow = False
        self.frozen = self._halted = False
        self.shadow: tuple[int, int] | None = None
        self.pollers: list[Poller] = []
        self._before: dict[str, int] = {}
        self._memory = memory
        self._spaces = namespaces
        self._vector_fd = vector_fd
        self._line_heard = line_heard
        self._doorbells = doorbells
        self._features: Features | None = None
        self._sqs: Mapping[int, SubmissionQueue] = {}
        self._cqs: Mapping[int, CompletionQueue] = {}
        self._by_record: dict[int, SubmissionQueue] = {}
        self._sq_records = Block((io_queues + 1) * SQ_RECORD)
        self._cq_records = Block((io_queues + 1) * CQ_RECORD)
        self._most_namespaces = most_namespaces
        self._slow_opcodes: Callable[[Namespace], int] = lambda space: 0
        self.weighted = False
        self.waiting = Waiting(namespaces)
        self.in_python = InPython(namespaces)
        self._described: set[int] = set()
        self._at_work: tuple[Loop, Callable[[], None]] | None = None
        self.workspaces = [
            Workspace(io_queues, mdts, memory.translation.reader(), most_namespaces)
            for _ in range(max(1, tuning.pollers))
        ]
        native = available() if tuning.native is None else tuning.native
        # Compiling takes seconds, the first time: not while a client waits.
        self._serve = serve.native if native else serve.plain
        self._native = native
        self._fence = threading.Lock()
        self._control = Block(CONTROL)
        self._control[NOTICE_FD], self._control[NOTICED] = -1, 1
        for workspace in self.workspaces:
            workspace.tune(tuning)
        self.set_polled(False)
        memory.users.append(self._rearranged)

    @property
    def inline(self) -> bool:
        """Whether the loop runs in the device's own thread."""
        return self.tuning.pollers == 0

    @property
    def statistics(self) -> dict[str, int]:
        """What all pollers have counted, and Python, added up."""
        total = dict(self._before)
        for counted in [each.statistics for each in self.workspaces] + [p.statistics for p in self.pollers]:
            for name, value in counted.items():
                total[name] = total.get(name, 0) + value
        total["busy_ns"] += self.in_python.busy_ns
        return total

    def queue_statistics(self) -> dict[int, dict[str, int]]:
        """For each submission queue there is: ``commands`` and ``bytes`` (of the fast lane).

        ``depth`` is how many commands it has now, with those under way for its completion queue, of which
        ``completions`` and ``interrupts`` are.
        """
        return queue_counters(self._sqs.values())

    def namespace_statistics(self) -> dict[int, dict[str, int]]:
        """For each namespace there has been: ``reads``, ``writes``, ``bytes_read``, ``bytes_written``.

        ``latency_ns`` is how long those commands took together that were ``measured``, and ``longest_ns`` the
        longest of them: all that waited for a file or for Python, and the last of one batch in 64 else.
        The time for which a limit held a command is not counted.
        """
        sources = (*(workspace.space_statistics for workspace in self.workspaces), self.in_python.spaces)
        return space_counters(self._described, sources)

    def set_polled(self, polled: bool) -> None:
        """Say whether the host has mapped the doorbells, so that nobody rings."""
        self.polled = polled
        nap = self.tuning.longest_poll if polled else self.tuning.longest_nap
        for workspace in self.workspaces:
            workspace.record[PL_POLLED], workspace.record[PL_LONGEST_NAP] = int(polled), nap * MICROSECOND

    def totals(self) -> tuple[int, int, int, int]:
        """Reads, writes, bytes read, bytes written in the fast lane."""
        counted = self.statistics
        return counted["reads"], counted["writes"], counted["bytes_read"], counted["bytes_written"]

    def start(self, loop: Loop, noticed: Callable[[], None]) -> None:
        """Start the pollers; ``noticed`` is called in ``loop`` when one has something for Python."""
        self._at_work = loop, noticed
        self.configure()
        for number in range(self.tuning.pollers):
            poller = Poller(
                serve, self.workspaces[number].address, name=f"nvme-poller-{number}", native=self._native
            )
            loop.watch(poller.notices, lambda poller=poller: self._notice(poller, noticed))  # type: ignore[misc]
            self.pollers.append(poller.start())

    def stop(self, loop: Loop | None) -> None:
        """End the pollers; what was in flight below is complete."""
        for poller in self.pollers:
            if loop is not None:
                loop.unwatch(poller.notices)
            poller.stop()
            for name, value in poller.statistics.items():
                self._before[name] = self._before.get(name, 0) + value
        self.pollers.clear()
        self._at_work = None
        self._drain()
        for workspace in self.workspaces:
            if workspace.uring is not None and loop is not None:
                loop.unwatch(workspace.uring.fd)
            workspace.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Until the block is left no loop runs, and nothing is in flight below."""
        with ExitStack() as stack:
            for poller in self.pollers:
                stack.enter_context(poller.paused())
            self._drain()
            yield

    def _drain(self) -> None:
        """Inline: wait until nothing is in flight below. A poller does that itself before it pauses."""
        if self.inline and self.workspaces[0].busy:
            self._control[STOP] = 1
            self.run()
            self._control[STOP] = 0

    @contextmanager
    def _rearranged(self) -> Iterator[None]:
        """Guest memory changes: afterwards it is found out anew what can be reached."""
        with self.paused():
            try:
                yield
            finally:
                self.place()

    def record_of_sq(self, qid: int) -> tuple[Record, int]:
        """A zeroed record for a new submission queue, and the address of its doorbell."""
        return _zeroed(self._sq_records, qid, SQ_RECORD), self._doorbells + 2 * qid * DOORBELL

    def record_of_cq(self, qid: int) -> tuple[Record, int]:
        """A zeroed record for a new completion queue, and the address of its doorbell."""
        return _zeroed(self._cq_records, qid, CQ_RECORD), self._doorbells + (2 * qid + 1) * DOORBELL

    def adopt(
        self,
        submission: Mapping[int, SubmissionQueue],
        completion: Mapping[int, CompletionQueue],
        features: Features,
        slow_opcodes: Callable[[Namespace], int],
    ) -> None:
        """These are the queues, for ever; `place` looks at what is in them.

        ``slow_opcodes`` says which commands on a namespace are Python's, as bits by their opcodes.
        """
        self._sqs, self._cqs, self._features = submission, completion, features
        self._slow_opcodes = slow_opcodes

    def configure(self) -> None:
        """Take over what features and namespaces say now."""
        assert self._features is not None
        with self.paused():
            durable = not self._features.write_cache
            self._open_files()
            files = all(workspace.uring for workspace in self.workspaces)
            gone = self._described - self._spaces.keys()
            self._described = set(self._spaces)
            limits = {nsid: space.limits for nsid, space in self._spaces.items() if space.limits.active}
            if any(space.protection for space in self._spaces.values()):
                protection.prepare()
            for workspace in self.workspaces:
                for nsid in gone:
                    workspace.space(nsid)[NS_KIND] = BY_SLOW_LANE
                for nsid, space in self._spaces.items():
                    slow, record = self._slow_opcodes(space), workspace.space(nsid)
                    shared = len(self.workspaces) > 1 or len(space.attached) > 1
                    describe(record, space, slow=slow, durable=durable, files=files, shared=shared)
                self._keep(workspace.lanes.arrange(limits))
                workspace.record[PL_BURST] = self._features.burst
                for priority, weight in enumerate((BATCH, *self._features.weights)):
                    workspace.record[PL_CLASSES + priority * CLASS_RECORD + CLASS_WEIGHT] = weight
            for cq in self._cqs.values():
                self._set_interrupts(cq)

    def _open_files(self) -> None:
        """Get a ring from the kernel if there are files, once a client is there."""
        files = any(isinstance(fast_of(space.storage), Descriptor) for space in self._spaces.values())
        if self._at_work is None or not files:
            return
        for workspace in self.workspaces:
            workspace.open()
        if self.inline and (ring := self.workspaces[0].uring) is not None:
            self._at_work[0].watch(ring.fd, self._at_work[1])

    def place(self) -> None:
        """Decide anew who serves which queue. Only while paused."""
        groups: dict[int, list[SubmissionQueue]] = {cq.id: [] for cq in self._cqs.values()}
        for sq in self._sqs.values():
            groups[sq.cq.id].append(sq)
        queues: list[list[list[int]]] = [[[] for _ in range(LOW + 1)] for _ in self.workspaces]
        cqs: list[list[int]] = [[] for _ in self.workspaces]
        watched: list[list[int]] = [[] for _ in self.workspaces]
        self._by_record = {sq.record.address: sq for sq in self._sqs.values()}
        table = self._memory.translation.address
        for cqid, sqs in groups.items():
            cq = self._cqs[cqid]
            place_doorbells(table, self.shadow, cq, sqs)
            if cqid != 0 and not (self.frozen or self._halted) and reach(table, cq, sqs):
                lane = self._lane(cqid)
                for sq in sqs:
                    queues[lane][sq.priority if self.weighted else URGENT].append(sq.record.address)
                cqs[lane].append(cq.record.address)
                self._set_interrupts(cq)
                if cq.record[CQ_FD] == BY_PYTHON:
                    # An interrupt line goes down when the host has consumed, which Python has to hear of.
                    watched[lane].append(cq.record[CQ_HEAD_AT])
                continue
            cq.record[CQ_BASE] = 0
            for sq in sqs:
                sq.record[SQ_BASE] = 0
            if self.polled:
                watched[0] += [sq.doorbell for sq in sqs] + [cq.doorbell]
        for number, workspace in enumerate(self.workspaces):
            workspace.record[PL_WEIGHTED] = int(self.weighted)
            workspace.give_queues(queues[number], cqs[number], watched[number])
            self._sort_returning(workspace)
            self._keep(workspace.lanes.take(lambda at, _: not self._by_record[at].cq.fast))

    def vector_changed(self, number: int) -> None:
        """The vector has another descriptor or mask; when this returns the old one is no longer used."""
        with self.paused():
            self.place()

    def wake(self, qid: int) -> None:
        """The host rang for the submission queues of completion queue ``qid``."""
        if self.pollers:
            self.pollers[self._lane(qid)].wake()

    def wake_for_head(self, cq: CompletionQueue) -> None:
        """The host rang for a completion queue: somebody may have waited for that."""
        # The head was stored before; a lock is Python's only fence.
        with self._fence:
            pass
        if cq.record[CQ_STARVED] or cq.record[CQ_UNTOLD]:
            self.wake(cq.id)

    def run(self) -> int:
        """Inline: run the loop once; `MORE`, `IDLE`, or in how many nanoseconds it has to run again."""
        return self._serve(self._control.address, self.workspaces[0].address) if self.inline else IDLE

    def halt(self) -> None:
        """Take no more commands until a reset, though memory comes and goes; those taken are completed."""
        with self.paused():
            self._halted = True
            for workspace in self.workspaces:
                for count in (PL_QUEUE_COUNT, PL_WATCH_COUNT, PL_WEIGHTED):
                    workspace.record[count] = 0

    def slow_commands(self, limit: int) -> Iterator[tuple[SubmissionQueue, bytes]]:
        """Take up to ``limit`` commands that are Python's: their queues, and their 64 bytes."""
        for workspace in self.workspaces:
            while limit > 0 and (message := workspace.take_slow()) is not None:
                limit -= 1
                yield self._by_record[message[0]], message[1]

    def keep_slow(self, sq: SubmissionQueue, entry: bytes) -> bool:
        """Leave a command that was taken to Python; False if there is no room. While paused, or frozen."""
        return self.workspaces[self._lane(sq.cq.id)].put_slow(sq.record.address, entry)

    def withdraw(self, sq: SubmissionQueue) -> list[bytes]:
        """Take back the commands of ``sq`` that wait for Python. Only while paused.

        Completions of it that a loop has not posted yet are owed then.
        """
        entries = []
        for workspace in self.workspaces:
            self._sort_returning(workspace, leaving=sq)
            for _ in range(workspace.slow):
                record, entry = workspace.take_slow() or (0, b"")
                if record == sq.record.address:
                    entries.append(entry)
                else:
                    workspace.put_slow(record, entry)
        return entries + self.withdraw_held(sq, lambda entry: True)

    def withdraw_held(self, sq: SubmissionQueue, wanted: Callable[[bytes], bool]) -> list[bytes]:
        """Take back the commands of ``sq`` that are ``wanted`` and wait for their time. Only while paused."""
        entries = self.waiting.take(lambda queue, entry: queue is sq and wanted(entry))
        for workspace in self.workspaces:
            found = workspace.lanes.take(lambda at, entry: at == sq.record.address and wanted(entry))
            entries += [entry for _, entry in found]
        return entries

    @property
    def slow(self) -> bool:
        """Whether commands wait for Python."""
        return any(workspace.slow for workspace in self.workspaces)

    @property
    def returning(self) -> bool:
        """Whether completions wait to be posted by a loop."""
        return any(workspace.returning for workspace in self.workspaces)

    def complete(self, sq: SubmissionQueue, cid: int, status: int, result: int) -> None:
        """Have the loop post the completion of a command that was Python's."""
        self.workspaces[self._lane(sq.cq.id)].hand_back(sq.record.address, cid, status, result)
        self.wake(sq.cq.id)

    def hand_back_late(self) -> None:
        """Hand back what there was no room for."""
        for number, workspace in enumerate(self.workspaces):
            if workspace.returning and workspace.hand_back_late() and self.pollers:
                self.pollers[number].wake()

    def take_bad_doorbells(self) -> int:
        """How many pollers have seen a doorbell with a value that cannot be, since the last time."""
        found = 0
        for workspace in self.workspaces:
            if workspace.record[PL_BAD]:
                workspace.record[PL_BAD] = 0
                found += 1
        return found

    @property
    def shadowable(self) -> bool:
        """Whether doorbells may be in guest memory: offered, and memory is there to be reached by address.

        Where the admin queue lies, the rest of the host's memory will be like it. Not with an interrupt
        line: a VMM takes the access to the BAR for the handler's end, and lowers the line only then.
        """
        if not self.offers_shadow or self._line_heard() or 0 not in self._cqs:
            return False
        return self._address(self._cqs[0].address, 0, WRITE) != 0

    def set_shadow(self, tails_and_heads: int, events: int) -> bool:
        """The host's doorbell buffers: their IOVAs. False if they cannot be reached by address."""
        table = self._memory.translation.address
        if not fill_buffers(table, (tails_and_heads, events), self._sqs.values(), self._cqs.values()):
            return False
        self.shadow = tails_and_heads, events
        return True

    def clear_shadow(self, qid: int, *, head: bool) -> None:
        """A new queue starts at zero, also in the buffer: older Linux drivers leave there what was."""
        if self.shadow is not None:
            address = self._address(self.shadow[0], (2 * qid + head) * DOORBELL, READ | WRITE)
            if address:
                store32(address, 0)

    def reset(self) -> None:
        """The controller was reset: no queues, no buffers, nothing under way. Only while paused."""
        self.shadow = None
        self._halted = False
        self._by_record = {}
        self.waiting.take(lambda sq, entry: True)
        for workspace in self.workspaces:
            workspace.reset()

    def _notice(self, poller: Poller, noticed: Callable[[], None]) -> None:
        poller.acknowledge()
        noticed()

    def _address(self, base: int, offset: int, rights: int) -> int:
        return doorbell_address(self._memory.translation.address, base, offset, rights)

    def _lane(self, cqid: int) -> int:
        """The number of the poller, and of its workspace, that a completion queue is for."""
        return (cqid - 1) % len(self.workspaces)

    def _sort_returning(self, workspace: Workspace, leaving: SubmissionQueue | None = None) -> None:
        """Completions on their way to a loop that does not post there any more are Python's to post."""
        for record, cid, status, result in workspace.take_returning():
            sq = self._by_record[record]
            if sq.cq.fast and sq is not leaving:
                workspace.hand_back(record, cid, status, result)
            else:
                sq.cq.pending -= 1
                sq.cq.owe(sq, cid, status, result)

    def _keep(self, commands: list[Message]) -> None:
        """What no loop holds any more waits on in Python."""
        for address, entry in commands:
            self.waiting.put(self._by_record[address], entry)
        if commands:
            self.waiting.noticed()

    def _set_interrupts(self, cq: CompletionQueue) -> None:
        """Set how a loop interrupts for ``cq``, and what it gathers before."""
        features = self._features
        assert features is not None
        cq.record[CQ_FD] = self._vector_fd(cq) if cq.interrupts else NO_INTERRUPT
        threshold, delay = features.coalescing
        coalesced = cq.id != 0 and delay > 0 and features.coalesced(cq.vector)
        cq.record[CQ_THRESHOLD], cq.record[CQ_DELAY] = (threshold, delay) if coalesced else (0, 0)


def _zeroed(block: Block, number: int, size: int) -> Record:
    block.bytes[number * size : (number + 1) * size] = bytes(size)
    return Record(block, number * size)
