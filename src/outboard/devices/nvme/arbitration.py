"""Whose turn it is of the queues that Python serves (NVMe Base 2.0, 3.4.4): the admin queue is one of them.

Arbitration is round robin, in bursts. Where the host has chosen weights (CC.AMS) the admin queue goes first,
then the urgent ones, and all others take turns as long as their class's weight. What the data plane serves it
arbitrates by itself, in the same way (`outboard.devices.nvme.datapath.arbitration`).
"""

from collections.abc import Container

from outboard.devices.nvme.datapath.records import URGENT
from outboard.devices.nvme.queues import CompletionQueue, SubmissionQueue
from outboard.devices.nvme.state import State

OUTSTANDING = 256
"""Commands that may wait for storage at once; the others wait in their queues."""


def in_turn(
    state: State, last_served: int, but: Container[SubmissionQueue | CompletionQueue]
) -> list[SubmissionQueue]:
    """The queues with something to take, without some, beginning behind the one that was served last."""
    found = [sq for sq in state.submission.values() if sq.ready and not held_up(state, sq) and sq not in but]
    if state.plane.weighted:
        first = min(map(_rank, found), default=0)
        found = [sq for sq in found if _rank(sq) == first]
    return sorted(found, key=lambda sq: (sq.id <= last_served, sq.id))


def held_up(state: State, sq: SubmissionQueue) -> bool:
    """Whether nothing may be taken from a queue, because too much waits already."""
    full = len(state.outstanding) >= OUTSTANDING or state.plane.waiting.full
    return full and sq.id != 0


def burst_of(state: State, sq: SubmissionQueue) -> int:
    """Commands that may be taken from a queue before its neighbour's turn."""
    features = state.features
    if state.plane.weighted and _rank(sq) == _WEIGHTED:
        return min(features.burst, features.weights[sq.priority - 1])
    return features.burst


_ADMIN, _URGENT, _WEIGHTED = range(3)


def _rank(sq: SubmissionQueue) -> int:
    if sq.id == 0:
        return _ADMIN
    return _URGENT if sq.priority == URGENT else _WEIGHTED
