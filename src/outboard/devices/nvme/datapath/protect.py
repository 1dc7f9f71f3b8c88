"""Protection information: judged, and made (NVM Command Set 1.0, 5.2 and 5.3).

A tuple of a guard (a checksum of the block, and of the metadata in front of the tuple), an application tag
and a reference tag; all big endian, of 8 bytes, or of 16 with a guard of 64 bits. Both lanes come here, with
blocks and metadata in memory of our own: nobody changes them between the look and the use.

``space`` is the record of a namespace, ``operation`` that of a command: NS and OP in `records`.
"""

from outboard.devices.nvme.datapath.records import (
    NS_METADATA,
    NS_SHIFT,
    NS_TUPLE_AT,
    NS_TUPLE_SIZE,
    NS_TYPE,
    OP_CHECKS,
    OP_REFERENCE,
    OP_TAGS,
)
from outboard.native.crc import crc16, crc64
from outboard.native.jit import jitable
from outboard.native.memory import load16, load32, load64, store16, store32, store64

CHECK_REFERENCE, CHECK_APPLICATION, CHECK_GUARD, ACTION = 1, 2, 4, 8
"""The bits of PRINFO; ACTION: protection information ends here, or begins here."""

BAD_GUARD, BAD_APPLICATION_TAG, BAD_REFERENCE_TAG = 1, 2, 3
"""What is wrong with a block (0: nothing)."""

NARROW, WIDE = 8, 16
"""Sizes of a tuple."""

WORD = 8
NO_CHECKS, NO_REFERENCE, NO_WIDE_REFERENCE = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFF
"""Tags that say that nothing is to be checked."""


@jitable
def verify(space: int, operation: int, data: int, metadata: int, blocks: int) -> int:
    """0, or ``number << 2 | what is wrong`` with the first block that does not pass."""
    size = 1 << load64(space + NS_SHIFT)
    more = load64(space + NS_METADATA)
    for number in range(blocks):
        wrong = judge(space, operation, number, data + number * size, metadata + number * more)
        if wrong != 0:
            return number << 2 | wrong
    return 0


@jitable
def judge(space: int, operation: int, number: int, data: int, metadata: int) -> int:
    """What is wrong with block ``number`` of the command."""
    at = metadata + load64(space + NS_TUPLE_AT)
    wide = load64(space + NS_TUPLE_SIZE) == WIDE
    application = swap16(load16(at + 8 if wide else at + 2))
    reference = swap16(load16(at + 10)) << 32 | swap32(load32(at + 12)) if wide else swap32(load32(at + 4))
    if application == NO_CHECKS and (
        load64(space + NS_TYPE) != 3 or reference == (NO_WIDE_REFERENCE if wide else NO_REFERENCE)
    ):
        return 0
    checks = load64(operation + OP_CHECKS)
    if checks & CHECK_GUARD != 0:
        guard = guard_of(space, data, metadata)
        if wide:
            different = (guard >> 32 & 0xFFFFFFFF) ^ swap32(load32(at)) | (
                (guard & 0xFFFFFFFF) ^ swap32(load32(at + 4))
            )
        else:
            different = guard ^ swap16(load16(at))
        if different != 0:
            return BAD_GUARD
    tags = load64(operation + OP_TAGS)
    if checks & CHECK_APPLICATION != 0 and (application ^ tags) & (tags >> 16) & 0xFFFF != 0:
        return BAD_APPLICATION_TAG
    if checks & CHECK_REFERENCE != 0 and reference != reference_tag(space, operation, number):
        return BAD_REFERENCE_TAG
    return 0


@jitable
def generate(space: int, operation: int, data: int, metadata: int, blocks: int) -> int:
    """Make the protection information of blocks; the rest of their metadata is there."""
    size = 1 << load64(space + NS_SHIFT)
    more = load64(space + NS_METADATA)
    application = swap16(load64(operation + OP_TAGS) & 0xFFFF)
    for number in range(blocks):
        at = metadata + load64(space + NS_TUPLE_AT)
        guard = guard_of(space, data, metadata)
        reference = reference_tag(space, operation, number)
        if load64(space + NS_TUPLE_SIZE) == WIDE:
            store32(at, swap32(guard >> 32 & 0xFFFFFFFF))
            store32(at + 4, swap32(guard & 0xFFFFFFFF))
            store16(at + 8, application)
            store16(at + 10, swap16(reference >> 32))
            store32(at + 12, swap32(reference & 0xFFFFFFFF))
        else:
            store16(at, swap16(guard))
            store16(at + 2, application)
            store32(at + 4, swap32(reference))
        data += size
        metadata += more
    return 0


@jitable
def reference_tag(space: int, operation: int, number: int) -> int:
    """The reference tag that block ``number`` of a command has to have: with type 3 all have the same."""
    reference = load64(operation + OP_REFERENCE)
    if load64(space + NS_TYPE) != 3:
        reference += number
    return reference & (NO_WIDE_REFERENCE if load64(space + NS_TUPLE_SIZE) == WIDE else NO_REFERENCE)


@jitable
def guard_of(space: int, data: int, metadata: int) -> int:
    """The guard of a block, and of what of its metadata is in front of the tuple."""
    size = 1 << load64(space + NS_SHIFT)
    before = load64(space + NS_TUPLE_AT)
    if load64(space + NS_TUPLE_SIZE) == WIDE:
        guard = crc64(0, data, size)
        return crc64(guard, metadata, before) if before != 0 else guard
    guard = crc16(0, data, size)
    return crc16(guard, metadata, before) if before != 0 else guard


@jitable
def invert(space: int, to: int, source: int, blocks: int) -> int:
    """Copy metadata of blocks from the host's form to the one that is stored, or back."""
    more = load64(space + NS_METADATA)
    start = load64(space + NS_TUPLE_AT)
    end = start + load64(space + NS_TUPLE_SIZE)
    for number in range(blocks):
        for at in range(0, more, WORD):
            value = load64(source + number * more + at)
            if start <= at < end:
                value ^= -1
            store64(to + number * more + at, value)
    return 0


@jitable
def swap16(value: int) -> int:
    """Two bytes in the opposite order."""
    return (value >> 8 | value << 8) & 0xFFFF


@jitable
def swap32(value: int) -> int:
    """Four bytes in the opposite order."""
    return swap16(value & 0xFFFF) << 16 | swap16(value >> 16)
