"""Which lane a command takes, and what the fast one has to do (NVMe Base 2.0, 3.3.3.1; NVM Command Set, 3.2).

The one place where that is decided. Reads and writes that are in order, of namespaces whose storage the
loop can reach, and flushes of those, are for the fast lane. Everything else is `DIVERT`: Python finds out
what it is, and what is wrong with it. Before that, what a limited namespace is to do has to wait its turn.
"""

from outboard.devices.nvme.datapath.beside import decode_beside
from outboard.devices.nvme.datapath.limits import NEITHER, WRITES, direction
from outboard.devices.nvme.datapath.records import (
    BESIDE,
    DIVERT,
    FILE,
    FLUSH_FILE,
    FLUSH_NOTHING,
    HOLD_READ,
    HOLD_WRITE,
    LIMITED,
    MEMORY,
    NOTHING,
    NS_ADDRESS,
    NS_ALIGNMENT,
    NS_BLOCKS,
    NS_DURABLE,
    NS_KIND,
    NS_RECORD,
    NS_SHIFT,
    NS_SLOW,
    OP_CID,
    OP_DISK,
    OP_FLAGS,
    OP_KIND,
    OP_LENGTH,
    OP_SEGMENT,
    OP_SEGMENT_COUNT,
    OP_SPACE,
    PL_DUE,
    PL_MDTS,
    PL_NAMESPACE_COUNT,
    PL_NAMESPACES,
    PL_SEGMENTS,
    PL_VECTOR,
    READ_FILE,
    READ_MEMORY,
    READ_NOTHING,
    READ_SHARED,
    SEGMENT,
    SEGMENT_HOST,
    SEGMENT_SIZE,
    SHARED,
    SLOW_ALWAYS,
    SQ_DIVERT,
    WRITE_FILE,
    WRITE_MEMORY,
    WRITE_NOTHING,
    WRITE_SHARED,
)
from outboard.devices.nvme.datapath.walk import walk_prps, walk_sgl
from outboard.native.jit import jitable
from outboard.native.memory import load64, store64
from outboard.native.translation import READ, WRITE

FLUSH_OPCODE, WRITE_OPCODE, READ_OPCODE = 0, 1, 2
FUSED_OR_RESERVED = 0x3F
FORCE_UNIT_ACCESS = 1 << 30
NSID_AND_ABOVE = 32
FIRST_POINTER, SECOND_POINTER, STARTING_LBA, CONTROL = 24, 32, 40, 48
RESERVED_PSDT = 3


