"""The fast lane: takes a batch of commands from a queue, carries it out, posts what is complete.

Commands are decoded ahead of those that are carried out, so that one command's block is fetched into the
cache while its predecessor's is copied; not all of a batch, because a host that waits goes on with the
first completion. What is not for the fast lane, and what fails in it, goes
to Python as it came: a copy of its 64 bytes in the slow ring. Its completion comes back by another ring.
"""

from outboard.devices.nvme.datapath.beside import carry_out_beside
from outboard.devices.nvme.datapath.completion import count, post, room
from outboard.devices.nvme.datapath.decode import decode
from outboard.devices.nvme.datapath.files import begin, measured
from outboard.devices.nvme.datapath.records import (
    BACK_CID,
    BACK_RESULT,
    BACK_SQ,
    BACK_STATUS,
    BATCH,
    CQ_PENDING,
    DIVERT,
    HOLD_READ,
    HOLD_WRITE,
    IN_FLIGHT,
    NS_BYTES_READ,
    NS_BYTES_WRITTEN,
    NS_READS,
    NS_READS_HELD,
    NS_WRITES,
    NS_WRITES_HELD,
    OP_CID,
    OP_DISK,
    OP_KIND,
    OP_LENGTH,
    OP_RECORD,
    OP_SEGMENT,
    OP_SEGMENT_COUNT,
    OP_SPACE,
    PL_BACK,
    PL_BACKED_UP,
    PL_BATCHES,
    PL_BUSY,
    PL_COMMANDS,
    PL_DIVERTED,
    PL_HELD,
    PL_OPERATIONS,
    PL_SEGMENTS,
    PL_SLOW,
    READ_BESIDE,
    READ_MEMORY,
    READ_NOTHING,
    READ_SHARED,
    SEGMENT,
    SEGMENT_HOST,
    SEGMENT_SIZE,
    SLOW_ENTRY,
    SLOW_SQ,
    SQ_BASE,
    SQ_BYTES,
    SQ_CQ,
    SQ_HEAD,
    SQ_LAPS,
    SQ_SIZE,
    SQ_TAIL,
    WRITE_BESIDE,
    WRITE_MEMORY,
    WRITE_NOTHING,
    WRITE_SHARED,
)
from outboard.devices.nvme.datapath.stripes import lock, unlock
from outboard.devices.nvme.spec import SQE_SIZE
from outboard.native.jit import jitable
from outboard.native.libc import monotonic_ns
from outboard.native.memory import (
    CACHE_LINE,
    copy,
    copy_ahead,
    copy_stream,
    drain_stream,
    load64,
    prefetch,
    store64,
)
from outboard.native.poller import notify
from outboard.native.ring import GIVEN, TAKEN, give, next_free, next_given, take

DECODED_AHEAD = 4
"""Commands decoded at once. With eight, reads gain 2 %, and writes lose 5 %: their host waits longer."""

SMALL = 8192
"""Runs up to this size are copied line by line, the next command's lines fetched meanwhile; writes go past
the cache, so that what they replace need not be read. For longer runs nothing beats memcpy."""

ANNOUNCED_TOGETHER = 8
"""Streamed writes that share one fence before their completions are posted."""

MEASURED = 64
"""One batch of so many, a power of two, is timed: the clock costs as much as a tenth of a command."""


