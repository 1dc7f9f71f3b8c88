"""Submission and completion queues: rings in guest memory (NVMe Base 2.0, 3.3.1).

The controller reads entries at the head of a submission queue and writes them at the tail of a
completion queue. One slot of a ring always stays empty, so that full and empty differ.

What a queue is at lies in a record that the data plane shares (`outboard.devices.nvme.datapath.records`).
A queue that the data plane serves is `fast`; the others are served here, by Python: the admin queue, and
queues whose memory cannot be reached by address.
"""

from collections import deque
from contextlib import suppress
from dataclasses import replace

from outboard.devices.nvme.command import Command, Completion
from outboard.devices.nvme.datapath.records import (
    CQ_BAD,
    CQ_BASE,
    CQ_EVENT,
    CQ_FD,
    CQ_HEAD,
    CQ_HEAD_AT,
    CQ_ID,
    CQ_LAPS,
    CQ_PENDING,
    CQ_PHASE,
    CQ_SIGNAL,
    CQ_SIZE,
    CQ_TAIL,
    CQ_TOLD_HEAD,
    NO_INTERRUPT,
    SQ_BAD,
    SQ_BASE,
    SQ_CQ,
    SQ_DIVERT,
    SQ_EVENT,
    SQ_EVENT_AT,
    SQ_HEAD,
    SQ_ID,
    SQ_LAPS,
    SQ_SIZE,
    SQ_TAIL,
    SQ_TAIL_AT,
)
from outboard.devices.nvme.spec import CQE_SIZE, SQE_SIZE
from outboard.devices.nvme.transfer import Bus
from outboard.errors import DmaError
from outboard.native.memory import load32, store32
from outboard.native.words import Record


class CompletionQueue:
    """A ring of ``size`` completions at ``address``.

    ``record`` is zeroed, ``doorbell`` the address of the word where the host puts the head. ``signal``:
    entries were posted here and not signalled yet. ``owed``: completions that could not be written, because
    the memory was not there; nothing is taken until `settle` succeeds. ``submitters`` counts the submission
    queues that complete here.
    """

    __slots__ = (
        "address", "doorbell", "id", "interrupts", "owed", "record", "signal", "size", "submitters", "vector",
    )  # fmt: skip

    def __init__(
        self,
        record: Record,
        doorbell: int,
        *,
        id: int,
        address: int,
        size: int,
        vector: int = 0,
        interrupts: bool = True,
        submitters: int = 0,
    ) -> None:
        self.record, self.doorbell = record, doorbell
        self.id, self.address, self.size = id, address, size
        self.vector, self.interrupts, self.submitters = vector, interrupts, submitters
        self.signal = False
        self.owed: deque[Completion] = deque()
        record[CQ_ID], record[CQ_SIZE], record[CQ_HEAD_AT] = id, size, doorbell
        record[CQ_PHASE], record[CQ_FD] = 1, NO_INTERRUPT
        record[CQ_EVENT] = record[CQ_BAD] = record[CQ_TOLD_HEAD] = -1
        store32(doorbell, 0)

    @property
    def fast(self) -> bool:
        """Whether the data plane posts here."""
        return self.record[CQ_BASE] != 0

    @property
    def head(self) -> int:
        """The next entry the host will consume, as far as it has said."""
        given = load32(self.record[CQ_HEAD_AT])
        return given if self._possible(given) else self.record[CQ_HEAD]

    @property
    def known_head(self) -> int:
        """The head as it was last taken over from the host."""
        return self.record[CQ_HEAD]

    @property
    def tail(self) -> int:
        """The next entry to be posted."""
        return self.record[CQ_TAIL]

    @property
    def phase(self) -> int:
        """The phase tag of the next entry to be posted."""
        return self.record[CQ_PHASE]

    def go_on(self, head: int, tail: int, phase: int) -> None:
        """Be a queue that has been at work elsewhere."""
        self.record[CQ_HEAD], self.record[CQ_TAIL], self.record[CQ_PHASE] = head, tail, phase

    @property
    def used(self) -> int:
        """Entries the host has not consumed."""
        return (self.tail - self.head) % self.size

    @property
    def room(self) -> int:
        """Entries that can be posted, beyond those that commands under way will need."""
        return 0 if self.owed else self.size - 1 - self.used - self.pending

    @property
    def pending(self) -> int:
        """Commands under way that will complete here."""
        return self.record[CQ_PENDING]

    @pending.setter
    def pending(self, pending: int) -> None:
        self.record[CQ_PENDING] = pending

    def take_signal(self) -> bool:
        """Whether a loop wants the host to be interrupted by Python, since the last time."""
        if not self.record[CQ_SIGNAL]:
            return False
        # Taken back before the host is interrupted: what the loop says from now on is said once more.
        self.record[CQ_SIGNAL] = 0
        return True

    def ring(self, head: int) -> bool:
        """The host consumed up to ``head``; False if it cannot have, and nothing is changed then."""
        if not self._possible(head):
            return False
        store32(self.doorbell, head)
        return True

    def owe(self, sq: "SubmissionQueue", cid: int, status: int, result: int) -> None:
        """A command has ended; `settle` tells the host. There has to be room."""
        self.owed.append(Completion(result, sq.head, sq.id, cid, status, 0))

    def post(self, bus: Bus, sq: "SubmissionQueue", cid: int, status: int, result: int) -> None:
        """Write a completion, or owe it while its memory is not there. There has to be room."""
        self.owe(sq, cid, status, result)
        with suppress(DmaError):
            self.settle(bus)

    def settle(self, bus: Bus) -> None:
        """Write the completions that are owed. Raises `DmaError`."""
        record = self.record
        while self.owed:
            tail, phase = self.tail, record[CQ_PHASE]
            completion = replace(self.owed[0], phase=phase)
            record[CQ_HEAD] = self.head
            # Where it is written by message, the host may say that it has consumed it before we hear that it
            # was written.
            record[CQ_TAIL] = (tail + 1) % self.size
            record[CQ_PHASE] = phase ^ (record[CQ_TAIL] == 0)
            try:
                bus.write(self.address + tail * CQE_SIZE, completion.encode())
            except DmaError:
                record[CQ_TAIL], record[CQ_PHASE] = tail, phase
                raise
            self.owed.popleft()
            self.signal = True
            record[CQ_LAPS] += record[CQ_TAIL] == 0

    def _possible(self, head: int) -> bool:
        """Whether the host can have consumed up to ``head``: it was posted, and not consumed before."""
        known = self.record[CQ_HEAD]
        return head < self.size and (head - known) % self.size <= (self.tail - known) % self.size


