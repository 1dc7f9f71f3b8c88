"""The memory of one poller: its record, its rings, its scratch, and its way to files."""

import logging
import struct
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from outboard.devices.nvme.datapath.counting import MOVED
from outboard.devices.nvme.datapath.lanes import Lanes
from outboard.devices.nvme.datapath.records import (
    BACK_RECORD,
    BATCH,
    CLASS_CURSOR,
    CLASS_END,
    CLASS_FIRST,
    CLASS_RECORD,
    IN_FLIGHT,
    LOW,
    NS_BYTES_READ,
    NS_BYTES_WRITTEN,
    NS_LATENCY,
    NS_LONGEST,
    NS_MEASURED,
    NS_READS,
    NS_RECORD,
    NS_WRITES,
    OP_RECORD,
    PL_BACK,
    PL_BACKED_UP,
    PL_BATCHES,
    PL_BUSY,
    PL_CLASSES,
    PL_COMMANDS,
    PL_CQ_COUNT,
    PL_CQS,
    PL_CURSOR,
    PL_DIVERTED,
    PL_DOZE,
    PL_FREE,
    PL_GRACE,
    PL_HELD,
    PL_IN_FLIGHT,
    PL_INLINE,
    PL_INTERRUPTS,
    PL_MDTS,
    PL_NAMESPACE_COUNT,
    PL_NAMESPACES,
    PL_NAP,
    PL_NAPS,
    PL_OPERATIONS,
    PL_QUEUE_COUNT,
    PL_QUEUES,
    PL_RECORD,
    PL_SEGMENT_COUNT,
    PL_SEGMENTS,
    PL_SLOTS,
    PL_SLOW,
    PL_SPIN,
    PL_STAGED,
    PL_STAGED_METADATA,
    PL_TABLE,
    PL_URING,
    PL_URING_FD,
    PL_VECTOR,
    PL_WATCH_COUNT,
    PL_WATCHED,
    PL_WITHHELD,
    SEGMENT,
    SLOT_NEXT,
    SLOT_RECORD,
    SLOT_VECTOR,
    SLOW_ENTRY,
    SLOW_RECORD,
    WATCH_AT,
    WATCH_RECORD,
    WATCH_SEEN,
)
from outboard.devices.nvme.datapath.tuning import Tuning
from outboard.devices.nvme.namespace import FORMATS
from outboard.devices.nvme.spec import PAGE
from outboard.errors import SetupError
from outboard.native import uring
from outboard.native.memory import load32, store64
from outboard.native.ring import Ring
from outboard.native.words import WORD, Block, Record

log = logging.getLogger(__name__)

RETURNING = struct.Struct("=4q")
"""A completion on its way back, as in `records`: BACK_SQ, BACK_CID, BACK_STATUS, BACK_RESULT."""

MICROSECOND = 1_000

MOST_SEGMENTS = 1024
"""Segments one system call takes (IOV_MAX)."""

COUNTERS = {
    "commands": PL_COMMANDS,
    "batches": PL_BATCHES,
    "diverted": PL_DIVERTED,
    "held": PL_HELD,
    "interrupts": PL_INTERRUPTS,
    "withheld": PL_WITHHELD,
    "naps": PL_NAPS,
    "backed_up": PL_BACKED_UP,
    "busy_ns": PL_BUSY,
}

SPACE_COUNTERS = {
    "reads": NS_READS,
    "writes": NS_WRITES,
    "bytes_read": NS_BYTES_READ,
    "bytes_written": NS_BYTES_WRITTEN,
    "latency_ns": NS_LATENCY,
    "measured": NS_MEASURED,
    "longest_ns": NS_LONGEST,
}


