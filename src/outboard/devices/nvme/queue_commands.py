"""Creating and deleting I/O queues, with the data plane paused (NVMe Base 2.0, 5.4 to 5.7)."""

from contextlib import suppress

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.queues import CompletionQueue, SubmissionQueue
from outboard.devices.nvme.spec import PAGE
from outboard.devices.nvme.state import State
from outboard.devices.nvme.status import CommandFailed, Status, status_field
from outboard.errors import DmaError

_CONTIGUOUS, _INTERRUPTS = 1 << 0, 1 << 1


def create_io_cq(state: State, command: Command) -> int:
    """Execute Create I/O Completion Queue."""
    qid, size = _check_new_queue(state, command, command.cdw10 & 0xFFFF in state.completion)
    vector = command.cdw11 >> 16
    interrupts = bool(command.cdw11 & _INTERRUPTS)
    if interrupts and vector >= state.limits.vectors:
        raise CommandFailed(
            Status.INVALID_INTERRUPT_VECTOR, f"there is no interrupt vector {vector}", location=46
        )
    state.completion[qid] = CompletionQueue(
        *state.plane.record_of_cq(qid),
        id=qid,
        address=command.prp1,
        size=size,
        vector=vector if interrupts else 0,
        interrupts=interrupts,
    )
    state.plane.clear_shadow(qid, head=True)
    state.plane.place()
    return 0


def create_io_sq(state: State, command: Command) -> int:
    """Execute Create I/O Submission Queue. Its priority counts where the host has chosen weights (CC.AMS)."""
    qid, size = _check_new_queue(state, command, command.cdw10 & 0xFFFF in state.submission)
    cqid = command.cdw11 >> 16
    if cqid == 0 or cqid > state.granted:
        raise CommandFailed(
            Status.INVALID_QUEUE_ID, f"{cqid} is no I/O completion queue's identifier", location=46
        )
    cq = state.completion.get(cqid)
    if cq is None:
        raise CommandFailed(
            Status.COMPLETION_QUEUE_INVALID, f"completion queue {cqid} was not created", location=46
        )
    cq.submitters += 1
    state.submission[qid] = SubmissionQueue(
        *state.plane.record_of_sq(qid),
        id=qid,
        address=command.prp1,
        size=size,
        cq=cq,
        priority=command.cdw11 >> 1 & 3,
    )
    state.plane.clear_shadow(qid, head=False)
    state.plane.place()
    return 0


def delete_io_sq(state: State, command: Command) -> int:
    """Execute Delete I/O Submission Queue.

    Commands it still holds, and those that wait for storage, complete as Aborted due to SQ Deletion while
    its completion queue has room; the others end with this command, as the specification has it.
    """
    qid = command.cdw10 & 0xFFFF
    sq = state.submission.get(qid) if qid else None
    if sq is None:
        raise CommandFailed(Status.INVALID_QUEUE_ID, f"there is no I/O submission queue {qid}", location=40)
    for cid in state.withdraw(sq):
        sq.cq.post(state.bus, sq, cid, status_field(Status.ABORTED_SQ_DELETION), 0)
    with suppress(DmaError):
        _abort_waiting(state, sq)
    sq.cq.submitters -= 1
    del state.submission[qid]
    state.plane.place()
    return 0


def _abort_waiting(state: State, sq: SubmissionQueue) -> None:
    sq.look()
    while sq.waiting and sq.cq.room > 0:
        (entry,) = sq.peek(state.bus, 1)
        sq.advance()
        cid = Command.decode(entry).cid
        sq.cq.post(state.bus, sq, cid, status_field(Status.ABORTED_SQ_DELETION), 0)


def delete_io_cq(state: State, command: Command) -> int:
    """Execute Delete I/O Completion Queue."""
    qid = command.cdw10 & 0xFFFF
    cq = state.completion.get(qid) if qid else None
    if cq is None:
        raise CommandFailed(Status.INVALID_QUEUE_ID, f"there is no I/O completion queue {qid}", location=40)
    if cq.submitters:
        raise CommandFailed(
            Status.INVALID_QUEUE_DELETION, f"{cq.submitters} submission queues still complete in {qid}"
        )
    del state.completion[qid]
    state.plane.place()
    return 0


def _check_new_queue(state: State, command: Command, exists: bool) -> tuple[int, int]:
    """Check what both kinds of queue have in common; return the identifier and the number of entries."""
    qid, size = command.cdw10 & 0xFFFF, (command.cdw10 >> 16) + 1
    if qid == 0 or qid > state.granted or exists:
        raise CommandFailed(
            Status.INVALID_QUEUE_ID,
            f"queue identifier {qid} is " + ("taken" if exists else f"not in 1..{state.granted}"),
            location=40,
        )
    if size < 2 or size > state.limits.queue_entries or not state.entry_sizes_set:
        raise CommandFailed(
            Status.INVALID_QUEUE_SIZE,
            f"{size} entries, of sizes {'set' if state.entry_sizes_set else 'not set'} in CC: "
            f"2 to {state.limits.queue_entries} are possible",
            location=42,
        )
    if not command.cdw11 & _CONTIGUOUS:
        raise CommandFailed(Status.INVALID_FIELD, "queues have to be contiguous (CAP.CQR)", location=44)
    if command.prp1 % PAGE:
        raise CommandFailed(
            Status.PRP_OFFSET_INVALID, f"a queue begins with a page, not at {command.prp1:#x}", location=24
        )
    return qid, size
