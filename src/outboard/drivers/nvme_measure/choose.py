"""Which command comes next, and, when verifying, what it writes and whether what it reads is right.

Addresses are counted in chunks: the blocks that one command moves. When verifying, every slot has chunks
of its own, those whose number leaves its index as remainder, so that no two commands in flight meet. A
chunk's data follows from its first block and from how often it was written.

No sum or product here exceeds 63 bits: a compiled integer must not overflow, and Python's does not.
"""

from outboard.drivers.nvme_measure.layout import (
    BLOCKS,
    BUFFER,
    CHUNK_SIZE,
    CHUNKS,
    COMPARED,
    CORRUPT,
    CORRUPT_EXPECTED,
    CORRUPT_FOUND,
    CORRUPT_LBA,
    CORRUPT_WORD,
    GENERATIONS,
    INDEX,
    IS_RANDOM,
    LBA,
    NEXT,
    OPCODE,
    RANDOM,
    READ,
    READ_SHARE,
    SCAN,
    SLOT_COUNT,
    VERIFY,
    WRITE,
)
from outboard.native.jit import jitable
from outboard.native.memory import fill, load32, load64, store32, store64

HALF, WHOLE = (1 << 31) - 1, (1 << 62) - 1
MULTIPLIER = 2147480310
"""A generator that multiplies with carry, in two halves of 31 bits; its period is 2**61."""

SEED_LBA, SEED_HIGH, SEED_GENERATION = 0x1E37_79B9, 0x3F58_476D, 0x54D0_49BB
SEED_WORD = 0x1331_11EB_94D0_49BB
UNTOUCHED = 0xA5
"""What a buffer is filled with before a read that is compared: a server may claim to have read."""

NOTHING_LEFT = 0


@jitable
def choose(run: int, queue: int, slot: int) -> int:
    """Put opcode and first block of the next command into ``slot``; 0 if there is none left."""
    random = load64(run + RANDOM)
    random = (random & HALF) * MULTIPLIER + (random >> 31)
    store64(run + RANDOM, random)
    opcode = READ if (random >> 40) & 0xFFFF < load64(run + READ_SHARE) else WRITE
    if load64(run + VERIFY):
        return choose_own(run, queue, slot, random, opcode)
    if load64(run + IS_RANDOM):
        chunk = (random & HALF) * load64(run + CHUNKS) >> 31
    else:
        chunk = next_in_order(queue, load64(run + CHUNKS))
    store64(slot + OPCODE, opcode)
    store64(slot + LBA, chunk * load64(run + BLOCKS))
    return 1


@jitable
def next_in_order(queue: int, limit: int) -> int:
    """Count the queue's own numbers up, and begin anew at ``limit``."""
    number = load64(queue + NEXT)
    store64(queue + NEXT, 0 if number + 1 >= limit else number + 1)
    return number


@jitable
def choose_own(run: int, queue: int, slot: int, random: int, opcode: int) -> int:
    """The same among the slot's own chunks; a write gets its data, a read a buffer of nothing."""
    slots = load64(run + SLOT_COUNT)
    own = load64(run + CHUNKS) // slots
    generations = load64(run + GENERATIONS)
    if load64(run + SCAN):
        number = scan(run, slot, own)
        if number < 0:
            return NOTHING_LEFT
        opcode = READ
    elif load64(run + IS_RANDOM):
        number = (random & HALF) * own >> 31
    else:
        number = next_in_order(queue, own)
    chunk = number * slots + load64(slot + INDEX)
    lba = chunk * load64(run + BLOCKS)
    store64(slot + OPCODE, opcode)
    store64(slot + LBA, lba)
    if opcode == WRITE:
        generation = (load32(generations + 4 * chunk) + 1) & 0x7FFF_FFFF
        store32(generations + 4 * chunk, generation)
        write_pattern(load64(slot + BUFFER), load64(run + CHUNK_SIZE), seed(lba, generation))
    else:
        fill(load64(slot + BUFFER), UNTOUCHED, load64(run + CHUNK_SIZE))
    return 1


@jitable
def scan(run: int, slot: int, own: int) -> int:
    """The next of the slot's own chunks whose data is known, -1 after the last; LBA counts them."""
    slots = load64(run + SLOT_COUNT)
    first = load64(slot + LBA) // load64(run + BLOCKS)
    number = 0 if first < 0 else first // slots + 1
    while number < own:
        if load32(load64(run + GENERATIONS) + 4 * (number * slots + load64(slot + INDEX))):
            return number
        number += 1
    return -1


@jitable
def seed(lba: int, generation: int) -> int:
    """What the data of a chunk follows from."""
    return (lba & HALF) * SEED_LBA ^ (lba >> 31) * SEED_HIGH ^ generation * SEED_GENERATION


@jitable
def write_pattern(buffer: int, size: int, start: int) -> int:
    """Fill a buffer with the data that follows from a seed."""
    value = start
    at = 0
    while at < size:
        store64(buffer + at, value)
        value = (value + SEED_WORD) & WHOLE
        at += 8
    return 0


@jitable
def settle(run: int, slot: int, failed: int) -> int:
    """A command ended while verifying: compare what it read, forget what it may have written."""
    lba = load64(slot + LBA)
    known = load64(run + GENERATIONS) + 4 * (lba // load64(run + BLOCKS))
    generation = load32(known)
    if failed:
        if load64(slot + OPCODE) == WRITE:
            store32(known, 0)
    elif load64(slot + OPCODE) == READ and generation:
        compare(run, slot, lba, generation)
    return 0


@jitable
def compare(run: int, slot: int, lba: int, generation: int) -> int:
    """Compare a buffer with what was written; count, and keep the first that differs."""
    expected = seed(lba, generation)
    buffer, size = load64(slot + BUFFER), load64(run + CHUNK_SIZE)
    at = 0
    while at < size:
        if load64(buffer + at) != expected:
            if load64(run + CORRUPT) == 0:
                store64(run + CORRUPT_WORD, at)
                store64(run + CORRUPT_LBA, lba)
                store64(run + CORRUPT_EXPECTED, expected)
                store64(run + CORRUPT_FOUND, load64(buffer + at))
            store64(run + CORRUPT, load64(run + CORRUPT) + 1)
            return 0
        expected = (expected + SEED_WORD) & WHOLE
        at += 8
    store64(run + COMPARED, load64(run + COMPARED) + 1)
    return 0
