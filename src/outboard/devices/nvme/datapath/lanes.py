"""What a poller holds of limited namespaces, as Python sees it: `held` is what the loop does with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from outboard.devices.nvme.admission import EVERYTHING
from outboard.devices.nvme.datapath.limits import Limits, refund
from outboard.devices.nvme.datapath.records import (
    HELD,
    LANE_DUE,
    LANE_LIMITS,
    LANE_RECORD,
    LANE_RING,
    LANE_SPACE,
    LIMITED,
    NS_READS_HELD,
    NS_SHIFT,
    NS_SLOW,
    NS_WRITES_HELD,
    PL_LANE_COUNT,
    PL_LANES,
    SLOW_ALWAYS,
    SLOW_ENTRY,
    SLOW_RECORD,
)
from outboard.native.ring import Ring, next_given
from outboard.native.words import Block, Record

Message = tuple[int, bytes]
"""The record of a queue, and the 64 bytes of a command of it."""


@dataclass(slots=True)
class _Lane:
    """Commands of one namespace and direction; ``changes`` says which of the limits a ticket was taken of."""

    record: Record
    ring: Ring
    limits: Limits
    changes: int


class Lanes:
    """The lanes of one poller, to be changed only while it is paused.

    ``plane`` is its record, ``space`` gives that of a namespace, of which there are ``most``.
    """

    def __init__(self, plane: Block, space: Callable[[int], Record], most: int) -> None:
        self._plane, self._space = plane, space
        self._records = Block(2 * most * LANE_RECORD)
        self._lanes: dict[tuple[int, int], _Lane] = {}
        plane[PL_LANES] = self._records.address

    def arrange(self, limits: Mapping[int, Limits]) -> list[Message]:
        """Hold what these namespaces are to do; what was held of others is given back."""
        left: list[Message] = []
        for nsid, field in list(self._lanes):
            lane = self._lanes[nsid, field]
            if limits.get(nsid) is not lane.limits:
                left += _sift(lane, self._space(nsid)[NS_SHIFT], lambda queue, entry: True)
                del self._lanes[nsid, field]
                self._space(nsid)[NS_SLOW] = 0
        tickets = {key: lane.record[LANE_DUE] for key, lane in self._lanes.items()}
        for nsid, each in limits.items():
            for field in (NS_READS_HELD, NS_WRITES_HELD):
                if (nsid, field) not in self._lanes:
                    ring = Ring(HELD, SLOW_RECORD)
                    self._lanes[nsid, field] = _Lane(Record(self._records, 0), ring, each, each.changes)
        for number, ((nsid, field), lane) in enumerate(self._lanes.items()):
            current = lane.changes == lane.limits.changes
            lane.record, lane.changes = Record(self._records, number * LANE_RECORD), lane.limits.changes
            lane.record[LANE_RING], lane.record[LANE_LIMITS] = lane.ring.address, lane.limits.address
            lane.record[LANE_SPACE] = self._space(nsid).address
            lane.record[LANE_DUE] = tickets.get((nsid, field), 0) if current else 0
            self._space(nsid)[field] = lane.ring.address
            slow = self._space(nsid)[NS_SLOW]
            if not slow & LIMITED:
                self._space(nsid)[NS_SLOW] = EVERYTHING | slow << SLOW_ALWAYS | LIMITED
        self._plane[PL_LANE_COUNT] = len(self._lanes)
        return left

    def take(self, wanted: Callable[[int, bytes], bool]) -> list[Message]:
        """Take out the commands that are ``wanted``, by the record of their queue, and their bytes."""
        taken: list[Message] = []
        for (nsid, _), lane in self._lanes.items():
            taken += _sift(lane, self._space(nsid)[NS_SHIFT], wanted)
        return taken


def _sift(lane: _Lane, shift: int, wanted: Callable[[int, bytes], bool]) -> list[Message]:
    """Take out of a lane what is ``wanted``, without the ticket of its first command if that goes."""
    first = next_given(lane.ring.address)
    held: list[Message] = []
    while (message := lane.ring.pop()) is not None:
        held.append((int.from_bytes(message[:SLOW_ENTRY], "little"), message[SLOW_ENTRY:]))
    taken = [message for message in held if wanted(*message)]
    if held and taken[:1] == held[:1] and lane.record[LANE_DUE]:
        if lane.changes == lane.limits.changes:
            refund(lane.limits.address, first + SLOW_ENTRY, shift)
        lane.record[LANE_DUE] = 0
    for queue, entry in held:
        if not wanted(queue, entry):
            lane.ring.push(queue.to_bytes(SLOW_ENTRY, "little") + entry)
    return taken
