"""What the data plane counts, by name: of all, of each queue, of each namespace.

Every counter only grows, and is never set back while the controller is there. Compiled loops count in their
own records, one for each poller; what Python executes it notes here.
"""

import time
from collections.abc import Iterable, Mapping

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.datapath.limits import READ, WRITE, ZONE_APPEND
from outboard.devices.nvme.datapath.records import CQ_INTERRUPTS, CQ_LAPS, SQ_BYTES, SQ_LAPS
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.queues import SubmissionQueue

Counters = dict[str, int]

MOVED = ("reads", "writes", "bytes_read", "bytes_written")
"""Of a namespace: commands that succeeded, and their bytes."""

TIMED = ("measured", "latency_ns", "longest_ns")
"""How many of its commands were timed, how long they took together, and the longest."""


def new_counters() -> Counters:
    """The counters of a namespace, at zero."""
    return dict.fromkeys((*MOVED, *TIMED), 0)


def space_counters(nsids: Iterable[int], sources: Iterable[Mapping[int, Counters]]) -> dict[int, Counters]:
    """The counters of these namespaces, and of those that have had commands, added up."""
    total = {nsid: new_counters() for nsid in nsids}
    for source in sources:
        for nsid, counters in list(source.items()):
            if nsid in total or any(counters.values()):
                each = total.setdefault(nsid, new_counters())
                longest = max(each["longest_ns"], counters["longest_ns"])
                for name, value in counters.items():
                    each[name] += value
                each["longest_ns"] = longest
    return total


class InPython:
    """What Python did, for each of these namespaces."""

    def __init__(self, namespaces: Mapping[int, Namespace]) -> None:
        self._namespaces = namespaces
        self.spaces: dict[int, Counters] = {}
        self.busy_ns = 0
        self._busy_until = 0

    def note(self, sq: SubmissionQueue, command: Command, since: int) -> None:
        """A command that began at ``since`` (the monotonic clock, nanoseconds) has succeeded."""
        if sq.id == 0:
            return
        now = time.monotonic_ns()
        # Of commands that overlap, the time is counted once.
        self.busy_ns += now - max(since, self._busy_until)
        self._busy_until = now
        space = self._namespaces.get(command.nsid)
        if space is None:
            return
        counters = self.spaces.setdefault(command.nsid, new_counters())
        moved = ((command.cdw12 & 0xFFFF) + 1) * space.block_size
        counters["measured"] += 1
        counters["latency_ns"] += now - since
        counters["longest_ns"] = max(counters["longest_ns"], now - since)
        if command.opcode == READ:
            counters["reads"] += 1
            counters["bytes_read"] += moved
        elif command.opcode in (WRITE, ZONE_APPEND):
            counters["writes"] += 1
            counters["bytes_written"] += moved


def queue_counters(queues: Iterable[SubmissionQueue]) -> dict[int, Counters]:
    """The counters of each submission queue and its completion queue; ``depth`` is of now."""
    counted = {}
    for sq in list(queues):
        cq = sq.cq
        counted[sq.id] = {
            "commands": sq.record[SQ_LAPS] * sq.size + sq.head,
            "bytes": sq.record[SQ_BYTES],
            "depth": sq.waiting + cq.pending,
            "completions": cq.record[CQ_LAPS] * cq.size + cq.tail,
            "interrupts": cq.record[CQ_INTERRUPTS],
        }
    return counted
