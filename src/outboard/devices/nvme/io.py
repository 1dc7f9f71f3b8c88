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
from outboard.devices.nvme.admission import MANAGEMENT, Access
from outboard.devices.nvme.blocks import (
    BLOCK_STATES,
    FORCE_UNIT_ACCESS,
    block_count,
    check_readable,
    deallocated,
    extent,
    media_error,
    place_of,
    range_of,
    settle,
    verify_stored,
    written,
)
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.command_set import CHANGES_BLOCKS, IoCommand
from outboard.devices.nvme.fused import SERIALIZED
from outboard.devices.nvme.metadata import discard, zero
from outboard.devices.nvme.protection import Prinfo, of_zeros, receive
from outboard.devices.nvme.spec import BROADCAST, IoOpcode
from outboard.devices.nvme.state import State
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import fetch
from outboard.devices.nvme.vitals import READ_ONLY_MEDIA
from outboard.devices.nvme.work import Call, Work, flush_of
from outboard.errors import StorageError

log = logging.getLogger(__name__)

DEALLOCATE_ZEROES = 1 << 25
DEALLOCATE = 1 << 2

ZEROED_AT_ONCE = 4096
"""Blocks that Write Zeroes gives to storage in one call, with their metadata."""

_RANGE = struct.Struct("<IIQ")


def read(state: State, command: Command) -> Work:
    """Execute Read."""
    space = state.namespace(command.nsid)
    prinfo = Prinfo.of(space, command)
    found = extent(state, space, command, prinfo)
    check_readable(state, space, found.slba, found.blocks)
    place = place_of(state, command, found, prinfo, reading=True)
    try:
        if command.cdw12 & FORCE_UNIT_ACCESS:
            yield Call(space.storage, found.persist)
        yield Call(space.storage, found.load)
    except StorageError as error:
        raise media_error(state, Status.UNRECOVERED_READ_ERROR, error) from error
    verify_stored(state, found, prinfo)
    place.deliver(state.bus, found)
    state.health.reads += 1
    state.health.bytes_read += len(found.data)
    return 0


def write(state: State, command: Command) -> Work:
    """Execute Write. All of the guest's data is here, and passes, before the first byte is stored."""
    space = state.namespace(command.nsid)
    prinfo = Prinfo.of(space, command)
    given = extent(state, space, command, prinfo)
    identifier = placement.directive(space, command)
    place_of(state, command, given, prinfo, reading=False).fetch(state.bus, given)
    receive(given, prinfo)
    try:
        with space.writing(given.slba, given.blocks):
            yield Call(space.storage, space.alone(given.store))
            written(state, space, given.slba, given.blocks, identifier)
            yield from settle(state, space, command.cdw12, given.slba, given.blocks)
    except StorageError as error:
        raise media_error(state, Status.WRITE_FAULT, error) from error
    state.health.writes += 1
    state.health.bytes_written += len(given.data)
    return 0


def compare(state: State, command: Command) -> Work:
    """Execute Compare. Protection information is not compared: that of the stored blocks is verified."""
    space = state.namespace(command.nsid)
    prinfo = Prinfo.of(space, command)
    prinfo.no_action()
    theirs, ours = (extent(state, space, command, prinfo) for _ in range(2))
    check_readable(state, space, ours.slba, ours.blocks)
    place_of(state, command, theirs, prinfo, reading=False).fetch(state.bus, theirs)
    try:
        yield Call(space.storage, ours.load)
    except StorageError as error:
        raise media_error(state, Status.UNRECOVERED_READ_ERROR, error) from error
    verify_stored(state, ours, prinfo)
    state.health.reads += 1
    if not ours.holds(theirs):
        raise CommandFailed(Status.COMPARE_FAILURE, "the blocks hold something else")
    return 0


def flush(state: State, command: Command) -> Work:
    """Execute Flush, of one namespace or of all."""
    every = command.nsid == BROADCAST
    spaces = list(state.namespaces.values()) if every else [state.namespace(command.nsid)]
    try:
        for space in spaces:
            # While another one was flushed it may have been taken away, and its storage closed.
            if state.namespaces.get(space.nsid) is space:
                yield flush_of(space.storage)
                state.subsystem.uncorrectable.keep(space.nsid)
    except StorageError as error:
        raise media_error(state, Status.WRITE_FAULT, error) from error
    return 0


def flush_each(state: State) -> Work:
    """Flush every namespace, whatever becomes of the others: for a shutdown."""
    for nsid, space in list(state.namespaces.items()):
        try:
            if state.namespaces.get(nsid) is space:
                yield flush_of(space.storage)
                state.subsystem.uncorrectable.keep(space.nsid)
        except StorageError:
            log.exception("namespace %d may have lost data at shutdown", nsid)
    return 0


def write_zeroes(state: State, command: Command) -> Work:
    """Execute Write Zeroes. No data moves, so MDTS does not limit it."""
    space = state.namespace(command.nsid)
    prinfo = Prinfo.of(space, command)
    slba, blocks = command.slba, block_count(command)
    range_of(space, slba, blocks)
    discarding = command.cdw12 & DEALLOCATE_ZEROES and space.storage.discard_zeroes
    step = blocks if discarding or not space.metadata else ZEROED_AT_ONCE
    try:
        with space.writing(slba, blocks):
            for first in range(0, blocks, step):
                count = min(step, blocks - first)
                if discarding:
                    make_zeros = partial(discard, space, slba, count)
                else:
                    metadata = of_zeros(space, prinfo, first, count)
                    make_zeros = partial(zero, space, slba + first, count, metadata)
                yield Call(space.storage, space.alone(make_zeros))
            (deallocated if discarding else written)(state, space, slba, blocks)
            yield from settle(state, space, command.cdw12, slba, blocks)
    except StorageError as error:
        raise media_error(state, Status.WRITE_FAULT, error) from error
    return 0


def dataset_management(state: State, command: Command) -> Work:
    """Execute Dataset Management: deallocate. Every range is checked before the first one is."""
    space = state.namespace(command.nsid)
    count = (command.cdw10 & 0xFF) + 1
    data = fetch(state.bus, command, count * _RANGE.size)
    named = [(slba, blocks) for _, blocks, slba in _RANGE.iter_unpack(data)]
    for slba, blocks in named:
        range_of(space, slba, blocks)
    if command.cdw11 & DEALLOCATE:
        if space.zones is not None:
            for slba, blocks in named:
                if blocks:
                    space.zones.check_discard(slba, blocks)
        try:
            for slba, blocks in named:
                yield Call(space.storage, space.alone(partial(discard, space, slba, blocks)))
                deallocated(state, space, slba, blocks)
            yield from settle(state, space, 0)
        except StorageError as error:
            raise media_error(state, Status.WRITE_FAULT, error) from error
    return 0


CONDITIONS = (
    READ_ONLY_MEDIA,
    ana.CONDITION,
    *MANAGEMENT,
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
