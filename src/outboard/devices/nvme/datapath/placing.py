"""Where queues and doorbells lie in our memory: found by address, anew whenever the host's memory changes."""

from collections.abc import Iterable

from outboard.devices.nvme.datapath.records import (
    CQ_BASE,
    CQ_EVENT,
    CQ_EVENT_AT,
    CQ_HEAD,
    CQ_HEAD_AT,
    SQ_BASE,
    SQ_EVENT,
    SQ_EVENT_AT,
    SQ_TAIL,
    SQ_TAIL_AT,
)
from outboard.devices.nvme.queues import CompletionQueue, SubmissionQueue
from outboard.devices.nvme.spec import CQE_SIZE, SQE_SIZE
from outboard.native.memory import store32
from outboard.native.translation import READ, WRITE, translate

DOORBELL = 4

Buffers = tuple[int, int] | None
"""The IOVAs of the host's doorbell buffers: tails and heads, and event indices."""


def doorbell_address(table: int, base: int, offset: int, rights: int) -> int:
    """Our address of a word of a doorbell buffer, 0 if it cannot be reached with these rights."""
    return translate(table, base + offset, DOORBELL, rights)


def place_doorbells(table: int, shadow: Buffers, cq: CompletionQueue, sqs: list[SubmissionQueue]) -> None:
    """Find where the host puts tails and heads now, and where it wants the event indices."""
    tail_fields = [
        (sq.record, 2 * sq.id, SQ_TAIL_AT, SQ_EVENT_AT, SQ_EVENT, SQ_TAIL, sq.doorbell) for sq in sqs
    ]
    head_field = (cq.record, 2 * cq.id + 1, CQ_HEAD_AT, CQ_EVENT_AT, CQ_EVENT, CQ_HEAD, cq.doorbell)
    for record, number, at, event_at, event, known, doorbell in (*tail_fields, head_field):
        where = [0, 0]
        if shadow is not None and number > 1:
            where = [
                doorbell_address(table, base, number * DOORBELL, rights)
                for base, rights in zip(shadow, (READ, WRITE), strict=True)
            ]
            if not all(where):
                # The buffer is gone for now: nothing new is seen until it is back.
                store32(doorbell, record[known])
                where = [0, 0]
        record[at], record[event_at], record[event] = where[0] or doorbell, where[1], -1


def reach(table: int, cq: CompletionQueue, sqs: list[SubmissionQueue]) -> bool:
    """Set our addresses of the rings of a group of queues; False if one has none."""
    base = translate(table, cq.address, cq.size * CQE_SIZE, WRITE) if not cq.owed else 0
    bases = [translate(table, sq.address, sq.size * SQE_SIZE, READ) for sq in sqs]
    if base == 0 or not all(bases):
        return False
    cq.record[CQ_BASE] = base
    for sq, address in zip(sqs, bases, strict=True):
        sq.record[SQ_BASE] = address
    return True


def fill_buffers(
    table: int,
    buffers: tuple[int, int],
    sqs: Iterable[SubmissionQueue],
    cqs: Iterable[CompletionQueue],
) -> bool:
    """Put the tails and heads of the I/O queues into new doorbell buffers; False if they are out of reach."""
    pages = [
        doorbell_address(table, base, 0, rights)
        for base, rights in zip(buffers, (READ | WRITE, WRITE), strict=True)
    ]
    if not all(pages):
        return False
    for sq in sqs:
        if sq.id:
            store32(pages[0] + 2 * sq.id * DOORBELL, sq.tail)
    for cq in cqs:
        if cq.id:
            store32(pages[0] + (2 * cq.id + 1) * DOORBELL, cq.head)
    return True
