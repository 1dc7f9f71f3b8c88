"""What Python and the compiled loop share: one record a queue, one a namespace, one a poller.

Each name is an offset in bytes from the start of its record; all fields are 64-bit words. Fields that
the control plane writes (only while the poller is paused, unless said otherwise) come first, those the
poller writes begin at another cache line, so that neither takes the other's line away.
"""

from outboard.native.words import offsets

SQ_BASE, SQ_SIZE, SQ_ID, SQ_CQ, SQ_TAIL_AT, SQ_EVENT_AT, SQ_DIVERT = offsets(7)
"""Submission queue: our address of its entries, how many, its identifier, its completion queue's record,
where the host puts the tail, where we put the event index (0: nowhere), and whether every command goes to
Python."""

SQ_HEAD, SQ_TAIL, SQ_EVENT, SQ_BAD, SQ_LAPS, SQ_BYTES = offsets(6, start=64)
"""The next entry to take, the tail last seen, the event index last given (-1: none), and the last tail
that cannot be (-1: none); how often all entries were taken, and how many bytes the fast lane moved."""

SQ_RECORD = 128

CQ_BASE, CQ_SIZE, CQ_ID, CQ_HEAD_AT, CQ_EVENT_AT, CQ_FD, CQ_THRESHOLD, CQ_DELAY = offsets(8)
"""Completion queue: our address of its entries, how many, its identifier, where the host puts the head,
where we put the event index, the eventfd of its vector (or `NO_INTERRUPT`, `BY_PYTHON`), and coalescing:
how many completions make an interrupt at once, and how many nanoseconds fewer may wait (0: none)."""

CQ_HEAD, CQ_TAIL, CQ_PHASE, CQ_PENDING, CQ_STARVED, CQ_EVENT, CQ_BAD = offsets(7, start=64)
"""The head last seen, the next entry to post, its phase, commands taken that complete later, whether a
command waits for room, the event index last given, and the last head that cannot be."""

CQ_UNTOLD, CQ_SINCE, CQ_TOLD_HEAD, CQ_TOLD_AT, CQ_SIGNAL, CQ_LAPS, CQ_INTERRUPTS = offsets(7, start=128)
"""Completions posted since the last interrupt, and since when (0: unknown yet); the head at the last
interrupt (-1: the host has consumed everything since), and when that was; whether Python is to interrupt;
how often the ring was filled to its end, and how many interrupts there were."""

CQ_RECORD = 192

NO_INTERRUPT, BY_PYTHON = -1, -2

NS_KIND, NS_SHIFT, NS_BLOCKS, NS_ADDRESS, NS_FD, NS_ALIGNMENT, NS_DURABLE, NS_SLOW = offsets(8)
"""Namespace: what is behind it, its block size as a power of two, its blocks, our address of its bytes, or
its descriptor and what that wants offsets, sizes and addresses to be multiples of, whether each write
has to be durable before it completes, and the opcodes, as bits, that are for Python all the same."""

SLOW_ALWAYS = 8
LIMITED = 1 << 16
"""Beside those bits, if commands have to wait for their time, which makes all of them slow at first: those
that are slow even then, from that bit on, and that it is so."""

NS_METADATA, NS_METADATA_AT, NS_EXTENDED, NS_TYPE, NS_TUPLE_AT, NS_TUPLE_SIZE = offsets(6, start=64)
"""Bytes of metadata a block, our address of that of block 0, and whether the host has it behind each block;
the type of protection information (0: none), where in the metadata it begins, and its bytes."""

NS_READS_HELD, NS_WRITES_HELD, NS_READS, NS_WRITES, NS_BYTES_READ, NS_BYTES_WRITTEN = offsets(6, start=128)
"""The rings of commands that wait for their time, if it is limited; what the fast lane did."""

NS_LATENCY, NS_MEASURED, NS_LONGEST = offsets(3, start=176)
"""Nanoseconds that the commands took whose time was measured, how many those were, and the longest."""

NS_STRIPES = 200
"""The locks of blocks in memory, with or without metadata, that another loop reaches, too; 0 if none does."""

NS_RECORD = 256
"""Each poller has a record of each namespace, so that none takes another's counters away."""

BY_SLOW_LANE, NOTHING, MEMORY, FILE, BESIDE, SHARED = range(6)
"""Kinds of namespaces. BESIDE: memory with metadata beside the blocks. SHARED: memory of other loops, too."""

PL_TABLE, PL_NAMESPACES, PL_NAMESPACE_COUNT, PL_MDTS = offsets(4)
"""Poller: the translation table, the namespaces, how many, and the largest transfer in bytes."""

PL_QUEUES, PL_QUEUE_COUNT, PL_CQS, PL_CQ_COUNT, PL_WATCHED, PL_WATCH_COUNT, PL_BURST = offsets(7, start=32)
"""Addresses of the records of its submission queues, and how many; of its completion queues; the doorbells
it only watches, for Python; and the commands taken from one queue before its neighbour's turn."""

PL_SLOW, PL_BACK, PL_URING, PL_URING_FD = offsets(4, start=88)
"""The rings to Python and back, io_uring (0: none) and its descriptor."""

PL_OPERATIONS, PL_SEGMENTS, PL_SEGMENT_COUNT, PL_SLOTS, PL_FREE, PL_VECTOR = offsets(6, start=120)
"""Scratch: commands of a batch, their segments and how many fit, commands in flight below, the first that
is free (0: none), and how many segments one of them may have."""

