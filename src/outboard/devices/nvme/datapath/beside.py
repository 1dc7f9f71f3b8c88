"""Namespaces in memory whose blocks have metadata: decoded, and carried out (NVM Command Set 1.0, 2.1.4).

The host has the metadata in a buffer of its own, or behind each block in the same buffer. What it writes is
gathered in memory of our own, protection information is judged or made there, and then it is stored; what it
reads is judged where it is stored, its metadata in a copy. Whatever does not pass is for Python.
"""

from outboard.devices.nvme.datapath.protect import (
    ACTION,
    CHECK_REFERENCE,
    NO_REFERENCE,
    NO_WIDE_REFERENCE,
    WIDE,
    generate,
    invert,
    verify,
)
from outboard.devices.nvme.datapath.records import (
    NS_ADDRESS,
    NS_BLOCKS,
    NS_EXTENDED,
    NS_METADATA,
    NS_METADATA_AT,
    NS_SHIFT,
    NS_TUPLE_SIZE,
    NS_TYPE,
    OP_BLOCKS,
    OP_CARRIED,
    OP_CHECKS,
    OP_DISK,
    OP_KIND,
    OP_LBA,
    OP_LENGTH,
    OP_METADATA,
    OP_REFERENCE,
    OP_SEGMENT,
    OP_SEGMENT_COUNT,
    OP_SPACE,
    OP_TAGS,
    PL_MDTS,
    PL_SEGMENTS,
    PL_STAGED,
    PL_STAGED_METADATA,
    PL_TABLE,
    READ_BESIDE,
    SEGMENT,
    SEGMENT_HOST,
    SEGMENT_SIZE,
    WRITE_BESIDE,
)
from outboard.devices.nvme.datapath.stripes import lock, unlock
from outboard.devices.nvme.datapath.walk import DATA_BLOCK, DESCRIPTOR, walk_prps, walk_sgl
from outboard.native.jit import jitable
from outboard.native.memory import (
    CACHE_LINE,
    copy,
    copy_ahead,
    copy_stream,
    drain_stream,
    load64,
    prefetch,
    store64,
)
from outboard.native.translation import READ, WRITE, translate

RESERVED_AND_REFERENCE, METADATA_POINTER = 8, 16
FIRST_POINTER, SECOND_POINTER, STARTING_LBA, CONTROL, TAGS = 24, 32, 40, 48, 56
PROTECTION = 26
"""Where in dword 12 PRINFO begins."""

SMALL = 8192
"""Blocks up to this size are copied line by line, and stored past the cache, as without metadata."""


@jitable
def decode_beside(
    plane: int, namespace: int, entry: int, operation: int, segments: int, psdt: int, reading: bool
) -> int:
    """As `outboard.devices.nvme.datapath.decode.decode`, for a read or write of such a namespace."""
    lba = load64(entry + STARTING_LBA)
    details = load64(entry + CONTROL)
    tags = load64(entry + TAGS)
    reference = tags & NO_REFERENCE
    blocks = (details & 0xFFFF) + 1
    checks = details >> PROTECTION & 0xF
    shift = load64(namespace + NS_SHIFT)
    metadata = load64(namespace + NS_METADATA)
    carried = metadata
    kind = load64(namespace + NS_TYPE)
    if kind == 0:
        checks = 0
    else:
        tuple_size = load64(namespace + NS_TUPLE_SIZE)
        most = NO_REFERENCE
        if tuple_size == WIDE:
            reference |= (load64(entry + RESERVED_AND_REFERENCE) >> 32 & 0xFFFF) << 32
            most = NO_WIDE_REFERENCE
        if checks & CHECK_REFERENCE != 0 and (kind == 3 or (kind == 1 and reference != lba & most)):
            return segments
        if checks & ACTION != 0 and metadata == tuple_size:
            carried = 0
    apart = carried if load64(namespace + NS_EXTENDED) == 0 else 0
    length = (blocks << shift) + blocks * (carried - apart)
    if lba < 0 or lba > load64(namespace + NS_BLOCKS) - blocks or length > load64(plane + PL_MDTS):
        return segments
    rights = WRITE if reading else READ
    buffer = 0
    if apart != 0:
        buffer = metadata_buffer(plane, load64(entry + METADATA_POINTER), blocks * apart, psdt, rights)
        if buffer == 0:
            return segments
    first = load64(entry + FIRST_POINTER)
    second = load64(entry + SECOND_POINTER)
    if psdt == 0:
        end = walk_prps(plane, segments, first, second, length, rights)
    else:
        end = walk_sgl(plane, segments, first, second, length, rights)
    if end < 0:
        return segments
    prefetch(load64(namespace + NS_METADATA_AT) + lba * metadata)
    store64(operation + OP_LBA, lba)
    store64(operation + OP_BLOCKS, blocks)
    store64(operation + OP_METADATA, buffer)
    store64(operation + OP_CARRIED, carried)
    store64(operation + OP_CHECKS, checks)
    store64(operation + OP_TAGS, tags >> 32 & 0xFFFFFFFF)
    store64(operation + OP_REFERENCE, reference)
    store64(operation + OP_DISK, load64(namespace + NS_ADDRESS) + (lba << shift))
    store64(operation + OP_LENGTH, blocks << shift)
    store64(operation + OP_SEGMENT, segments)
    store64(operation + OP_SEGMENT_COUNT, end - segments)
    store64(operation + OP_KIND, READ_BESIDE if reading else WRITE_BESIDE)
    return end


