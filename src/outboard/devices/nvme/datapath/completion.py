"""Posting completions, and interrupting the host no more often than it needs (NVMe Base 2.0, 3.3.3.2, 7.5).

An eventfd write costs half a microsecond, and a guest's handler much more, so completions posted while
the host is busy with earlier ones wait:

* A host that has consumed everything since its last interrupt is interrupted at once.
* A host that was interrupted and has not moved the head since is still on its way: it will find what
  is posted meanwhile. It gets `PL_GRACE` for that.
* A host that moved the head but left completions behind has gone past them: it is interrupted.

So every completion is consumed, or an interrupt follows it in bounded time: none is lost. `tell` decides,
and says how long its decision stands.
"""

from outboard.devices.nvme.datapath.records import (
    BY_PYTHON,
    CQ_BAD,
    CQ_BASE,
    CQ_DELAY,
    CQ_FD,
    CQ_HEAD,
    CQ_HEAD_AT,
    CQ_INTERRUPTS,
    CQ_LAPS,
    CQ_PENDING,
    CQ_PHASE,
    CQ_SIGNAL,
    CQ_SINCE,
    CQ_SIZE,
    CQ_STARVED,
    CQ_TAIL,
    CQ_THRESHOLD,
    CQ_TOLD_AT,
    CQ_TOLD_HEAD,
    CQ_UNTOLD,
    NO_INTERRUPT,
    PL_BAD,
    PL_GRACE,
    PL_INTERRUPTS,
    PL_SCRATCH,
    PL_WITHHELD,
    SQ_CQ,
    SQ_ID,
)
from outboard.devices.nvme.spec import CQE_SIZE
from outboard.native.jit import jitable
from outboard.native.libc import write_eventfd
from outboard.native.memory import load64, load_acquire32, store64, store_release64
from outboard.native.poller import notify

NEVER = -1


@jitable
def count(record: int, more: int) -> int:
    """Add to a word."""
    return store64(record, load64(record) + more)


@jitable
def used(cq: int) -> int:
    """Completions the host has not consumed, as far as we know."""
    size = load64(cq + CQ_SIZE)
    difference = load64(cq + CQ_TAIL) - load64(cq + CQ_HEAD)
    return difference if difference >= 0 else difference + size


@jitable
def free(cq: int) -> int:
    """Completions there is room for, beyond those of commands under way."""
    return load64(cq + CQ_SIZE) - 1 - load64(cq + CQ_PENDING) - used(cq)


@jitable
def look_at_head(plane: int, cq: int) -> int:
    """Take over the head the host gave, if it can be; the head."""
    head = load64(cq + CQ_HEAD)
    given = load_acquire32(load64(cq + CQ_HEAD_AT))
    if given == head:
        return head
    size = load64(cq + CQ_SIZE)
    consumed = given - head
    if consumed < 0:
        consumed += size
    if given >= size or consumed > used(cq):
        if load64(cq + CQ_BAD) != given:
            store64(cq + CQ_BAD, given)
            store64(plane + PL_BAD, 1)
        return head
    store64(cq + CQ_HEAD, given)
    store64(cq + CQ_BAD, -1)
    return given


@jitable
def room(plane: int, cq: int, wanted: int) -> int:
    """How many commands may be taken whose completions go to ``cq``, up to ``wanted``."""
    left = free(cq)
    if left < wanted:
        look_at_head(plane, cq)
        left = free(cq)
        store64(cq + CQ_STARVED, 1 if left <= 0 else 0)
    return min(left, wanted)


@jitable
def post(sq: int, head: int, cid: int, status: int, result: int) -> int:
    """Post one completion; there has to be room."""
    cq = load64(sq + SQ_CQ)
    tail = load64(cq + CQ_TAIL)
    phase = load64(cq + CQ_PHASE)
    at = load64(cq + CQ_BASE) + tail * CQE_SIZE
    store64(at, result)
    # The phase goes last: with it the host takes the rest to be there.
    store_release64(at + 8, head | load64(sq + SQ_ID) << 16 | cid << 32 | (status << 1 | phase) << 48)
    tail += 1
    if tail == load64(cq + CQ_SIZE):
        tail = 0
        store64(cq + CQ_PHASE, phase ^ 1)
        count(cq + CQ_LAPS, 1)
    store64(cq + CQ_TAIL, tail)
    return store64(cq + CQ_UNTOLD, load64(cq + CQ_UNTOLD) + 1)


@jitable
def tell(control: int, plane: int, cq: int, now: int) -> int:
    """Interrupt the host if it has to know of completions; in how many nanoseconds to ask again.

    `NEVER` if there is nothing to ask until more is posted. ``now`` is the monotonic clock.
    """
    fd = load64(cq + CQ_FD)
    if fd == NO_INTERRUPT:
        store64(cq + CQ_UNTOLD, 0)
        return NEVER
    head = look_at_head(plane, cq)
    if head == load64(cq + CQ_TAIL):
        store64(cq + CQ_UNTOLD, 0)
        store64(cq + CQ_SINCE, 0)
        store64(cq + CQ_TOLD_HEAD, -1)
        return NEVER
    untold = load64(cq + CQ_UNTOLD)
    if untold == 0:
        return NEVER
    if load64(cq + CQ_SINCE) == 0:
        store64(cq + CQ_SINCE, now)
    if load64(cq + CQ_TOLD_HEAD) == head:
        left = load64(cq + CQ_TOLD_AT) + load64(plane + PL_GRACE) - now
        if left > 0:
            return left
    if untold < load64(cq + CQ_THRESHOLD):
        left = load64(cq + CQ_SINCE) + load64(cq + CQ_DELAY) - now
        if left > 0:
            return left
    count(plane + PL_INTERRUPTS, 1)
    count(cq + CQ_INTERRUPTS, 1)
    count(plane + PL_WITHHELD, untold - 1)
    store64(cq + CQ_UNTOLD, 0)
    store64(cq + CQ_SINCE, 0)
    store64(cq + CQ_TOLD_HEAD, head)
    store64(cq + CQ_TOLD_AT, now)
    if fd == BY_PYTHON:
        store64(cq + CQ_SIGNAL, 1)
        notify(control)
    else:
        write_eventfd(fd, plane + PL_SCRATCH)
    return NEVER