@jitable
def serve_queue(control: int, plane: int, sq: int, limit: int) -> int:
    """Take up to ``limit`` commands, `BATCH` at most; how many were taken."""
    head = load64(sq + SQ_HEAD)
    tail = load64(sq + SQ_TAIL)
    size = load64(sq + SQ_SIZE)
    cq = load64(sq + SQ_CQ)
    available = (tail if tail > head else size) - head
    wanted = room(plane, cq, min(available, min(limit, BATCH)))
    if wanted <= 0:
        return 0
    entries = load64(sq + SQ_BASE) + head * SQE_SIZE
    operations = load64(plane + PL_OPERATIONS)
    for number in range(wanted):
        prefetch(entries + number * SQE_SIZE)
    since = monotonic_ns() if load64(plane + PL_BATCHES) & (MEASURED - 1) == 0 else 0
    segments = 0
    decoded = 0
    taken = 0
    streamed = 0
    while taken < wanted:
        operation = operations + taken * OP_RECORD
        if decoded <= taken + 1:
            until = min(decoded + DECODED_AHEAD, wanted)
            while decoded < until:
                entry = entries + decoded * SQE_SIZE
                segments = decode(plane, sq, entry, operations + decoded * OP_RECORD, segments)
                decoded += 1
        ahead = source(plane, operation + OP_RECORD) if taken + 1 < wanted else 0
        kind = load64(operation + OP_KIND)
        if streamed == ANNOUNCED_TOGETHER or (streamed > 0 and kind != WRITE_MEMORY and kind != WRITE_BESIDE):
            announce(sq, operations, head, taken, streamed)
            streamed = 0
        if kind == WRITE_MEMORY:
            write_memory(plane, operation, ahead)
            streamed += 1
        elif kind < WRITE_MEMORY:
            if kind == READ_MEMORY:
                read_memory(plane, operation, ahead)
            post(sq, following(head, taken, size), load64(operation + OP_CID), 0, 0)
        elif kind >= READ_BESIDE and carry_out(plane, operation, ahead) != 0:
            if kind == WRITE_BESIDE:
                streamed += 1
            else:
                post(sq, following(head, taken, size), load64(operation + OP_CID), 0, 0)
        else:
            if streamed > 0:
                announce(sq, operations, head, taken, streamed)
                streamed = 0
            entry = entries + taken * SQE_SIZE
            if kind < DIVERT:
                begun = begin(plane, sq, operation, entry)
            elif kind in (HOLD_READ, HOLD_WRITE):
                begun = hold(plane, sq, operation, entry)
            else:
                store64(operation + OP_KIND, DIVERT)
                begun = divert(control, plane, sq, entry)
            if begun == 0:
                count(plane + PL_BACKED_UP, 1)
                break
            count(cq + CQ_PENDING, 1)
        taken += 1
    if streamed > 0:
        announce(sq, operations, head, taken, streamed)
    head = following(head, taken - 1, size)
    store64(sq + SQ_HEAD, head)
    if head == 0 and taken > 0:
        count(sq + SQ_LAPS, 1)
    tally(sq, operations, taken)
    count(plane + PL_COMMANDS, taken)
    count(plane + PL_BATCHES, 1)
    if since != 0:
        measure(plane, operations, taken, monotonic_ns() - since)
    return taken


@jitable
def measure(plane: int, operations: int, taken: int, elapsed: int) -> int:
    """A batch that stands for `MEASURED` has taken so many nanoseconds: as long as its last command."""
    last = operations + (taken - 1) * OP_RECORD
    kind = load64(last + OP_KIND)
    if taken > 0 and (kind <= WRITE_MEMORY or kind >= READ_BESIDE):
        measured(load64(last + OP_SPACE), elapsed)
    return count(plane + PL_BUSY, elapsed * MEASURED)


@jitable
def following(head: int, taken: int, size: int) -> int:
    """The head after ``taken`` more commands and this one; a batch ends with the ring."""
    index = head + taken + 1
    return 0 if index == size else index


@jitable
def announce(sq: int, operations: int, head: int, taken: int, streamed: int) -> int:
    """Post the completions of the last ``streamed`` commands: what they wrote is seen before."""
    drain_stream()
    size = load64(sq + SQ_SIZE)
    for number in range(taken - streamed, taken):
        cid = load64(operations + number * OP_RECORD + OP_CID)
        post(sq, following(head, number, size), cid, 0, 0)
    return 0


@jitable
def tally(sq: int, operations: int, taken: int) -> int:
    """Count what the fast lane completed of a batch, for each namespace."""
    space = load64(operations + OP_SPACE)
    reads = 0
    writes = 0
    bytes_read = 0
    bytes_written = 0
    for number in range(taken):
        operation = operations + number * OP_RECORD
        kind = load64(operation + OP_KIND)
        another = load64(operation + OP_SPACE)
        if another != space:
            credit(sq, space, reads, writes, bytes_read, bytes_written)
            space = another
            reads = writes = bytes_read = bytes_written = 0
        if kind in (READ_MEMORY, READ_NOTHING, READ_BESIDE, READ_SHARED):
            reads += 1
            bytes_read += load64(operation + OP_LENGTH)
        elif kind in (WRITE_MEMORY, WRITE_NOTHING, WRITE_BESIDE, WRITE_SHARED):
            writes += 1
            bytes_written += load64(operation + OP_LENGTH)
    return credit(sq, space, reads, writes, bytes_read, bytes_written)


@jitable
def credit(sq: int, space: int, reads: int, writes: int, bytes_read: int, bytes_written: int) -> int:
    """Count what was done with a namespace (0: nothing was)."""
    if space == 0:
        return 0
    if reads > 0:
        count(space + NS_READS, reads)
        count(space + NS_BYTES_READ, bytes_read)
    if writes > 0:
        count(space + NS_WRITES, writes)
        count(space + NS_BYTES_WRITTEN, bytes_written)
    return count(sq + SQ_BYTES, bytes_read + bytes_written)


