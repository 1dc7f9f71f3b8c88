"""What the loop knows of a namespace: its blocks, and what behind them it can reach without Python."""

from outboard.devices.nvme.datapath.records import (
    BESIDE,
    BY_SLOW_LANE,
    FILE,
    MEMORY,
    NOTHING,
    NS_ADDRESS,
    NS_ALIGNMENT,
    NS_BLOCKS,
    NS_DURABLE,
    NS_EXTENDED,
    NS_FD,
    NS_KIND,
    NS_METADATA,
    NS_METADATA_AT,
    NS_SHIFT,
    NS_SLOW,
    NS_STRIPES,
    NS_TUPLE_AT,
    NS_TUPLE_SIZE,
    NS_TYPE,
    SHARED,
)
from outboard.devices.nvme.namespace import Namespace
from outboard.native.memory import CACHE_LINE
from outboard.native.words import Record
from outboard.storage.fast import Descriptor, Memory, Nothing, fast_of


def describe(
    record: Record, space: Namespace, *, slow: int, durable: bool, files: bool, shared: bool
) -> None:
    """Fill in the record of a namespace.

    ``slow``: the opcodes, as bits, that only Python may execute. ``durable``: every write has to be before it
    completes. ``files``: there is io_uring for those. ``shared``: other loops reach it, too.
    """
    describe_blocks(record, space)
    record[NS_ADDRESS], record[NS_ALIGNMENT] = 0, 1
    record[NS_DURABLE], record[NS_SLOW] = int(durable), slow
    needed = space.metadata_offset + space.blocks * space.metadata
    match fast_of(space.storage):
        # It was taken away by whoever owns it: the storage's methods say so, memory would not.
        case Memory(size=size) if size < needed:
            record[NS_KIND] = BY_SLOW_LANE
        case Memory(address=address) if space.metadata and address % CACHE_LINE == 0:
            record[NS_KIND], record[NS_ADDRESS] = BESIDE, address
            record[NS_METADATA_AT] = address + space.metadata_offset
        case _ if space.metadata:
            record[NS_KIND] = BY_SLOW_LANE
        case Nothing():
            record[NS_KIND] = NOTHING
        case Memory(address=address):
            record[NS_KIND], record[NS_ADDRESS] = SHARED if shared else MEMORY, address
        # Of a block that is smaller than what the file takes, only Python can write a part.
        case Descriptor(fd=fd, alignment=alignment) if files and alignment <= space.block_size:
            record[NS_KIND], record[NS_FD], record[NS_ALIGNMENT] = FILE, fd, alignment
        case _:
            record[NS_KIND] = BY_SLOW_LANE
    in_memory = record[NS_KIND] in (BESIDE, SHARED)
    record[NS_STRIPES] = space.stripes.address(space.storage.size) if shared and in_memory else 0


def describe_blocks(record: Record, space: Namespace) -> None:
    """Fill in what of the record of a namespace is about its blocks, their metadata and its protection."""
    record[NS_SHIFT], record[NS_BLOCKS] = space.block_size.bit_length() - 1, space.blocks
    record[NS_METADATA], record[NS_EXTENDED] = space.metadata, int(space.extended)
    record[NS_TYPE] = space.protection.type if space.protection else 0
    record[NS_TUPLE_AT], record[NS_TUPLE_SIZE] = space.protection_span