@jitable
def metadata_buffer(plane: int, pointer: int, size: int, psdt: int, rights: int) -> int:
    """Our address of the host's metadata: at the pointer, or where the one descriptor there says; or 0."""
    table = load64(plane + PL_TABLE)
    if psdt == 2:
        descriptor = translate(table, pointer, DESCRIPTOR, READ) if pointer & 7 == 0 else 0
        if descriptor == 0:
            return 0
        pointer = load64(descriptor)
        word = load64(descriptor + 8)
        if (word >> 56) & 0xFF != DATA_BLOCK or word & 0xFFFFFFFF != size:
            return 0
    if psdt != 1 and pointer & 3 != 0:
        return 0
    return translate(table, pointer, size, rights)


@jitable
def carry_out_beside(plane: int, operation: int, ahead: int) -> int:
    """Read or write; 0 if a block does not pass, and nothing was stored or given then.

    What lies at ``ahead`` (0: nothing does) is fetched meanwhile.
    """
    if load64(operation + OP_KIND) == READ_BESIDE:
        return read_beside(plane, operation, ahead)
    return write_beside(plane, operation, ahead)


@jitable
def read_beside(plane: int, operation: int, ahead: int) -> int:
    """Judge what is stored, and give it to the host."""
    space = load64(operation + OP_SPACE)
    blocks = load64(operation + OP_BLOCKS)
    disk = load64(operation + OP_DISK)
    staged = load64(plane + PL_STAGED_METADATA)
    stripes = lock(operation)
    invert(space, staged, stored_metadata(space, operation), blocks)
    passed = load64(space + NS_TYPE) == 0 or verify(space, operation, disk, staged, blocks) == 0
    if passed:
        move(plane, operation, disk, staged, 1, ahead)
    if stripes != 0:
        unlock(stripes, operation)
    if not passed:
        return 0
    buffer = load64(operation + OP_METADATA)
    if buffer != 0:
        copy(buffer, staged, blocks * load64(operation + OP_CARRIED))
    return 1


@jitable
def write_beside(plane: int, operation: int, ahead: int) -> int:
    """Take from the host, judge or make protection information, store.

    What is stored may go past the cache: `drain_stream` before telling anyone.
    """
    space = load64(operation + OP_SPACE)
    blocks = load64(operation + OP_BLOCKS)
    data = load64(plane + PL_STAGED)
    staged = load64(plane + PL_STAGED_METADATA)
    move(plane, operation, data, staged, 0, ahead)
    buffer = load64(operation + OP_METADATA)
    if buffer != 0:
        copy(staged, buffer, blocks * load64(operation + OP_CARRIED))
    if load64(space + NS_TYPE) != 0:
        if load64(operation + OP_CHECKS) & ACTION != 0:
            generate(space, operation, data, staged, blocks)
        elif verify(space, operation, data, staged, blocks) != 0:
            return 0
    disk = load64(operation + OP_DISK)
    length = load64(operation + OP_LENGTH)
    stripes = lock(operation)
    if length <= SMALL:
        copy_stream(disk, data, length, data)
    else:
        copy(disk, data, length)
    invert(space, stored_metadata(space, operation), staged, blocks)
    if stripes != 0:
        drain_stream()
        unlock(stripes, operation)
    return 1


@jitable
def stored_metadata(space: int, operation: int) -> int:
    """Our address of the stored metadata of a command's first block."""
    return load64(space + NS_METADATA_AT) + load64(operation + OP_LBA) * load64(space + NS_METADATA)


@jitable
def move(plane: int, operation: int, data: int, metadata: int, giving: int, ahead: int) -> int:
    """Copy between the host's segments and ``data``; where it has both in one buffer, ``metadata`` in turn.

    ``giving`` says that the host is given them; a bit bucket takes nothing.
    """
    size = load64(operation + OP_LENGTH)
    more = 0
    if load64(load64(operation + OP_SPACE) + NS_EXTENDED) != 0 and load64(operation + OP_CARRIED) != 0:
        size = 1 << load64(load64(operation + OP_SPACE) + NS_SHIFT)
        more = load64(operation + OP_CARRIED)
    here = data
    other = metadata
    room = size
    following = more
    segment = load64(plane + PL_SEGMENTS) + load64(operation + OP_SEGMENT) * SEGMENT
    for _ in range(load64(operation + OP_SEGMENT_COUNT)):
        host = load64(segment + SEGMENT_HOST)
        left = load64(segment + SEGMENT_SIZE)
        while left > 0:
            step = min(left, room)
            if host != 0:
                to = host if giving != 0 else here
                source = here if giving != 0 else host
                if step <= SMALL and step & (CACHE_LINE - 1) == 0:
                    copy_ahead(to, source, step, ahead if ahead != 0 else source)
                else:
                    copy(to, source, step)
                host += step
            if ahead != 0:
                ahead += step
            here += step
            left -= step
            room -= step
            if room == 0 and more != 0:
                here, other = other, here
                room = following
                following = size + more - following
        segment += SEGMENT
    return 0