@jitable
def decode(plane: int, sq: int, entry: int, operation: int, segments: int) -> int:
    """Fill ``operation``; ``segments`` of the batch are used up before, how many are it then.

    Each word of the entry is loaded once: the host may change it meanwhile.
    """
    word = load64(entry)
    nsid = (word >> NSID_AND_ABOVE) & 0xFFFFFFFF
    opcode = word & 0xFF
    flags = (word >> 8) & 0xFF
    store64(operation + OP_CID, (word >> 16) & 0xFFFF)
    store64(operation + OP_KIND, DIVERT)
    if nsid == 0 or nsid > load64(plane + PL_NAMESPACE_COUNT):
        store64(operation + OP_SPACE, 0)
        return segments
    namespace = load64(plane + PL_NAMESPACES) + (nsid - 1) * NS_RECORD
    store64(operation + OP_SPACE, namespace)
    psdt = flags >> 6
    if opcode > READ_OPCODE or flags & FUSED_OR_RESERVED != 0 or psdt == RESERVED_PSDT:
        has_to_wait(plane, namespace, operation, opcode, flags)
        return segments
    kind = load64(namespace + NS_KIND)
    slow = (load64(namespace + NS_SLOW) >> opcode) & 1 != 0
    if slow and not is_due(plane, namespace, operation, opcode, flags):
        return segments
    if kind < NOTHING or load64(sq + SQ_DIVERT) != 0:
        return segments
    if opcode == FLUSH_OPCODE:
        store64(operation + OP_LENGTH, 0)
        store64(operation + OP_SEGMENT_COUNT, 0)
        store64(operation + OP_KIND, FLUSH_FILE if kind == FILE else FLUSH_NOTHING)
        return segments
    reading = opcode == READ_OPCODE
    if kind == BESIDE:
        return decode_beside(plane, namespace, entry, operation, segments, psdt, reading)
    lba = load64(entry + STARTING_LBA)
    details = load64(entry + CONTROL)
    blocks = (details & 0xFFFF) + 1
    shift = load64(namespace + NS_SHIFT)
    length = blocks << shift
    if lba < 0 or lba > load64(namespace + NS_BLOCKS) - blocks or length > load64(plane + PL_MDTS):
        return segments
    first = load64(entry + FIRST_POINTER)
    second = load64(entry + SECOND_POINTER)
    rights = WRITE if reading else READ
    if psdt == 0:
        end = walk_prps(plane, segments, first, second, length, rights)
    else:
        end = walk_sgl(plane, segments, first, second, length, rights)
    if end < 0:
        return segments
    store64(operation + OP_LENGTH, length)
    if kind == NOTHING:
        store64(operation + OP_KIND, READ_NOTHING if reading else WRITE_NOTHING)
        return segments
    store64(operation + OP_DISK, load64(namespace + NS_ADDRESS) + (lba << shift))
    store64(operation + OP_SEGMENT, segments)
    store64(operation + OP_SEGMENT_COUNT, end - segments)
    if kind == MEMORY:
        store64(operation + OP_KIND, READ_MEMORY if reading else WRITE_MEMORY)
        return end
    if kind == SHARED:
        store64(operation + OP_KIND, READ_SHARED if reading else WRITE_SHARED)
        return end
    forced = details & FORCE_UNIT_ACCESS != 0
    if (reading and forced) or not fits(plane, namespace, segments, end):
        return segments
    store64(operation + OP_FLAGS, 1 if forced or load64(namespace + NS_DURABLE) != 0 else 0)
    store64(operation + OP_KIND, READ_FILE if reading else WRITE_FILE)
    return end


@jitable
def has_to_wait(plane: int, namespace: int, operation: int, opcode: int, flags: int) -> bool:
    """Whether the command is held, if it is not due now: its namespace is limited, and it is about blocks.

    Of a fused pair both go at once, or nothing could be known to have come in between; they pay later.
    """
    limited = load64(namespace + NS_SLOW) & LIMITED != 0
    if not limited or load64(plane + PL_DUE) != 0 or flags & FUSED_OR_RESERVED != 0:
        return False
    does = direction(opcode)
    if does != NEITHER:
        store64(operation + OP_KIND, HOLD_WRITE if does == WRITES else HOLD_READ)
    return does != NEITHER


@jitable
def is_due(plane: int, namespace: int, operation: int, opcode: int, flags: int) -> bool:
    """Whether what is slow is so for a limit alone, and due now."""
    if has_to_wait(plane, namespace, operation, opcode, flags):
        return False
    slow = load64(namespace + NS_SLOW)
    return slow & LIMITED != 0 and (slow >> SLOW_ALWAYS >> opcode) & 1 == 0


@jitable
def fits(plane: int, namespace: int, first: int, end: int) -> bool:
    """Whether one system call takes these segments: not too many, no bit bucket, aligned as it wants them."""
    if end - first > load64(plane + PL_VECTOR):
        return False
    mask = load64(namespace + NS_ALIGNMENT) - 1
    table = load64(plane + PL_SEGMENTS)
    for number in range(first, end):
        host = load64(table + number * SEGMENT + SEGMENT_HOST)
        if host == 0 or (host | load64(table + number * SEGMENT + SEGMENT_SIZE)) & mask != 0:
            return False
    return True