class SubmissionQueue:
    """A ring of ``size`` commands at ``address``, completed in ``cq``.

    ``record`` is zeroed, ``doorbell`` the address of the word where the host puts the tail. ``priority`` is 0
    (urgent) to 3 (low), where arbitration is weighted. ``aborted`` holds the identifiers of commands that
    wait in the ring and are to end as aborted.
    """

    __slots__ = ("_aborted", "address", "cq", "doorbell", "id", "priority", "record", "size")

    def __init__(
        self,
        record: Record,
        doorbell: int,
        *,
        id: int,
        address: int,
        size: int,
        cq: CompletionQueue,
        priority: int = 0,
    ) -> None:
        self.record, self.doorbell, self.priority = record, doorbell, priority
        self.id, self.address, self.size, self.cq = id, address, size, cq
        self._aborted: frozenset[int] = frozenset()
        record[SQ_ID], record[SQ_SIZE], record[SQ_CQ] = id, size, cq.record.address
        record[SQ_TAIL_AT] = doorbell
        record[SQ_EVENT] = record[SQ_BAD] = -1
        store32(doorbell, 0)

    @property
    def fast(self) -> bool:
        """Whether the data plane takes the commands."""
        return self.record[SQ_BASE] != 0

    @property
    def head(self) -> int:
        """The next entry to be taken."""
        return self.record[SQ_HEAD]

    @property
    def tail(self) -> int:
        """Behind the last entry the host has submitted, as far as it was looked at."""
        return self.record[SQ_TAIL]

    def go_on(self, head: int, tail: int) -> None:
        """Be a queue that has been at work elsewhere."""
        self.record[SQ_HEAD], self.record[SQ_TAIL] = head, tail

    @property
    def aborted(self) -> frozenset[int]:
        """Identifiers of waiting commands that are to end as aborted; until then all come to Python."""
        return self._aborted

    @aborted.setter
    def aborted(self, cids: frozenset[int]) -> None:
        self._aborted = cids
        self.record[SQ_DIVERT] = bool(cids)

    @property
    def ready(self) -> bool:
        """Whether a command can be taken here."""
        return self.head != self.tail and self.cq.room > 0 and not self.fast

    @property
    def waiting(self) -> int:
        """Commands not fetched yet."""
        return (self.tail - self.head) % self.size

    def ring(self, tail: int) -> bool:
        """The host submitted up to ``tail``; False if that is outside the ring."""
        if tail >= self.size:
            return False
        store32(self.doorbell, tail)
        return self.fast or self.look()

    def look(self) -> bool:
        """Look where the host puts the tail; False if it has put one there that cannot be."""
        record = self.record
        while (given := load32(record[SQ_TAIL_AT])) != record[SQ_TAIL]:
            if given >= self.size:
                news = given != record[SQ_BAD]
                record[SQ_BAD] = given
                return not news
            record[SQ_TAIL], record[SQ_BAD] = given, -1
            if record[SQ_EVENT_AT]:
                # From now on the host rings for the next one; what it did before is seen by looking again.
                record[SQ_EVENT] = given
                store32(record[SQ_EVENT_AT], given)
        return True

    def peek(self, bus: Bus, limit: int, skip: int = 0) -> list[bytes]:
        """Return our own copy of up to ``limit`` waiting entries, without the first ``skip``.

        Fewer come where the ring ends. They stay in it until `advance`. Raises `DmaError`.
        """
        start = (self.head + skip) % self.size
        count = min(limit, self.waiting - skip, self.size - start)
        if count <= 0:
            return []
        data = bus.read(self.address + start * SQE_SIZE, count * SQE_SIZE)
        return [data[at : at + SQE_SIZE] for at in range(0, len(data), SQE_SIZE)]

    def waiting_ids(self, bus: Bus) -> set[int]:
        """Return the identifiers of the waiting commands. Raises `DmaError`."""
        entries = self.peek(bus, self.size)
        entries += self.peek(bus, self.size, skip=len(entries))
        return {Command.decode(entry).cid for entry in entries}

    def advance(self) -> None:
        """One entry was taken."""
        self.record[SQ_HEAD] = (self.head + 1) % self.size
        self.record[SQ_LAPS] += self.head == 0
