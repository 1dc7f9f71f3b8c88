"""Weighted round robin with an urgent class, where the host has chosen that (NVMe Base 2.0, 3.4.4.2).

Urgent queues go before all others, for as long as they have commands. The classes below take turns, in which
one has as many commands as its weight says; within a class the queues take turns, of a burst at most.
"""

from outboard.devices.nvme.datapath.doorbells import look_at_tail, queue_of
from outboard.devices.nvme.datapath.execute import serve_queue
from outboard.devices.nvme.datapath.records import (
    CLASS_CURSOR,
    CLASS_END,
    CLASS_FIRST,
    CLASS_RECORD,
    CLASS_WEIGHT,
    HIGH,
    LOW,
    PL_BURST,
    PL_CLASS,
    PL_CLASSES,
    URGENT,
)
from outboard.native.jit import jitable
from outboard.native.memory import load64, store64


@jitable
def serve_by_weight(control: int, plane: int) -> int:
    """Serve the urgent queues or, if they have nothing, one class its turn; how many commands were taken."""
    taken = serve_class(control, plane, URGENT)
    priority = load64(plane + PL_CLASS)
    for _ in range(HIGH, LOW + 1):
        if taken > 0:
            break
        # No class has had its turn yet: the first one is the high one's.
        priority = priority + 1 if HIGH <= priority < LOW else HIGH
        taken = serve_class(control, plane, priority)
        store64(plane + PL_CLASS, priority)
    return taken


@jitable
def serve_class(control: int, plane: int, priority: int) -> int:
    """Serve the queues of a class in turn, until they have nothing, or have had its weight in commands."""
    record = plane + PL_CLASSES + priority * CLASS_RECORD
    first = load64(record + CLASS_FIRST)
    queues = load64(record + CLASS_END) - first
    left = load64(record + CLASS_WEIGHT)
    cursor = load64(record + CLASS_CURSOR)
    total = 0
    idle = 0
    while left > 0 and idle < queues:
        sq = queue_of(plane, first + cursor)
        cursor = cursor + 1 if cursor + 1 < queues else 0
        taken = 0
        if look_at_tail(plane, sq) != 0:
            taken = serve_queue(control, plane, sq, min(left, load64(plane + PL_BURST)))
        idle = 0 if taken > 0 else idle + 1
        left -= taken
        total += taken
    store64(record + CLASS_CURSOR, cursor)
    return total
