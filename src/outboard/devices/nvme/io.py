"""The NVM command set: Read, Write and the rest of what is done with blocks (NVM Command Set 1.0, 3.2).

Every command waits for storage, and is a `Work` for that reason.
"""

import errno
import struct
from collections.abc import Iterator
from functools import partial

from outboard.devices.nvme.admission import Access
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.command_set import CHANGES_BLOCKS, IoCommand
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.spec import BROADCAST, IoOpcode
from outboard.devices.nvme.state import State
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import fetch, runs, scatter
from outboard.devices.nvme.work import Call, Work
from outboard.errors import StorageError
from outboard.storage import persist

FORCE_UNIT_ACCESS = 1 << 30
DEALLOCATE_ZEROES = 1 << 25
DEALLOCATE = 1 << 2

_RANGE = struct.Struct("<IIQ")
_SLBA_LOCATION, _NLB_LOCATION = 40, 48


def read(state: State, command: Command) -> Work:
    """Execute Read."""
    space = state.namespace(command.nsid)
    offset, size = _extent(state, space, command)
    found = runs(state.bus, command, size, reading=True)
    data = bytearray(size)
    try:
        if command.cdw12 & FORCE_UNIT_ACCESS:
            yield Call(space.storage, partial(persist, space.storage, offset, size))
        yield Call(space.storage, partial(space.storage.readinto, offset, memoryview(data)))
    except StorageError as error:
        raise _media_error(state, Status.UNRECOVERED_READ_ERROR, error) from error
    scatter(state.bus, found, data)
    state.health.reads += 1
    state.health.bytes_read += size
    return 0


def write(state: State, command: Command) -> Work:
    """Execute Write. All of the guest's data is here before the first byte is stored."""
    space = state.namespace(command.nsid)
    offset, size = _extent(state, space, command)
    data = fetch(state.bus, command, size)
    try:
        yield Call(space.storage, partial(space.storage.write, offset, data))
        yield from _settle(state, space, command.cdw12, offset, size)
    except StorageError as error:
        raise _media_error(state, Status.WRITE_FAULT, error) from error
    state.health.writes += 1
    state.health.bytes_written += size
    return 0


def compare(state: State, command: Command) -> Work:
    """Execute Compare."""
    space = state.namespace(command.nsid)
    offset, size = _extent(state, space, command)
    theirs, ours = fetch(state.bus, command, size), bytearray(size)
    try:
        yield Call(space.storage, partial(space.storage.readinto, offset, memoryview(ours)))
    except StorageError as error:
        raise _media_error(state, Status.UNRECOVERED_READ_ERROR, error) from error
    state.health.reads += 1
    if ours != theirs:
        raise CommandFailed(Status.COMPARE_FAILURE, "the blocks hold something else")
    return 0


def flush(state: State, command: Command) -> Work:
    """Execute Flush, of one namespace or of all."""
    every = command.nsid == BROADCAST
    spaces = list(state.namespaces.values()) if every else [state.namespace(command.nsid)]
    try:
        for space in spaces:
            yield Call(space.storage, space.storage.flush)
    except StorageError as error:
        raise _media_error(state, Status.WRITE_FAULT, error) from error
    return 0


def write_zeroes(state: State, command: Command) -> Work:
    """Execute Write Zeroes. No data moves, so MDTS does not limit it."""
    space = state.namespace(command.nsid)
    offset, size = _blocks(space, command.slba, (command.cdw12 & 0xFFFF) + 1)
    discarding = command.cdw12 & DEALLOCATE_ZEROES and space.storage.discard_zeroes
    make_zeros = space.storage.discard if discarding else space.storage.write_zeroes
    try:
        yield Call(space.storage, partial(make_zeros, offset, size))
        yield from _settle(state, space, command.cdw12, offset, size)
    except StorageError as error:
        raise _media_error(state, Status.WRITE_FAULT, error) from error
    return 0


def dataset_management(state: State, command: Command) -> Work:
    """Execute Dataset Management: deallocate. Every range is checked before the first one is."""
    space = state.namespace(command.nsid)
    count = (command.cdw10 & 0xFF) + 1
    data = fetch(state.bus, command, count * _RANGE.size)
    extents = [_blocks(space, slba, blocks) for _, blocks, slba in _RANGE.iter_unpack(data)]
    if command.cdw11 & DEALLOCATE:
        try:
            for offset, size in extents:
                yield Call(space.storage, partial(space.storage.discard, offset, size))
            yield from _settle(state, space, 0)
        except StorageError as error:
            raise _media_error(state, Status.WRITE_FAULT, error) from error
    return 0


def _extent(state: State, space: Namespace, command: Command) -> tuple[int, int]:
    """Return offset and size, in bytes, of the blocks a data command names."""
    blocks = (command.cdw12 & 0xFFFF) + 1
    if blocks * space.block_size > state.limits.transfer:
        raise CommandFailed(
            Status.INVALID_FIELD, f"{blocks} blocks are more than MDTS allows", location=_NLB_LOCATION
        )
    return _blocks(space, command.slba, blocks)


def _blocks(space: Namespace, slba: int, blocks: int) -> tuple[int, int]:
    if slba + blocks > space.blocks:
        raise CommandFailed(
            Status.LBA_OUT_OF_RANGE,
            f"blocks {slba:#x}..{slba + blocks:#x} of {space.blocks:#x}",
            location=_SLBA_LOCATION,
        )
    return slba * space.block_size, blocks * space.block_size


def _settle(
    state: State, space: Namespace, cdw12: int, offset: int = 0, size: int | None = None
) -> Iterator[Call]:
    """Make a write durable before it completes, if the host asks for that; all of them without a size."""
    if cdw12 & FORCE_UNIT_ACCESS or not state.features.write_cache:
        if size is None:
            yield Call(space.storage, space.storage.flush)
        else:
            yield Call(space.storage, partial(persist, space.storage, offset, size))


def _media_error(state: State, status: Status, error: StorageError) -> CommandFailed:
    if error.errno == errno.ENOSPC:
        status = Status.CAPACITY_EXCEEDED
    state.health.media_errors += 1
    return CommandFailed(status, str(error))


IO_COMMANDS: dict[int, IoCommand] = {
    IoOpcode.FLUSH: IoCommand(flush),
    IoOpcode.WRITE: IoCommand(write, Access.WRITE, CHANGES_BLOCKS),
    IoOpcode.READ: IoCommand(read, Access.READ),
    IoOpcode.COMPARE: IoCommand(compare, Access.READ),
    IoOpcode.WRITE_ZEROES: IoCommand(write_zeroes, Access.WRITE, CHANGES_BLOCKS),
    IoOpcode.DATASET_MANAGEMENT: IoCommand(dataset_management, Access.WRITE, CHANGES_BLOCKS),
}