@jitable
def source(plane: int, operation: int) -> int:
    """Where a command begins to copy from: the disk, or the guest's first segment; 0 if it copies nothing."""
    kind = load64(operation + OP_KIND)
    if kind == READ_MEMORY:
        return load64(operation + OP_DISK)
    if kind in (WRITE_MEMORY, WRITE_BESIDE, WRITE_SHARED):
        return load64(first_segment(plane, operation) + SEGMENT_HOST)
    return load64(operation + OP_DISK) if kind in (READ_BESIDE, READ_SHARED) else 0


@jitable
def first_segment(plane: int, operation: int) -> int:
    """The first of a command's segments."""
    return load64(plane + PL_SEGMENTS) + load64(operation + OP_SEGMENT) * SEGMENT


@jitable
def read_memory(plane: int, operation: int, ahead: int) -> int:
    """Copy from the disk's memory to the guest's segments; a bit bucket takes nothing.

    What lies at ``ahead`` (0: nothing does) is fetched meanwhile.
    """
    disk = load64(operation + OP_DISK)
    segment = first_segment(plane, operation)
    if ahead == 0:
        ahead = disk
    for _ in range(load64(operation + OP_SEGMENT_COUNT)):
        host = load64(segment + SEGMENT_HOST)
        size = load64(segment + SEGMENT_SIZE)
        if host != 0:
            if size <= SMALL and size & (CACHE_LINE - 1) == 0:
                copy_ahead(host, disk, size, ahead)
            else:
                copy(host, disk, size)
        disk += size
        ahead += size
        segment += SEGMENT
    return 0


@jitable
def write_memory(plane: int, operation: int, ahead: int) -> int:
    """As `read_memory`, from the guest's segments to the disk's memory; past the cache where that pays."""
    disk = load64(operation + OP_DISK)
    segment = first_segment(plane, operation)
    if ahead == 0:
        ahead = load64(segment + SEGMENT_HOST)
    for _ in range(load64(operation + OP_SEGMENT_COUNT)):
        host = load64(segment + SEGMENT_HOST)
        size = load64(segment + SEGMENT_SIZE)
        if size <= SMALL and (disk | size) & (CACHE_LINE - 1) == 0:
            copy_stream(disk, host, size, ahead)
        else:
            copy(disk, host, size)
        disk += size
        ahead += size
        segment += SEGMENT
    return 0


@jitable
def carry_out(plane: int, operation: int, ahead: int) -> int:
    """Read or write where it takes more than a copy: metadata, or others who do so at the same time.

    0 if a block does not pass, and nothing was stored or given then.
    """
    kind = load64(operation + OP_KIND)
    if kind < READ_SHARED:
        return carry_out_beside(plane, operation, ahead)
    stripes = lock(operation)
    if kind == READ_SHARED:
        read_memory(plane, operation, ahead)
    else:
        write_memory(plane, operation, ahead)
        drain_stream()
    return unlock(stripes, operation)


@jitable
def divert(control: int, plane: int, sq: int, entry: int) -> int:
    """Leave a command to Python; 0 if Python has enough of them for now."""
    ring = load64(plane + PL_SLOW)
    if load64(ring + GIVEN) - load64(ring + TAKEN) >= IN_FLIGHT:
        return 0
    return divert_failed(control, plane, sq, entry)


@jitable
def divert_failed(control: int, plane: int, sq: int, entry: int) -> int:
    """As `divert`, for a command that was in flight below: the ring has room for all of those besides."""
    leave(load64(plane + PL_SLOW), sq, entry)
    count(plane + PL_DIVERTED, 1)
    notify(control)
    return 1


@jitable
def hold(plane: int, sq: int, operation: int, entry: int) -> int:
    """Have a command of a limited namespace wait for its time; 0 if too many do."""
    space = load64(operation + OP_SPACE)
    reading = load64(operation + OP_KIND) == HOLD_READ
    held = leave(load64(space + (NS_READS_HELD if reading else NS_WRITES_HELD)), sq, entry)
    count(plane + PL_HELD, held)
    return held


@jitable
def leave(ring: int, sq: int, entry: int) -> int:
    """Put a copy of a command into a ring; 0 if that is full."""
    slot = next_free(ring)
    if slot == 0:
        return 0
    store64(slot + SLOW_SQ, sq)
    for offset in range(0, SQE_SIZE, 8):
        store64(slot + SLOW_ENTRY + offset, load64(entry + offset))
    give(ring)
    return 1


@jitable
def take_back(plane: int) -> int:
    """Post the completions that Python has handed back; how many."""
    ring = load64(plane + PL_BACK)
    taken = 0
    message = next_given(ring)
    while message != 0:
        sq = load64(message + BACK_SQ)
        count(load64(sq + SQ_CQ) + CQ_PENDING, -1)
        post(
            sq,
            load64(sq + SQ_HEAD),
            load64(message + BACK_CID),
            load64(message + BACK_STATUS),
            load64(message + BACK_RESULT),
        )
        take(ring)
        taken += 1
        message = next_given(ring)
    return taken
