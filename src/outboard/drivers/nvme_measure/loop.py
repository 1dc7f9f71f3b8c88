"""The hot loop: keeps queues of an NVMe controller full and measures every command.

Compiled where Numba is. A turn takes all completions that are there, submits as many new commands, rings
once, and only then reads the clock and does the accounts, while the device is at work. So a command's time
runs from one reading of the clock, just after its doorbell, to that after its completion was handled: at
depth 1 it is the whole cycle.

NVMe Base 2.0, 3.3.1 (queues, doorbells) and annex B.5 (shadow doorbells).
"""

from outboard.drivers.nvme_measure.choose import choose, settle
from outboard.drivers.nvme_measure.histogram import record
from outboard.drivers.nvme_measure.layout import (
    BASE,
    BATCH,
    BELL,
    BELL_KIND,
    BELL_STRIDE,
    BROKEN,
    COMPLETED,
    COMPLETION_SIZE,
    COMPLETIONS,
    DEADLINE,
    DEPTH,
    DONE,
    ENDED,
    ENTRIES,
    ERRORS,
    EVENT,
    FAILED,
    FIRST_LBA,
    FIRST_OPCODE,
    FIRST_STATUS,
    HEAD,
    HEAD_SLACK,
    HISTOGRAM,
    IDLE,
    IN_FLIGHT,
    IS_BROKEN,
    LBA,
    NOT_RUNG,
    NOW,
    OPCODE,
    OWED,
    OWED_HEAD,
    OWED_TAIL,
    PATIENCE,
    PHASE,
    POLLS,
    PRIMED,
    PRP1,
    PRP2,
    QUEUE_SIZE,
    QUEUES,
    QUEUES_END,
    RECORD_FROM,
    RING,
    RUNG_HEAD,
    RUNG_TAIL,
    SHADOW,
    SLOT_SIZE,
    SLOTS,
    STARTED,
    STOP,
    SUBMISSION_SIZE,
    SUBMISSIONS,
    TAIL,
    TRAPPED,
    VERIFY,
)
from outboard.native.jit import entry, jitable
from outboard.native.libc import monotonic_ns, sched_yield
from outboard.native.memory import (
    fence,
    load32,
    load64,
    load_acquire64,
    store64,
    store_release32,
    store_release64,
)

YIELD_AFTER = 50_000
"""Nanoseconds without a completion: perhaps the server needs this processor."""

ENTRY_PRP1, ENTRY_PRP2, ENTRY_SLBA = 24, 32, 40


@entry
def drive(run: int) -> int:
    """Keep the queues full until DEADLINE or STOP, then until they are empty.

    Returns DONE then; RING when doorbells have to be rung by message (OWED says which), IDLE when nothing
    has completed for PATIENCE, IS_BROKEN when the device completed what it was not given. After RING and
    IDLE it goes on when called again.
    """
    now = monotonic_ns()
    moved_at = now
    polls = 0
    end = load64(run + QUEUES_END)
    if load64(run + PRIMED) == 0:
        store64(run + PRIMED, 1)
        queue = load64(run + QUEUES)
        while queue < end:
            prime(run, queue)
            queue += QUEUE_SIZE
    feeding = 1 if load64(run + ENDED) == 0 else 0
    while True:
        if feeding and (now >= load64(run + DEADLINE) or load64(run + STOP)):
            store64(run + ENDED, now)
            feeding = 0
        moved, owed, in_flight = 0, 0, 0
        queue = load64(run + QUEUES)
        while queue < end:
            moved += turn(run, queue, feeding)
            owed |= load64(queue + OWED)
            in_flight += load64(queue + IN_FLIGHT)
            queue += QUEUE_SIZE
        if load64(run + BROKEN):
            return IS_BROKEN
        if owed:
            return RING
        if in_flight == 0:
            return DONE
        if moved:
            now = load64(run + NOW)
            moved_at = now
            polls = 0
            continue
        polls += 1
        if polls >= load64(run + POLLS):
            polls = 0
            now = monotonic_ns()
            if now - moved_at >= load64(run + PATIENCE):
                return IDLE
            if now - moved_at >= YIELD_AFTER:
                sched_yield()


@jitable
def prime(run: int, queue: int) -> int:
    """Submit a queue's first commands: one for each slot."""
    slot = load64(queue + SLOTS)
    end = slot + load64(queue + DEPTH) * SLOT_SIZE
    first = slot
    while slot < end:
        submit(run, queue, slot)
        slot += SLOT_SIZE
    publish(queue)
    now = monotonic_ns()
    slot = first
    while slot < end:
        if load64(slot + STARTED):
            store64(slot + STARTED, now)
        slot += SLOT_SIZE
    return 0