class Workspace:
    """What one poller works with. ``queues`` is the most it serves, ``mdts`` the largest transfer in bytes.

    ``table`` is the translation's address, ``namespaces`` the largest namespace identifier.
    """

    def __init__(self, queues: int, mdts: int, table: int, namespaces: int) -> None:
        self.record = Block(PL_RECORD)
        self._queues, self._cqs = Block(queues * WORD), Block(queues * WORD)
        self._watched = Block(2 * (queues + 1) * WATCH_RECORD)
        self._operations = Block(BATCH * OP_RECORD)
        segments = mdts // PAGE + 1
        self._segments = Block(BATCH * segments * SEGMENT)
        self._staged = Block(mdts)
        self._staged_metadata = Block(max(mdts // each.block_size * each.metadata for each in FORMATS))
        self._spaces = Block(namespaces * NS_RECORD)
        self._most_namespaces = namespaces
        self.lanes = Lanes(self.record, self.space, namespaces)
        self._slow = Ring(2 * IN_FLIGHT, SLOW_RECORD)
        self._back = Ring(2 * IN_FLIGHT, BACK_RECORD)
        self._late: deque[tuple[int, int, int, int]] = deque()
        self.uring: uring.Ring | None = None
        self._refused = False
        for field, value in (
            (PL_TABLE, table),
            (PL_MDTS, mdts),
            (PL_QUEUES, self._queues.address),
            (PL_CQS, self._cqs.address),
            (PL_WATCHED, self._watched.address),
            (PL_OPERATIONS, self._operations.address),
            (PL_SEGMENTS, self._segments.address),
            (PL_SEGMENT_COUNT, BATCH * segments),
            (PL_STAGED, self._staged.address),
            (PL_STAGED_METADATA, self._staged_metadata.address),
            (PL_SLOW, self._slow.address),
            (PL_BACK, self._back.address),
            (PL_NAMESPACES, self._spaces.address),
            (PL_NAMESPACE_COUNT, namespaces),
        ):
            self.record[field] = value
        self._vector = min(segments, MOST_SEGMENTS)

    def tune(self, tuning: Tuning) -> None:
        """Serve the queues as ``tuning`` says."""
        inline = tuning.pollers == 0
        for field, value in (
            (PL_INLINE, int(inline)),
            (PL_SPIN, tuning.spin * MICROSECOND),
            (PL_GRACE, 0 if inline else tuning.grace * MICROSECOND),
            (PL_NAP, tuning.nap * MICROSECOND),
            (PL_DOZE, tuning.doze * MICROSECOND),
        ):
            self.record[field] = value

    def open(self) -> None:
        """Get a ring from the kernel, for files."""
        if self.uring is None and not self._refused:
            self._prepare_files(self._vector)

    @property
    def address(self) -> int:
        """What the loop takes."""
        return self.record.address

    @property
    def statistics(self) -> dict[str, int]:
        """What the loop has counted since it was made."""
        counted = {name: self.record[field] for name, field in COUNTERS.items()}
        each = self.space_statistics.values()
        return counted | {name: sum(counters[name] for counters in each) for name in MOVED}

    def space(self, nsid: int) -> Record:
        """What the loop knows of a namespace."""
        return Record(self._spaces, (nsid - 1) * NS_RECORD)

    @property
    def space_statistics(self) -> dict[int, dict[str, int]]:
        """What the loop did with each namespace."""
        return {
            nsid: {name: self.space(nsid)[field] for name, field in SPACE_COUNTERS.items()}
            for nsid in range(1, self._most_namespaces + 1)
        }

    @property
    def busy(self) -> bool:
        """Whether a command is in flight below."""
        return self.record[PL_IN_FLIGHT] != 0

    def give_queues(
        self, queues: Sequence[Sequence[int]], cqs: Sequence[int], watched: Sequence[int]
    ) -> None:
        """Set the queues to serve and the doorbells to watch: of each class the addresses of its records."""
        count = 0
        for priority, members in enumerate(queues):
            record = Record(self.record, PL_CLASSES + priority * CLASS_RECORD)
            record[CLASS_FIRST], record[CLASS_CURSOR] = count, 0
            for address in members:
                self._queues[count * WORD] = address
                count += 1
            record[CLASS_END] = count
        for number, address in enumerate(cqs):
            self._cqs[number * WORD] = address
        for number, address in enumerate(watched):
            self._watched[number * WATCH_RECORD + WATCH_AT] = address
            # A value seen before is no news; one that came meanwhile may be: it is told once too often then.
            self._watched[number * WATCH_RECORD + WATCH_SEEN] = load32(address) ^ 1
        self.record[PL_QUEUE_COUNT], self.record[PL_CQ_COUNT] = count, len(cqs)
        self.record[PL_WATCH_COUNT], self.record[PL_CURSOR] = len(watched), 0

    def take_slow(self) -> tuple[int, bytes] | None:
        """The record of a queue and 64 bytes of a command that is Python's; None if there is none."""
        message = self._slow.pop()
        if message is None:
            return None
        return int.from_bytes(message[:SLOW_ENTRY], "little"), message[SLOW_ENTRY:]

    def put_slow(self, sq: int, entry: bytes) -> bool:
        """Leave a command to Python once more, behind the others; False if there is no room.

        Only while paused, or while the loop has no queues.
        """
        return self._slow.push(sq.to_bytes(SLOW_ENTRY, "little") + entry)

    @property
    def slow(self) -> int:
        """Commands that wait for Python."""
        return len(self._slow)

    def hand_back(self, sq: int, cid: int, status: int, result: int) -> None:
        """Have the loop post a completion: the queue's record, identifier, status field, dword 0."""
        self._late.append((sq, cid, status, result))
        self.hand_back_late()

    def hand_back_late(self) -> bool:
        """Hand back what there was no room for; whether all of it is handed back now."""
        while self._late and self._back.push(RETURNING.pack(*self._late[0])):
            self._late.popleft()
        return not self._late

    def take_returning(self) -> list[tuple[int, int, int, int]]:
        """Take back what was handed back and not posted yet. Only while paused."""
        taken = []
        while (message := self._back.pop()) is not None:
            taken.append(RETURNING.unpack(message))
        taken += self._late
        self._late.clear()
        return taken

    @property
    def returning(self) -> bool:
        """Whether completions wait to be posted."""
        return bool(len(self._back) or self._late)

    def reset(self) -> None:
        """Forget the commands under way between the loop and Python; nothing is in flight below."""
        self._slow.clear()
        self._back.clear()
        self._late.clear()
        self.lanes.take(lambda queue, entry: True)
        self.give_queues(((),) * (LOW + 1), (), ())

    def close(self) -> None:
        """Let go of the kernel's ring. Nothing is in flight."""
        self._refused = False
        if self.uring is not None:
            self.uring.close()
            self.uring = None
            self.record[PL_URING], self.record[PL_URING_FD] = 0, -1

    def _prepare_files(self, segments: int) -> None:
        try:
            self.uring = uring.Ring(IN_FLIGHT)
        except SetupError as error:
            self._refused = True
            log.warning("files are served by threads, more slowly: %s", error)
            return
        self._slots = Block(IN_FLIGHT * SLOT_RECORD)
        self._vectors = Block(IN_FLIGHT * segments * SEGMENT)
        for number in range(IN_FLIGHT):
            vector = self._vectors.address + number * segments * SEGMENT
            self._slots[number * SLOT_RECORD + SLOT_VECTOR] = vector
        addresses = [self._slots.address + number * SLOT_RECORD for number in range(IN_FLIGHT)]
        for slot, following in pairwise([*addresses, 0]):
            store64(slot + SLOT_NEXT, following)
        self.record[PL_SLOTS], self.record[PL_FREE] = addresses[0], addresses[0]
        self.record[PL_URING], self.record[PL_URING_FD] = self.uring.address, self.uring.fd
        self.record[PL_VECTOR] = segments
