"""Submission and completion queues: rings in guest memory (NVMe Base 2.0, 3.3.1).

The controller reads entries at the head of a submission queue and writes them at the tail of a
completion queue. One slot of a ring always stays empty, so that full and empty differ. What the host
changes (``tail`` of the one, ``head`` of the other) is checked by `ring` when it comes; everything
else is ours.
"""

from dataclasses import dataclass

from outboard.devices.nvme.command import Command, Completion
from outboard.devices.nvme.spec import CQE_SIZE, SQE_SIZE
from outboard.devices.nvme.transfer import Bus


@dataclass(slots=True, eq=False)
class CompletionQueue:
    """A ring of ``size`` completions at ``address``.

    ``signal``: entries were posted and not signalled yet. ``owed``: a completion that could not be
    written, because its memory was not there; nothing else can be posted until `settle` succeeds.
    """

    id: int
    address: int
    size: int
    vector: int = 0
    interrupts: bool = True
    head: int = 0
    tail: int = 0
    phase: int = 1
    signal: bool = False
    submitters: int = 0
    owed: Completion | None = None

    @property
    def used(self) -> int:
        """Entries the host has not consumed."""
        return (self.tail - self.head) % self.size

    @property
    def room(self) -> int:
        """Entries that can be posted."""
        return 0 if self.owed else self.size - 1 - self.used

    def ring(self, head: int) -> bool:
        """The host consumed up to ``head``; False if it cannot have, and nothing is changed then."""
        if head >= self.size or (head - self.head) % self.size > self.used:
            return False
        self.head = head
        return True

    def post(self, bus: Bus, sq: "SubmissionQueue", cid: int, status: int, result: int) -> None:
        """Write a completion; there has to be room. Raises `DmaError`, and then it is owed."""
        self.owed = Completion(result, sq.head, sq.id, cid, status, self.phase)
        self.settle(bus)

    def settle(self, bus: Bus) -> None:
        """Write the completion that is owed, if one is. Raises `DmaError`."""
        if self.owed is None:
            return
        bus.write(self.address + self.tail * CQE_SIZE, self.owed.encode())
        self.owed = None
        self.signal = True
        self.tail += 1
        if self.tail == self.size:
            self.tail = 0
            self.phase ^= 1


@dataclass(slots=True, eq=False)
class SubmissionQueue:
    """A ring of ``size`` commands at ``address``, completed in ``cq``.

    ``aborted`` holds the identifiers of commands that wait in the ring and are to end as aborted.
    """

    id: int
    address: int
    size: int
    cq: CompletionQueue
    head: int = 0
    tail: int = 0
    aborted: frozenset[int] = frozenset()

    @property
    def ready(self) -> bool:
        """Whether a command can be taken."""
        return self.head != self.tail and self.cq.room > 0

    @property
    def waiting(self) -> int:
        """Commands not fetched yet."""
        return (self.tail - self.head) % self.size

    def ring(self, tail: int) -> bool:
        """The host submitted up to ``tail``; False if that is outside the ring."""
        if tail >= self.size:
            return False
        self.tail = tail
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
        self.head += 1
        if self.head == self.size:
            self.head = 0