PL_STAGED, PL_STAGED_METADATA = offsets(2, start=224)
"""Scratch: the blocks of one command with metadata, and that."""

PL_INLINE, PL_POLLED, PL_SPIN, PL_NAP, PL_LONGEST_NAP, PL_DOZE, PL_GRACE = offsets(7, start=168)
"""Whether it runs in Python's thread and has to return, whether nobody rings, so that it may only nap; the
longest spin, the first and the longest nap, how long to nap before the host has to ring, and how long one
that was interrupted may take before it is interrupted again (nanoseconds)."""

PL_CURSOR, PL_IN_FLIGHT, PL_BAD, PL_SCRATCH = offsets(4, start=256)
"""The queue whose turn it is, commands in flight below, whether a doorbell had a value that cannot be, and
two words for anything."""

PL_COMMANDS, PL_BATCHES, PL_DIVERTED, PL_INTERRUPTS, PL_WITHHELD, PL_NAPS, PL_BACKED_UP = offsets(
    7, start=320
)
"""What it counts: commands and batches, commands that went to Python, interrupts sent and withheld, naps,
and batches that were cut short for want of room."""

PL_LANES, PL_LANE_COUNT, PL_DUE, PL_HELD, PL_BUSY, PL_BUSY_SINCE = offsets(6, start=384)
"""The lanes of commands that wait for their time, and how many; whether one of them is executed now; how many
have waited; nanoseconds in which commands were executed, and since when some are in flight below."""

PL_LOOKED = 240
"""When the lanes were looked at last: what was due then waits for something else than its time."""

PL_WEIGHTED, PL_CLASS = offsets(2, start=432)
"""Whether arbitration is weighted, and then the class that was served last."""

PL_CLASSES = 448
"""For each class: `CLASS_RECORD` bytes."""

PL_RECORD = 576

CLASS_FIRST, CLASS_END, CLASS_WEIGHT, CLASS_CURSOR = offsets(4)
CLASS_RECORD = 32
"""A class of submission queues: the places of its first and behind its last, the commands it may have in
one turn, and the queue whose turn it is."""

URGENT, HIGH, MEDIUM, LOW = range(4)
"""Classes, by what Create I/O Submission Queue calls their priorities."""

WATCH_AT, WATCH_SEEN = offsets(2)
WATCH_RECORD = 16
"""A doorbell that is only watched: its address, the value last seen."""

OP_KIND, OP_CID, OP_DISK, OP_LENGTH, OP_SEGMENT, OP_SEGMENT_COUNT, OP_SPACE, OP_FLAGS = offsets(8)
"""A command of the batch, decoded: what to do, its identifier, where on the disk (an address, or an offset),
its bytes, its first segment and how many, its namespace's record (0: none), and flags."""

OP_LBA, OP_BLOCKS, OP_METADATA, OP_CARRIED, OP_CHECKS, OP_TAGS, OP_REFERENCE = offsets(7, start=64)
"""The same with metadata: the first block and how many; our address of the host's
buffer of metadata (0: it has none of its own), bytes of metadata that go with each block; what to do with
protection information (PRINFO), dword 15, and the reference tag of the first block."""

OP_RECORD = 128

FLUSH_NOTHING, READ_NOTHING, WRITE_NOTHING, READ_MEMORY, WRITE_MEMORY = range(5)
FLUSH_FILE, READ_FILE, WRITE_FILE, DIVERT, HOLD_READ, HOLD_WRITE = range(5, 11)
READ_BESIDE, WRITE_BESIDE, READ_SHARED, WRITE_SHARED = range(11, 15)
"""What to do with a command. Those of the first row are complete when they are carried out; those that are
held are decoded once more when their time has come."""

BATCH = 64
"""Commands taken from a queue at once, at most."""

SEGMENT_HOST, SEGMENT_SIZE = offsets(2)
SEGMENT = 16
"""A run of guest memory: our address (0: a bit bucket), and its bytes; the same as struct iovec."""

SLOT_SQ, SLOT_CID, SLOT_LENGTH, SLOT_KIND, SLOT_NEXT, SLOT_VECTOR, SLOT_SPACE, SLOT_SINCE = offsets(8)
SLOT_ENTRY = 64
SLOT_RECORD = 128
"""A command in flight below: its queue's record, its identifier, the bytes to move, what it is, the next
free slot, its segments, its namespace's record, when it began, and its 64 bytes, for Python if it fails."""

SLOW_SQ, SLOW_ENTRY = 0, 8
SLOW_RECORD = 72
"""A command on its way to Python, or one that is held: its queue's record, and its 64 bytes."""

LANE_RING, LANE_LIMITS, LANE_SPACE, LANE_DUE = offsets(4)
LANE_RECORD = 32
"""Commands that are held: their ring, the limits of their namespace, its record, and when the first of them
is due (0: it has not taken its ticket yet)."""

HELD = 1024
"""Commands of one namespace and direction that a poller may hold. The next ones hold up their queue."""

BACK_SQ, BACK_CID, BACK_STATUS, BACK_RESULT = offsets(4)
BACK_RECORD = 32
"""A completion on its way back: its queue's record, identifier, 15-bit status field, dwords 0 and 1."""

IN_FLIGHT = 256
"""Commands a poller may have in flight below, and as many again in Python."""
