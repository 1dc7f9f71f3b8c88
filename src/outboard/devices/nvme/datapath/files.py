"""Commands of file namespaces: begun by io_uring, completed when the kernel is done.

Each command in flight has a slot with what its completion needs, its segments as an iovec, and a copy of
its 64 bytes: if anything goes wrong, or less was moved than asked for, Python does it again and says why.
"""

from outboard.devices.nvme.datapath.completion import count, post
from outboard.devices.nvme.datapath.records import (
    CQ_PENDING,
    FLUSH_FILE,
    NS_BYTES_READ,
    NS_BYTES_WRITTEN,
    NS_FD,
    NS_LATENCY,
    NS_LONGEST,
    NS_MEASURED,
    NS_READS,
    NS_WRITES,
    OP_CID,
    OP_DISK,
    OP_FLAGS,
    OP_KIND,
    OP_LENGTH,
    OP_SEGMENT,
    OP_SEGMENT_COUNT,
    OP_SPACE,
    PL_BUSY,
    PL_BUSY_SINCE,
    PL_FREE,
    PL_IN_FLIGHT,
    PL_SCRATCH,
    PL_SEGMENTS,
    PL_URING,
    READ_FILE,
    SEGMENT,
    SEGMENT_HOST,
    SEGMENT_SIZE,
    SLOT_CID,
    SLOT_ENTRY,
    SLOT_KIND,
    SLOT_LENGTH,
    SLOT_NEXT,
    SLOT_SINCE,
    SLOT_SPACE,
    SLOT_SQ,
    SLOT_VECTOR,
    SQ_BYTES,
    SQ_CQ,
    SQ_HEAD,
    WRITE_FILE,
)
from outboard.devices.nvme.spec import SQE_SIZE
from outboard.native.jit import jitable
from outboard.native.libc import monotonic_ns
from outboard.native.memory import copy, load64, store64
from outboard.native.uring import (
    FSYNC_DATASYNC,
    OP_FSYNC,
    OP_READ,
    OP_READV,
    OP_WRITE,
    OP_WRITEV,
    RWF_DSYNC,
    uring_prepare,
    uring_reap,
)


@jitable
def begin(plane: int, sq: int, operation: int, entry: int) -> int:
    """Prepare a command for the kernel; 0 if there is no slot or room now. `uring_submit` sends it."""
    slot = load64(plane + PL_FREE)
    if slot == 0:
        return 0
    kind = load64(operation + OP_KIND)
    ring = load64(plane + PL_URING)
    space = load64(operation + OP_SPACE)
    fd = load64(space + NS_FD)
    if kind == FLUSH_FILE:
        prepared = uring_prepare(ring, OP_FSYNC, fd, 0, 0, 0, FSYNC_DATASYNC, 0, slot)
    else:
        segments = load64(operation + OP_SEGMENT_COUNT)
        source = load64(plane + PL_SEGMENTS) + load64(operation + OP_SEGMENT) * SEGMENT
        offset = load64(operation + OP_DISK)
        flags = RWF_DSYNC if load64(operation + OP_FLAGS) != 0 else 0
        if segments == 1:
            opcode = OP_READ if kind == READ_FILE else OP_WRITE
            address = load64(source + SEGMENT_HOST)
            size = load64(source + SEGMENT_SIZE)
            prepared = uring_prepare(ring, opcode, fd, address, size, offset, flags, 0, slot)
        else:
            opcode = OP_READV if kind == READ_FILE else OP_WRITEV
            vector = load64(slot + SLOT_VECTOR)
            copy(vector, source, segments * SEGMENT)
            prepared = uring_prepare(ring, opcode, fd, vector, segments, offset, flags, 0, slot)
    if prepared == 0:
        return 0
    store64(plane + PL_FREE, load64(slot + SLOT_NEXT))
    store64(slot + SLOT_SQ, sq)
    store64(slot + SLOT_CID, load64(operation + OP_CID))
    store64(slot + SLOT_LENGTH, load64(operation + OP_LENGTH))
    store64(slot + SLOT_KIND, kind)
    store64(slot + SLOT_SPACE, space)
    copy(slot + SLOT_ENTRY, entry, SQE_SIZE)
    now = monotonic_ns()
    store64(slot + SLOT_SINCE, now)
    if load64(plane + PL_IN_FLIGHT) == 0:
        store64(plane + PL_BUSY_SINCE, now)
    count(plane + PL_IN_FLIGHT, 1)
    return 1


@jitable
def reap(plane: int) -> int:
    """Complete one command the kernel is done with: 1, 0 if there is none, or the slot of one that failed.

    A slot that comes back is the caller's to `release`.
    """
    out = plane + PL_SCRATCH
    if uring_reap(load64(plane + PL_URING), out) == 0:
        return 0
    slot = load64(out)
    result = load64(out + 8)
    kind = load64(slot + SLOT_KIND)
    length = load64(slot + SLOT_LENGTH)
    if result != length:
        return slot
    sq = load64(slot + SLOT_SQ)
    count(load64(sq + SQ_CQ) + CQ_PENDING, -1)
    post(sq, load64(sq + SQ_HEAD), load64(slot + SLOT_CID), 0, 0)
    space = load64(slot + SLOT_SPACE)
    if kind == READ_FILE:
        count(space + NS_READS, 1)
        count(space + NS_BYTES_READ, length)
    elif kind == WRITE_FILE:
        count(space + NS_WRITES, 1)
        count(space + NS_BYTES_WRITTEN, length)
    count(sq + SQ_BYTES, length)
    measured(space, monotonic_ns() - load64(slot + SLOT_SINCE))
    release(plane, slot)
    return 1


@jitable
def measured(space: int, elapsed: int) -> int:
    """A command took so many nanoseconds."""
    count(space + NS_LATENCY, elapsed)
    count(space + NS_MEASURED, 1)
    return store64(space + NS_LONGEST, max(load64(space + NS_LONGEST), elapsed))


@jitable
def release(plane: int, slot: int) -> int:
    """Give a slot back."""
    if load64(plane + PL_IN_FLIGHT) == 1:
        count(plane + PL_BUSY, monotonic_ns() - load64(plane + PL_BUSY_SINCE))
    store64(slot + SLOT_NEXT, load64(plane + PL_FREE))
    store64(plane + PL_FREE, slot)
    return count(plane + PL_IN_FLIGHT, -1)
