"""Where a command's data is: PRPs and SGLs to runs of our own memory (NVMe Base 2.0, 4.1).

The rules are those of `outboard.devices.nvme.prp` and `outboard.devices.nvme.sgl`. Here only what is in
order gets through: for everything else, -1, and Python finds out what is wrong and says it to the host.
Lists are guest memory that changes while it is read: each word is loaded once.
"""

from outboard.devices.nvme.datapath.records import (
    PL_SEGMENT_COUNT,
    PL_SEGMENTS,
    PL_TABLE,
    SEGMENT,
    SEGMENT_HOST,
    SEGMENT_SIZE,
)
from outboard.devices.nvme.spec import PAGE
from outboard.native.jit import jitable
from outboard.native.memory import load64, store64
from outboard.native.translation import READ, WRITE, translate

OFFSET = PAGE - 1
ENTRY_SIZE = 8
DESCRIPTOR = 16
DATA_BLOCK, BIT_BUCKET, SEGMENT_LIST, LAST_SEGMENT_LIST = 0x00, 0x10, 0x20, 0x30
"""SGL identifiers: the type, with sub type 0 (an address)."""

DESCRIPTORS = 1024
"""The most of an SGL that is looked at here."""


@jitable
def walk_prps(plane: int, used: int, prp1: int, prp2: int, length: int, rights: int) -> int:
    """Append the segments of ``length`` bytes after the first ``used``; how many there are then, or -1."""
    table = load64(plane + PL_TABLE)
    if prp1 & 3 != 0:
        return -1
    size = min(PAGE - (prp1 & OFFSET), length)
    host = translate(table, prp1, size, rights)
    if host == 0 or used == load64(plane + PL_SEGMENT_COUNT):
        return -1
    segment = load64(plane + PL_SEGMENTS) + used * SEGMENT
    store64(segment + SEGMENT_HOST, host)
    store64(segment + SEGMENT_SIZE, size)
    left = length - size
    if left == 0:
        return used + 1
    if left <= PAGE:
        return _append(plane, used + 1, table, prp2, left, rights)
    return _walk_list(plane, used + 1, table, prp2, left, rights)


@jitable
def _walk_list(plane: int, used: int, table: int, address: int, left: int, rights: int) -> int:
    """Append what a PRP list, and the lists it goes on to, have for ``left`` bytes."""
    if address & (ENTRY_SIZE - 1) != 0:
        return -1
    while True:
        room = (PAGE - (address & OFFSET)) // ENTRY_SIZE
        pages = (left + OFFSET) // PAGE
        here = min(pages, room)
        entries = translate(table, address, here * ENTRY_SIZE, READ)
        if entries == 0:
            return -1
        if pages > room:
            here -= 1  # the last entry goes on to the next list
        for number in range(here):
            used = _append(plane, used, table, load64(entries + number * ENTRY_SIZE), min(left, PAGE), rights)
            if used < 0:
                return -1
            left -= min(left, PAGE)
        if left == 0:
            return used
        address = load64(entries + here * ENTRY_SIZE)
        if address & OFFSET != 0:
            return -1


@jitable
def _append(plane: int, used: int, table: int, page: int, size: int, rights: int) -> int:
    """Append up to a page that begins with one; ``used`` then, or -1."""
    if page & OFFSET != 0:
        return -1
    return add_segment(plane, used, translate(table, page, size, rights), size)


@jitable
def add_segment(plane: int, used: int, host: int, size: int) -> int:
    """Append a segment, or let the one before grow if it ends where this one begins; there is one before."""
    if host == 0:
        return -1
    segment = load64(plane + PL_SEGMENTS) + used * SEGMENT
    before = load64(segment - SEGMENT + SEGMENT_SIZE)
    if load64(segment - SEGMENT + SEGMENT_HOST) + before == host:
        store64(segment - SEGMENT + SEGMENT_SIZE, before + size)
        return used
    if used == load64(plane + PL_SEGMENT_COUNT):
        return -1
    store64(segment + SEGMENT_HOST, host)
    store64(segment + SEGMENT_SIZE, size)
    return used + 1


@jitable
def walk_sgl(plane: int, used: int, address: int, word: int, length: int, rights: int) -> int:
    """As `walk_prps`, for the descriptor in the command: its address, and its second ``word``."""
    table = load64(plane + PL_TABLE)
    size = word & 0xFFFFFFFF
    kind = (word >> 56) & 0xFF
    if kind == DATA_BLOCK:
        return _data_block(plane, used, table, address, size, rights) if size == length else -1
    first = used
    left = length
    looked_at = 0
    while True:
        count = size // DESCRIPTOR
        looked_at += count
        if count == 0 or size % DESCRIPTOR != 0 or address & 7 != 0 or looked_at > DESCRIPTORS:
            return -1
        if kind != SEGMENT_LIST and kind != LAST_SEGMENT_LIST:
            return -1
        descriptors = translate(table, address, size, READ)
        if descriptors == 0:
            return -1
        following = 0
        for number in range(count):
            address = load64(descriptors + number * DESCRIPTOR)
            word = load64(descriptors + number * DESCRIPTOR + 8)
            size = word & 0xFFFFFFFF
            type_ = (word >> 56) & 0xFF
            if type_ == DATA_BLOCK and size <= left:
                if size != 0:
                    used = _data_block(plane, used, table, address, size, rights)
                    left -= size
            elif type_ == BIT_BUCKET and size <= left:
                # A write takes nothing from a bit bucket.
                if rights == WRITE and size != 0:
                    used = _bit_bucket(plane, used, size)
                    left -= size
            elif type_ >= SEGMENT_LIST and number == count - 1 and kind == SEGMENT_LIST:
                following = type_
            else:
                return -1
            if used < 0:
                return -1
        if following == 0:
            return used if left == 0 and kind == LAST_SEGMENT_LIST and used > first else -1
        kind = following


@jitable
def _data_block(plane: int, used: int, table: int, address: int, size: int, rights: int) -> int:
    if (address | size) & 3 != 0 or used == load64(plane + PL_SEGMENT_COUNT):
        return -1
    host = translate(table, address, size, rights)
    if host == 0:
        return -1
    return _store_segment(plane, used, host, size)


@jitable
def _bit_bucket(plane: int, used: int, size: int) -> int:
    if used == load64(plane + PL_SEGMENT_COUNT):
        return -1
    return _store_segment(plane, used, 0, size)


@jitable
def _store_segment(plane: int, used: int, host: int, size: int) -> int:
    segment = load64(plane + PL_SEGMENTS) + used * SEGMENT
    store64(segment + SEGMENT_HOST, host)
    store64(segment + SEGMENT_SIZE, size)
    return used + 1
