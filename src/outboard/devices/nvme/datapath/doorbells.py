"""Where the host says what it queued and consumed, and how it is told to ring or not (NVMe Base 2.0, B.5).

A doorbell is a word the host writes: in the BAR, by a message that Python puts there or by a mapping of
its own; or, with Doorbell Buffer Config, in a buffer in guest memory, and then an event index beside it
says at which value it has to ring in the BAR as well. While the loop is awake it keeps the event index
where the host does not get to, so the host is silent; before it sleeps it puts it where the host is.
"""

from outboard.devices.nvme.datapath.completion import free, look_at_head
from outboard.devices.nvme.datapath.records import (
    BY_PYTHON,
    CQ_EVENT,
    CQ_EVENT_AT,
    CQ_FD,
    CQ_HEAD,
    CQ_SIZE,
    CQ_STARVED,
    CQ_UNTOLD,
    PL_BAD,
    PL_CQ_COUNT,
    PL_CQS,
    PL_QUEUE_COUNT,
    PL_QUEUES,
    PL_WATCH_COUNT,
    PL_WATCHED,
    SQ_BAD,
    SQ_CQ,
    SQ_EVENT,
    SQ_EVENT_AT,
    SQ_HEAD,
    SQ_SIZE,
    SQ_TAIL,
    SQ_TAIL_AT,
    WATCH_AT,
    WATCH_RECORD,
    WATCH_SEEN,
)
from outboard.native.jit import jitable
from outboard.native.memory import load32, load64, load_acquire32, store32, store64

ADDRESS = 8
"""The size of an entry of the lists of records."""

AWAY_OF, AWAY = 4, 3
"""The event index is moved on when the host is less than three quarters of the ring before it."""


@jitable
def queue_of(plane: int, number: int) -> int:
    """The record of the poller's submission queue ``number``."""
    return load64(load64(plane + PL_QUEUES) + number * ADDRESS)


@jitable
def completion_queue_of(plane: int, number: int) -> int:
    """The record of the poller's completion queue ``number``."""
    return load64(load64(plane + PL_CQS) + number * ADDRESS)


@jitable
def look_at_tail(plane: int, sq: int) -> int:
    """Take over the tail the host gave, if it can be; whether there are commands."""
    given = load_acquire32(load64(sq + SQ_TAIL_AT))
    if given != load64(sq + SQ_TAIL):
        if given >= load64(sq + SQ_SIZE):
            if load64(sq + SQ_BAD) != given:
                store64(sq + SQ_BAD, given)
                store64(plane + PL_BAD, 1)
        else:
            store64(sq + SQ_TAIL, given)
            store64(sq + SQ_BAD, -1)
            if silence_tail(sq) != 0:
                # The head is in the same cache line; unwatched, it would ring once around the ring.
                silence_head(plane, load64(sq + SQ_CQ))
    return 1 if load64(sq + SQ_TAIL) != load64(sq + SQ_HEAD) else 0


@jitable
def silence(event: int, at: int, index: int, size: int) -> int:
    """Keep the event index behind ``index``, which the host is at, so that it need not ring.

    The host rings when it passes the event index; just behind it, that is a whole ring away. It is
    moved seldom: the host reads the line it is in with every command.
    """
    ahead = load64(event) - index
    if ahead < 0:
        ahead += size
    if load64(event) < 0 or ahead * AWAY_OF < size * AWAY:
        behind = (size if index == 0 else index) - 1
        store64(event, behind)
        store32(at, behind)
    return 0


@jitable
def silence_tail(sq: int) -> int:
    """Have the host not ring for submission queue ``sq``; whether there is an event index."""
    at = load64(sq + SQ_EVENT_AT)
    if at == 0:
        return 0
    silence(sq + SQ_EVENT, at, load64(sq + SQ_TAIL), load64(sq + SQ_SIZE))
    return 1


@jitable
def silence_head(plane: int, cq: int) -> int:
    """As `silence`, for the completion queue ``cq``."""
    at = load64(cq + CQ_EVENT_AT)
    if at != 0:
        silence(cq + CQ_EVENT, at, look_at_head(plane, cq), load64(cq + CQ_SIZE))
    return 0


@jitable
def arm_doorbells(plane: int) -> int:
    """Have the host ring for its next command, and for room or notice where those are waited for."""
    for number in range(load64(plane + PL_QUEUE_COUNT)):
        sq = queue_of(plane, number)
        at = load64(sq + SQ_EVENT_AT)
        if at != 0:
            store64(sq + SQ_EVENT, load64(sq + SQ_TAIL))
            store32(at, load64(sq + SQ_TAIL))
    for number in range(load64(plane + PL_CQ_COUNT)):
        cq = completion_queue_of(plane, number)
        at = load64(cq + CQ_EVENT_AT)
        if at != 0 and awaits_head(cq):
            store64(cq + CQ_EVENT, load64(cq + CQ_HEAD))
            store32(at, load64(cq + CQ_HEAD))
    return 0


@jitable
def awaits_head(cq: int) -> bool:
    """Whether it matters that the host consumes: for room, an interrupt held back, or Python's line."""
    return load64(cq + CQ_STARVED) != 0 or load64(cq + CQ_UNTOLD) != 0 or load64(cq + CQ_FD) == BY_PYTHON


@jitable
def silence_doorbells(plane: int) -> int:
    """Have the host ring no more: the loop is awake."""
    for number in range(load64(plane + PL_QUEUE_COUNT)):
        silence_tail(queue_of(plane, number))
    for number in range(load64(plane + PL_CQ_COUNT)):
        silence_head(plane, completion_queue_of(plane, number))
    return 0


@jitable
def rung(plane: int) -> int:
    """Whether the host has done anything that nothing was done about yet."""
    for number in range(load64(plane + PL_QUEUE_COUNT)):
        sq = queue_of(plane, number)
        given = load_acquire32(load64(sq + SQ_TAIL_AT))
        if given != load64(sq + SQ_TAIL) and given != load64(sq + SQ_BAD):
            return 1
    for number in range(load64(plane + PL_CQ_COUNT)):
        cq = completion_queue_of(plane, number)
        if awaits_head(cq):
            head = load64(cq + CQ_HEAD)
            if look_at_head(plane, cq) != head:
                return 1
            if load64(cq + CQ_STARVED) != 0 and free(cq) > 0:
                # Room was seen when interrupts were thought of, and the commands that wait for it were not.
                store64(cq + CQ_STARVED, 0)
                return 1
    return 0


@jitable
def watch(plane: int) -> int:
    """Whether a doorbell that Python serves was written since the last time."""
    changed = 0
    for number in range(load64(plane + PL_WATCH_COUNT)):
        record = load64(plane + PL_WATCHED) + number * WATCH_RECORD
        value = load32(load64(record + WATCH_AT))
        if value != load64(record + WATCH_SEEN):
            store64(record + WATCH_SEEN, value)
            changed = 1
    return changed
