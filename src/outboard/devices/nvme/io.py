"""The NVM command set: Read, Write and the rest of what is done with blocks (NVM Command Set 1.0, 3.2).

Every command waits for storage, and is a `Work` for that reason.
"""

import logging
import struct
from functools import partial

from outboard.devices.nvme import (
    ana,
    copying,
    placement,
    placement_commands,
    reservations,
    verify,
    zone_commands,
)
from outboard.devices.nvme.admission import Access
from outboard.devices.nvme.blocks import (
    BLOCK_STATES,
    FORCE_UNIT_ACCESS,
    block_count,
    check_readable,
    deallocated,
    extent,
    media_error,
    range_of,
    settle,
    written,
)
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.command_set import CHANGES_BLOCKS, IoCommand
from outboard.devices.nvme.fused import SERIALIZED
from outboard.devices.nvme.spec import BROADCAST, IoOpcode
from outboard.devices.nvme.state import State
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import fetch, runs, scatter
from outboard.devices.nvme.vitals import READ_ONLY_MEDIA
from outboard.devices.nvme.work import Call, Work
from outboard.errors import StorageError
from outboard.storage import persist

log = logging.getLogger(__name__)

DEALLOCATE_ZEROES = 1 << 25
DEALLOCATE = 1 << 2

_RANGE = struct.Struct("<IIQ")


def read(state: State, command: Command) -> Work:
    """Execute Read."""
    space = state.namespace(command.nsid)
    offset, size = extent(state, space, command)
    check_readable(state, space, command.slba, block_count(command))
    found = runs(state.bus, command, size, reading=True)
    data = bytearray(size)
    try:
        if command.cdw12 & FORCE_UNIT_ACCESS:
            yield Call(space.storage, partial(persist, space.storage, offset, size))
        yield Call(space.storage, partial(space.storage.readinto, offset, memoryview(data)))
    except StorageError as error:
        raise media_error(state, Status.UNRECOVERED_READ_ERROR, error) from error
    scatter(state.bus, found, data)
    state.health.reads += 1
    state.health.bytes_read += size
    return 0


def write(state: State, command: Command) -> Work:
    """Execute Write. All of the guest's data is here before the first byte is stored."""
    space = state.namespace(command.nsid)
    offset, size = extent(state, space, command)
    identifier = placement.directive(space, command)
    data = fetch(state.bus, command, size)
    try:
        with space.writing(command.slba, block_count(command)):
            yield Call(space.storage, space.alone(partial(space.storage.write, offset, data)))
            yield from settle(state, space, command.cdw12, offset, size)
    except StorageError as error:
        raise media_error(state, Status.WRITE_FAULT, error) from error
    written(state, space, command.slba, block_count(command), identifier)
    state.health.writes += 1
    state.health.bytes_written += size
    return 0


def compare(state: State, command: Command) -> Work:
    """Execute Compare."""
    space = state.namespace(command.nsid)
    offset, size = extent(state, space, command)
    check_readable(state, space, command.slba, block_count(command))
    theirs, ours = fetch(state.bus, command, size), bytearray(size)
    try:
        yield Call(space.storage, partial(space.storage.readinto, offset, memoryview(ours)))
    except StorageError as error:
        raise media_error(state, Status.UNRECOVERED_READ_ERROR, error) from error
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
        raise media_error(state, Status.WRITE_FAULT, error) from error
    return 0


def write_zeroes(state: State, command: Command) -> Work:
    """Execute Write Zeroes. No data moves, so MDTS does not limit it."""
    space = state.namespace(command.nsid)
    offset, size = range_of(space, command.slba, block_count(command))
    discarding = command.cdw12 & DEALLOCATE_ZEROES and space.storage.discard_zeroes
    make_zeros = space.storage.discard if discarding else space.storage.write_zeroes
    try:
        with space.writing(command.slba, block_count(command)):
            yield Call(space.storage, space.alone(partial(make_zeros, offset, size)))
            yield from settle(state, space, command.cdw12, offset, size)
    except StorageError as error:
        raise media_error(state, Status.WRITE_FAULT, error) from error
    (deallocated if discarding else written)(state, space, command.slba, block_count(command))
    return 0


def flush_each(state: State) -> Work:
    """Flush every namespace, whatever becomes of the others: a shutdown."""
    for nsid, space in state.namespaces.items():
        try:
            yield Call(space.storage, space.storage.flush)
        except StorageError:
            log.exception("namespace %d may have lost data at shutdown", nsid)
    return 0


def dataset_management(state: State, command: Command) -> Work:
    """Execute Dataset Management: deallocate. Every range is checked before the first one is."""
    space = state.namespace(command.nsid)
    count = (command.cdw10 & 0xFF) + 1
    data = fetch(state.bus, command, count * _RANGE.size)
    named = [(slba, blocks) for _, blocks, slba in _RANGE.iter_unpack(data)]
    extents = [range_of(space, slba, blocks) for slba, blocks in named]
    if command.cdw11 & DEALLOCATE:
        if space.zones is not None:
            for slba, blocks in named:
                space.zones.check_discard(slba, blocks)
        try:
            for (slba, blocks), (offset, size) in zip(named, extents, strict=True):
                yield Call(space.storage, space.alone(partial(space.storage.discard, offset, size)))
                deallocated(state, space, slba, blocks)
            yield from settle(state, space, 0)
        except StorageError as error:
            raise media_error(state, Status.WRITE_FAULT, error) from error
    return 0


CONDITIONS = (
    READ_ONLY_MEDIA,
    ana.CONDITION,
    reservations.CONDITION,
    BLOCK_STATES,
    SERIALIZED,
    zone_commands.ZONES,
    placement.PLACED,
)
"""What may be in the way of the commands."""

IO_COMMANDS: dict[int, IoCommand] = {
    IoOpcode.FLUSH: IoCommand(flush),
    IoOpcode.WRITE: IoCommand(write, Access.WRITE, CHANGES_BLOCKS),
    IoOpcode.READ: IoCommand(read, Access.READ),
    IoOpcode.COMPARE: IoCommand(compare, Access.READ),
    IoOpcode.WRITE_ZEROES: IoCommand(write_zeroes, Access.WRITE, CHANGES_BLOCKS),
    IoOpcode.DATASET_MANAGEMENT: IoCommand(dataset_management, Access.WRITE, CHANGES_BLOCKS),
    **reservations.COMMANDS,
    **verify.COMMANDS,
    **copying.COMMANDS,
    **zone_commands.commands(write),
    **placement_commands.IO_COMMANDS,
}
