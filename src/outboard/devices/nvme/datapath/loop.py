"""The loop of a poller: look at the doorbells, serve the queues in turn, tell the host; spin, then sleep.

`serve` is what a `outboard.native.poller.Poller` runs. It never waits for storage, nor for Python. With
nothing to do it spins for a while; then it naps, longer each time, while the host stays silent; then it has
the host ring and sleeps until a doorbell message, a completion from below or from Python, or the end of a
held-back interrupt. Where nobody rings (the host has mapped the doorbells) it goes on napping. The spin
adapts: it is as long as may be while commands come often, and shrinks when they come after long naps.
"""

from outboard.devices.nvme.datapath.arbitration import serve_by_weight
from outboard.devices.nvme.datapath.completion import NEVER, tell
from outboard.devices.nvme.datapath.doorbells import (
    arm_doorbells,
    completion_queue_of,
    look_at_tail,
    queue_of,
    rung,
    silence_doorbells,
    watch,
)
from outboard.devices.nvme.datapath.execute import divert_failed, serve_queue, take_back
from outboard.devices.nvme.datapath.files import reap, release
from outboard.devices.nvme.datapath.held import due_in, serve_held
from outboard.devices.nvme.datapath.records import (
    BATCH,
    CQ_FD,
    CQ_UNTOLD,
    NO_INTERRUPT,
    PL_BACK,
    PL_BAD,
    PL_BURST,
    PL_CQ_COUNT,
    PL_CURSOR,
    PL_DOZE,
    PL_IN_FLIGHT,
    PL_INLINE,
    PL_LANE_COUNT,
    PL_LONGEST_NAP,
    PL_NAP,
    PL_NAPS,
    PL_POLLED,
    PL_QUEUE_COUNT,
    PL_SPIN,
    PL_URING,
    PL_URING_FD,
    PL_WATCH_COUNT,
    PL_WEIGHTED,
    SLOT_ENTRY,
    SLOT_SQ,
)
from outboard.native.jit import entry, jitable
from outboard.native.libc import SYS_PRCTL, monotonic_ns, sched_yield, system_call
from outboard.native.memory import fence, load64, pause, store64
from outboard.native.poller import arm, disarm, notify, sleep, stopping
from outboard.native.ring import next_given
from outboard.native.uring import uring_submit, uring_unsubmitted

IDLE, MORE = 0, -1
"""What `serve` says when it returns to Python's own thread; or in how many nanoseconds to come again."""

LOOKS = 64
"""Looks at the doorbells between two looks at the clock."""

SHORTEST_SPIN = 1_000
PR_SET_TIMERSLACK = 29
POLITE = 5_000
"""Nanoseconds of spinning after which others on this processor are let through."""


