"""The bound of a queue: two loops on two processors that do nothing but exchange entries.

The driver writes commands of four words and a doorbell, the device reads them and writes completions. Nothing
is looked up, checked, counted or timed, and no data moves: what a controller needs besides is what
it is slower by. `round_trip_ns` has even less: one word there, one word back.
"""

from harness.cores import DEVICE_CORE, DRIVER_CORE, in_threads
from outboard.drivers.nvme_measure.choose import HALF, MULTIPLIER
from outboard.native.jit import entry
from outboard.native.libc import monotonic_ns
from outboard.native.memory import (
    load32,
    load64,
    load_acquire32,
    load_acquire64,
    pause,
    store32,
    store64,
    store_release32,
    store_release64,
)
from outboard.native.words import Block

DOORBELL, STOP, SUBMISSIONS, COMPLETIONS = 0, 128, 4096, 4096 + 64 * 1024
SIZE = COMPLETIONS + 16 * 1024
ENTRIES = 256
READ = 2
LOOKS = 4096
"""Turns between two looks at the clock."""


@entry
def device(shared: int) -> int:
    """Complete what comes, until STOP."""
    head = 0
    phase = 1
    while load64(shared + STOP) == 0:
        tail = load_acquire32(shared + DOORBELL)
        while head != tail:
            command = shared + SUBMISSIONS + head * 64
            identifier = load32(command) >> 16
            moved = load64(command + 24) ^ load64(command + 40) ^ load32(command + 48)
            completion = shared + COMPLETIONS + head * 16
            head += 1
            if head == ENTRIES:
                head = 0
            store64(completion, moved & 0xFFFF)
            store_release64(completion + 8, head | 1 << 16 | identifier << 32 | phase << 48)
            if head == 0:
                phase ^= 1
    return 0


@entry
def driver(shared: int, depth: int, nanoseconds: int) -> int:
    """Keep ``depth`` commands in flight for so long; how many were completed."""
    tail = 0
    head = 0
    phase = 1
    in_flight = 0
    done = 0
    random = 88172645463325252
    turns = 0
    deadline = monotonic_ns() + nanoseconds
    while True:
        if in_flight < depth:
            while in_flight < depth:
                random = (random & HALF) * MULTIPLIER + (random >> 31)
                command = shared + SUBMISSIONS + tail * 64
                store64(command, READ | tail << 16)
                store64(command + 24, tail << 12)
                store64(command + 40, random & 0xFFFFFF)
                store32(command + 48, 7)
                tail += 1
                if tail == ENTRIES:
                    tail = 0
                in_flight += 1
            store_release32(shared + DOORBELL, tail)
        word = load_acquire64(shared + COMPLETIONS + head * 16 + 8)
        while (word >> 48) & 1 == phase and in_flight > 0:
            head += 1
            if head == ENTRIES:
                head = 0
                phase ^= 1
            in_flight -= 1
            done += 1
            word = load_acquire64(shared + COMPLETIONS + head * 16 + 8)
        turns += 1
        if turns == LOOKS:
            turns = 0
            if monotonic_ns() >= deadline:
                store64(shared + STOP, 1)
                return done


@entry
def answer(shared: int) -> int:
    """Send back every number that comes, until STOP."""
    while load64(shared + STOP) == 0:
        store_release32(shared + COMPLETIONS, load_acquire32(shared + DOORBELL))
    return 0


@entry
def ask(shared: int, nanoseconds: int) -> int:
    """Send numbers, each when the last has come back, for so long; how many came."""
    deadline = monotonic_ns() + nanoseconds
    done = 0
    while done & 1023 or monotonic_ns() < deadline:
        done += 1
        store_release32(shared + DOORBELL, done & 0x7FFFFFFF)
        waited = 0
        while load_acquire32(shared + COMPLETIONS) != done & 0x7FFFFFFF:
            waited += 1
            # The other one may share this processor.
            if waited & 0xFFFF == 0:
                pause()
    store64(shared + STOP, 1)
    return done


def ring_iops(depth: int, seconds: float) -> float:
    """Commands a second through a bare ring."""
    shared = Block(SIZE)
    near, far = driver.native, device.native
    _, done = in_threads(
        (DEVICE_CORE, lambda: far(shared.address)),
        (DRIVER_CORE, lambda: near(shared.address, depth, int(seconds * 1e9))),
    )
    return done / seconds


def round_trip_ns(seconds: float) -> float:
    """Nanoseconds for a word to the other processor and one back."""
    shared = Block(SIZE)
    near, far = ask.native, answer.native
    _, done = in_threads(
        (DEVICE_CORE, lambda: far(shared.address)),
        (DRIVER_CORE, lambda: near(shared.address, int(seconds * 1e9))),
    )
    return seconds * 1e9 / done
