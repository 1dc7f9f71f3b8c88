"""Commands of limited namespaces: held until they are due, then executed, in order (see `limits`).

Reads and writes have lanes of their own, so that one that is over its limit does not hold up the other. Only
the first command of a lane has taken a ticket: pollers and controllers that share a namespace go by turns.
"""

from outboard.devices.nvme.datapath.completion import NEVER, count, post
from outboard.devices.nvme.datapath.decode import decode
from outboard.devices.nvme.datapath.execute import carry_out, divert, read_memory, tally, write_memory
from outboard.devices.nvme.datapath.files import begin
from outboard.devices.nvme.datapath.limits import ticket
from outboard.devices.nvme.datapath.records import (
    BATCH,
    CQ_PENDING,
    DIVERT,
    LANE_DUE,
    LANE_LIMITS,
    LANE_RECORD,
    LANE_RING,
    LANE_SPACE,
    NS_SHIFT,
    OP_CID,
    OP_KIND,
    PL_BUSY,
    PL_DUE,
    PL_LANE_COUNT,
    PL_LANES,
    PL_LOOKED,
    PL_OPERATIONS,
    READ_BESIDE,
    READ_MEMORY,
    SLOW_ENTRY,
    SLOW_SQ,
    SQ_CQ,
    SQ_HEAD,
    WRITE_MEMORY,
)
from outboard.native.jit import jitable
from outboard.native.libc import monotonic_ns
from outboard.native.memory import drain_stream, load64, store64
from outboard.native.ring import next_given, take


@jitable
def serve_held(control: int, plane: int) -> int:
    """Execute what is due; how many commands."""
    now = 0
    served = 0
    for number in range(load64(plane + PL_LANE_COUNT)):
        lane = load64(plane + PL_LANES) + number * LANE_RECORD
        message = next_given(load64(lane + LANE_RING))
        limit = served + BATCH
        while message != 0 and served < limit:
            if now == 0:
                now = monotonic_ns()
                store64(plane + PL_LOOKED, now)
            if due(lane, message, now) > now or execute(control, plane, lane, message) == 0:
                break
            store64(lane + LANE_DUE, 0)
            take(load64(lane + LANE_RING))
            served += 1
            message = next_given(load64(lane + LANE_RING))
    if served > 0:
        count(plane + PL_BUSY, monotonic_ns() - now)
    return served


@jitable
def due(lane: int, message: int, now: int) -> int:
    """When the first command of a lane is due."""
    if load64(lane + LANE_DUE) == 0:
        shift = load64(load64(lane + LANE_SPACE) + NS_SHIFT)
        store64(lane + LANE_DUE, ticket(load64(lane + LANE_LIMITS), message + SLOW_ENTRY, shift, now))
    return load64(lane + LANE_DUE)


@jitable
def due_in(plane: int, now: int) -> int:
    """In how many nanoseconds a command is due; `NEVER` if nothing waits for its time.

    What was due when it was looked at waits for something else. What has become due since does not.
    """
    looked = load64(plane + PL_LOOKED)
    soonest = NEVER
    for number in range(load64(plane + PL_LANE_COUNT)):
        lane = load64(plane + PL_LANES) + number * LANE_RECORD
        first_due = load64(lane + LANE_DUE)
        if first_due > looked:
            left = max(first_due - now, 1)
            soonest = left if soonest == NEVER else min(soonest, left)
    return soonest


@jitable
def execute(control: int, plane: int, lane: int, message: int) -> int:
    """Execute one command in the place of a batch; 0 if there is no room for it below, or with Python."""
    sq = load64(message + SLOW_SQ)
    entry = message + SLOW_ENTRY
    operation = load64(plane + PL_OPERATIONS)
    store64(plane + PL_DUE, 1)
    decode(plane, sq, entry, operation, 0)
    store64(plane + PL_DUE, 0)
    kind = load64(operation + OP_KIND)
    if kind == DIVERT:
        return divert(control, plane, sq, entry)
    if kind >= READ_BESIDE:
        if carry_out(plane, operation, 0) == 0:
            return divert(control, plane, sq, entry)
        drain_stream()
    elif kind > WRITE_MEMORY:
        return begin(plane, sq, operation, entry)
    elif kind == READ_MEMORY:
        read_memory(plane, operation, 0)
    elif kind == WRITE_MEMORY:
        write_memory(plane, operation, 0)
        drain_stream()
    count(load64(sq + SQ_CQ) + CQ_PENDING, -1)
    post(sq, load64(sq + SQ_HEAD), load64(operation + OP_CID), 0, 0)
    tally(sq, operation, 1)
    return 1