@entry
def serve(control: int, plane: int) -> int:
    """Serve the queues of ``plane`` until told to stop; inline, until there is nothing to do now."""
    longest_spin = load64(plane + PL_SPIN)
    spin = longest_spin
    first_nap = load64(plane + PL_NAP)
    longest_nap = load64(plane + PL_LONGEST_NAP)
    nap = first_nap
    looks = 0
    idle_since = 0
    inline = load64(plane + PL_INLINE)
    if inline == 0:
        # By default the kernel lets a sleep last 50 microseconds longer than asked for.
        system_call(SYS_PRCTL, PR_SET_TIMERSLACK, 1, 0, 0, 0, 0)
    silence_doorbells(plane)
    while stopping(control) == 0:
        worked = serve_once(control, plane)
        if inline != 0:
            wait = settle(control, plane, monotonic_ns())
            if worked != 0:
                return MORE
            arm_doorbells(plane)
            fence()
            # What the host did before it saw that it has to ring, it does not ring for.
            if rung(plane) != 0 or unsubmitted(plane) > 0:
                return MORE
            return wait if wait != NEVER else IDLE
        if worked != 0:
            if nap != first_nap:
                spin = longest_spin if nap < longest_nap else max(spin // 2, SHORTEST_SPIN)
                nap = first_nap
            looks = 0
            idle_since = 0
            continue
        looks += 1
        if looks < LOOKS and nap == first_nap:
            pause()
            continue
        looks = 0
        now = monotonic_ns()
        if idle_since == 0:
            idle_since = now
        wait = settle(control, plane, now)
        if now - idle_since < spin and nap == first_nap:
            if now - idle_since > POLITE:
                sched_yield()
            continue
        napping = load64(plane + PL_POLLED) != 0 or now - idle_since < load64(plane + PL_DOZE)
        if napping or unsubmitted(plane) > 0:
            wait = nap if wait == NEVER else min(wait, nap)
        rest(control, plane, wait, 0 if napping else 1)
        nap = min(nap + nap // 2 + 1, longest_nap) if napping else longest_nap
    return finish(control, plane)


@jitable
def serve_once(control: int, plane: int) -> int:
    """Look at everything once; whether there was anything to do."""
    worked = 0
    if next_given(load64(plane + PL_BACK)) != 0:
        worked = take_back(plane)
    if load64(plane + PL_IN_FLIGHT) != 0:
        worked += collect(control, plane)
    if load64(plane + PL_LANE_COUNT) != 0:
        worked += serve_held(control, plane)
    if load64(plane + PL_WEIGHTED) != 0:
        worked += serve_by_weight(control, plane)
    else:
        # Round robin. In a function of its own it would cost a hundredth of a command at depth 1.
        queues = load64(plane + PL_QUEUE_COUNT)
        limit = BATCH if queues == 1 else load64(plane + PL_BURST)
        first = load64(plane + PL_CURSOR)
        for number in range(queues):
            index = first + number
            if index >= queues:
                index -= queues
            sq = queue_of(plane, index)
            if look_at_tail(plane, sq) != 0 and serve_queue(control, plane, sq, limit) > 0:
                worked += 1
                store64(plane + PL_CURSOR, index + 1 if index + 1 < queues else 0)
    if unsubmitted(plane) > 0:
        uring_submit(load64(plane + PL_URING))
    if load64(plane + PL_WATCH_COUNT) > 0 and watch(plane) != 0:
        worked += 1
        notify(control)
    if load64(plane + PL_BAD) == 1:
        store64(plane + PL_BAD, 2)
        notify(control)
    if worked > 0:
        tell_all(control, plane)
    return worked


@jitable
def unsubmitted(plane: int) -> int:
    """How many commands the kernel has not been given, or has not taken for want of memory."""
    return uring_unsubmitted(load64(plane + PL_URING)) if load64(plane + PL_URING) != 0 else 0


@jitable
def collect(control: int, plane: int) -> int:
    """Complete what the kernel is done with; how many commands that were."""
    collected = 0
    slot = reap(plane)
    while slot != 0:
        if slot != 1:
            divert_failed(control, plane, load64(slot + SLOT_SQ), slot + SLOT_ENTRY)
            release(plane, slot)
        collected += 1
        slot = reap(plane)
    return collected


@jitable
def tell_all(control: int, plane: int) -> int:
    """Interrupt for what was posted; the clock is read only if that may be."""
    for number in range(load64(plane + PL_CQ_COUNT)):
        cq = completion_queue_of(plane, number)
        if load64(cq + CQ_UNTOLD) != 0 and load64(cq + CQ_FD) != NO_INTERRUPT:
            return settle(control, plane, monotonic_ns())
    return NEVER


@jitable
def settle(control: int, plane: int, now: int) -> int:
    """Tell the host what it has to know; in how many nanoseconds there is something to decide again."""
    soonest = due_in(plane, now) if load64(plane + PL_LANE_COUNT) != 0 else NEVER
    for number in range(load64(plane + PL_CQ_COUNT)):
        cq = completion_queue_of(plane, number)
        if load64(cq + CQ_UNTOLD) != 0:
            wait = tell(control, plane, cq, now)
            if wait != NEVER and (soonest == NEVER or wait < soonest):
                soonest = wait
    return soonest


@jitable
def rest(control: int, plane: int, wait: int, ringing: int) -> int:
    """Sleep, unless there is something to do after all; ``ringing``: have the host ring from now on."""
    if ringing != 0:
        arm_doorbells(plane)
    arm(control)
    # From here on the host rings and Python wakes; what came before has to be looked for once more.
    if rung(plane) != 0 or next_given(load64(plane + PL_BACK)) != 0 or stopping(control) != 0:
        disarm(control)
    else:
        if ringing == 0:
            store64(plane + PL_NAPS, load64(plane + PL_NAPS) + 1)
        sleep(control, load64(plane + PL_URING_FD) if load64(plane + PL_IN_FLIGHT) != 0 else -1, wait)
    if ringing != 0:
        silence_doorbells(plane)
    return 0


@jitable
def finish(control: int, plane: int) -> int:
    """Before the loop is left: nothing is in flight below, and nobody waits for an interrupt held back."""
    while load64(plane + PL_IN_FLIGHT) != 0:
        if unsubmitted(plane) > 0:
            uring_submit(load64(plane + PL_URING))
        if collect(control, plane) == 0:
            sched_yield()
    arm_doorbells(plane)
    settle(control, plane, monotonic_ns())
    return IDLE
