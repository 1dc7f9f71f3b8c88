"""The NVM command set: Read, Write and the rest of what is done with blocks (NVM Command Set 1.0, 3.2)."""

import errno
import struct

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.spec import BROADCAST, IoOpcode
from outboard.devices.nvme.state import Handler, State
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import fetch, load, store
from outboard.errors import StorageError

FORCE_UNIT_ACCESS = 1 << 30
DEALLOCATE_ZEROES = 1 << 25
DEALLOCATE = 1 << 2

_RANGE = struct.Struct("<IIQ")
_SLBA_LOCATION, _NLB_LOCATION = 40, 48


def read(state: State, command: Command) -> int:
    """Execute Read."""
    space = state.namespace(command.nsid)
    offset, size = _extent(state, space, command)
    try:
        if command.cdw12 & FORCE_UNIT_ACCESS:
            space.storage.flush()
        load(state.bus, command, space.storage, offset, size)
    except StorageError as error:
        raise _media_error(state, Status.UNRECOVERED_READ_ERROR, error) from error
    state.health.reads += 1
    state.health.bytes_read += size
    return 0


def write(state: State, command: Command) -> int:
    """Execute Write."""
    space = state.namespace(command.nsid)
    offset, size = _extent(state, space, command)
    try:
        store(state.bus, command, space.storage, offset, size)
        _settle(state, space, command.cdw12)
    except StorageError as error:
        raise _media_error(state, Status.WRITE_FAULT, error) from error
    state.health.writes += 1
    state.health.bytes_written += size
    return 0


def compare(state: State, command: Command) -> int:
    """Execute Compare."""
    space = state.namespace(command.nsid)
    offset, size = _extent(state, space, command)
    theirs = fetch(state.bus, command, size)
    try:
        ours = space.storage.read(offset, size)
    except StorageError as error:
        raise _media_error(state, Status.UNRECOVERED_READ_ERROR, error) from error
    state.health.reads += 1
    if ours != theirs:
        raise CommandFailed(Status.COMPARE_FAILURE, "the blocks hold something else")
    return 0


def flush(state: State, command: Command) -> int:
    """Execute Flush, of one namespace or of all."""
    spaces = state.namespaces.values() if command.nsid == BROADCAST else [state.namespace(command.nsid)]
    try:
        for space in spaces:
            space.storage.flush()
    except StorageError as error:
        raise _media_error(state, Status.WRITE_FAULT, error) from error
    return 0


def write_zeroes(state: State, command: Command) -> int:
    """Execute Write Zeroes. No data moves, so MDTS does not limit it."""
    space = state.namespace(command.nsid)
    offset, size = _blocks(space, command.slba, (command.cdw12 & 0xFFFF) + 1)
    try:
        if command.cdw12 & DEALLOCATE_ZEROES and space.storage.discard_zeroes:
            space.storage.discard(offset, size)
        else:
            space.storage.write_zeroes(offset, size)
        _settle(state, space, command.cdw12)
    except StorageError as error:
        raise _media_error(state, Status.WRITE_FAULT, error) from error
    return 0


def dataset_management(state: State, command: Command) -> int:
    """Execute Dataset Management: deallocate. Every range is checked before the first one is."""
    space = state.namespace(command.nsid)
    count = (command.cdw10 & 0xFF) + 1
    data = fetch(state.bus, command, count * _RANGE.size)
    extents = [_blocks(space, slba, blocks) for _, blocks, slba in _RANGE.iter_unpack(data)]
    if command.cdw11 & DEALLOCATE:
        try:
            for offset, size in extents:
                space.storage.discard(offset, size)
            _settle(state, space, 0)
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


def _settle(state: State, space: Namespace, cdw12: int) -> None:
    """Make a write durable before it completes, if the host asks for that."""
    if cdw12 & FORCE_UNIT_ACCESS or not state.features.write_cache:
        space.storage.flush()


def _media_error(state: State, status: Status, error: StorageError) -> CommandFailed:
    if error.errno == errno.ENOSPC:
        status = Status.CAPACITY_EXCEEDED
    state.health.media_errors += 1
    return CommandFailed(status, str(error))


IO_COMMANDS: dict[int, Handler] = {
    IoOpcode.FLUSH: flush,
    IoOpcode.WRITE: write,
    IoOpcode.READ: read,
    IoOpcode.COMPARE: compare,
    IoOpcode.WRITE_ZEROES: write_zeroes,
    IoOpcode.DATASET_MANAGEMENT: dataset_management,
}