@jitable
def turn(run: int, queue: int, feeding: int) -> int:
    """Take all completions of a queue and, when ``feeding``, submit as many; how many there were."""
    head = load64(queue + HEAD)
    phase = load64(queue + PHASE)
    completions = load64(queue + COMPLETIONS)
    word = load_acquire64(completions + head * COMPLETION_SIZE + 8)
    if (word >> 48) & 1 != phase:
        return 0
    entries, slots, depth = load64(queue + ENTRIES), load64(queue + SLOTS), load64(queue + DEPTH)
    batch, verify = load64(run + BATCH), load64(run + VERIFY)
    count = 0
    while (word >> 48) & 1 == phase and count < depth:
        identifier = (word >> 32) & 0xFFFF
        slot = slots + identifier * SLOT_SIZE
        started = load64(slot + STARTED) if identifier < depth else 0
        if started <= NOT_RUNG:
            store64(run + BROKEN, identifier + 1)
            return count
        status = (word >> 49) & 0x7FF
        if verify:
            settle(run, slot, status)
        if status:
            fail(run, slot, status)
            started = 0
        at = batch + count * 16
        store64(at, slot)
        store64(at + 8, started)
        count += 1
        head += 1
        if head == entries:
            head = 0
            phase ^= 1
        store64(slot + STARTED, 0)
        store64(queue + IN_FLIGHT, load64(queue + IN_FLIGHT) - 1)
        if feeding:
            submit(run, queue, slot)
        word = load_acquire64(completions + head * COMPLETION_SIZE + 8)
    store64(queue + HEAD, head)
    store64(queue + PHASE, phase)
    publish(queue)
    account(run, batch, count, feeding)
    return count


@jitable
def submit(run: int, queue: int, slot: int) -> int:
    """Write the slot's next command at the tail of its queue; the doorbell is not rung."""
    if choose(run, queue, slot) == 0:
        return 0
    tail = load64(queue + TAIL)
    at = load64(queue + SUBMISSIONS) + tail * SUBMISSION_SIZE
    # The rest of an entry is the same for all commands, and there already.
    store64(at, load64(slot + BASE) | load64(slot + OPCODE))
    store64(at + ENTRY_PRP1, load64(slot + PRP1))
    store64(at + ENTRY_PRP2, load64(slot + PRP2))
    store64(at + ENTRY_SLBA, load64(slot + LBA))
    store64(slot + STARTED, NOT_RUNG)
    tail += 1
    store64(queue + TAIL, 0 if tail == load64(queue + ENTRIES) else tail)
    store64(queue + IN_FLIGHT, load64(queue + IN_FLIGHT) + 1)
    return 1


@jitable
def publish(queue: int) -> int:
    """Tell the device the queue's tail and head; what has to go by message is OWED then."""
    tail, head = load64(queue + TAIL), load64(queue + HEAD)
    old_tail, old_head = load64(queue + RUNG_TAIL), load64(queue + RUNG_HEAD)
    entries = load64(queue + ENTRIES)
    kind, bell, stride = load64(queue + BELL_KIND), load64(queue + BELL), load64(queue + BELL_STRIDE)
    owed = 0
    if kind != TRAPPED:
        if stride == 4:
            # Side by side: one store, and the line goes to the device once.
            store_release64(bell, tail | head << 32)
        else:
            store_release32(bell, tail)
            store_release32(bell + stride, head)
        if kind == SHADOW:
            # The device arms its event index and looks again; we store and look at the index.
            fence()
            event = load64(queue + EVENT)
            if is_due(load32(event), old_tail, tail):
                owed |= OWED_TAIL
            if is_due(load32(event + stride), old_head, head):
                owed |= OWED_HEAD
    else:
        if tail != old_tail:
            owed |= OWED_TAIL
        consumed = head - old_head
        if consumed < 0:
            consumed += entries
        if consumed <= load64(queue + HEAD_SLACK):
            head = old_head
        else:
            owed |= OWED_HEAD
    store64(queue + RUNG_TAIL, tail)
    store64(queue + RUNG_HEAD, head)
    store64(queue + OWED, load64(queue + OWED) | owed)
    return 0


@jitable
def is_due(event: int, old: int, new: int) -> int:
    """Whether a doorbell that went from ``old`` to ``new`` passed the event index: then it has to ring."""
    return 1 if (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF else 0


@jitable
def account(run: int, batch: int, count: int, feeding: int) -> int:
    """Read the clock; what was completed ends now, what was submitted begins now."""
    now = monotonic_ns()
    store64(run + NOW, now)
    recording = 1 if now >= load64(run + RECORD_FROM) else 0
    histogram = load64(run + HISTOGRAM)
    good = 0
    at = batch
    while at < batch + count * 16:
        slot, started = load64(at), load64(at + 8)
        if load64(slot + STARTED) == NOT_RUNG:
            store64(slot + STARTED, now)
        if started and recording:
            record(histogram, now - started)
            good += 1
        at += 16
    if feeding:
        store64(run + COMPLETED, load64(run + COMPLETED) + good)
    return 0


@jitable
def fail(run: int, slot: int, status: int) -> int:
    """Count a command that failed, and keep the first."""
    if load64(run + FAILED) == 0:
        store64(run + FIRST_STATUS, status)
        store64(run + FIRST_OPCODE, load64(slot + OPCODE))
        store64(run + FIRST_LBA, load64(slot + LBA))
    store64(run + FAILED, load64(run + FAILED) + 1)
    counter = load64(run + ERRORS) + 8 * status
    store64(counter, load64(counter) + 1)
    return 0
