"""Verify and Write Uncorrectable (NVM Command Set 1.0, 3.2.6 and 3.2.7): no data moves in either.

Both take as many blocks as a command can name (VSL and WUSL are 0: no limit of their own).
"""

from functools import partial

from outboard.devices.nvme.admission import Access
from outboard.devices.nvme.blocks import (
    block_count,
    check_readable,
    keep_uncorrectable,
    media_error,
    range_of,
)
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.command_set import CHANGES_BLOCKS, IoCommand
from outboard.devices.nvme.spec import IoOpcode
from outboard.devices.nvme.state import State
from outboard.devices.nvme.status import Status
from outboard.devices.nvme.work import Call, Work
from outboard.errors import StorageError

AT_ONCE = 1 << 20
"""Bytes read at a time: a command that names 65536 blocks must not make us allocate for all of them."""


def verify(state: State, command: Command) -> Work:
    """Execute Verify: read the blocks, and give them to nobody."""
    space = state.namespace(command.nsid)
    offset, size = range_of(space, command.slba, block_count(command))
    check_readable(state, space, command.slba, block_count(command))
    buffer = memoryview(bytearray(min(size, AT_ONCE)))
    try:
        for at in range(0, size, AT_ONCE):
            part = buffer[: min(AT_ONCE, size - at)]
            yield Call(space.storage, partial(space.storage.readinto, offset + at, part))
    except StorageError as error:
        raise media_error(state, Status.UNRECOVERED_READ_ERROR, error) from error
    return 0


def write_uncorrectable(state: State, command: Command) -> int:
    """Execute Write Uncorrectable: until they are written, the blocks cannot be read."""
    space = state.namespace(command.nsid)
    range_of(space, command.slba, block_count(command))
    with space.writing(command.slba, block_count(command)):
        space.uncorrectable.add(command.slba, command.slba + block_count(command))
    if space.deallocated is not None:
        space.deallocated.remove(command.slba, command.slba + block_count(command))
    keep_uncorrectable(state, space)
    return 0


COMMANDS: dict[int, IoCommand] = {
    IoOpcode.VERIFY: IoCommand(verify, Access.READ),
    IoOpcode.WRITE_UNCORRECTABLE: IoCommand(write_uncorrectable, Access.WRITE, CHANGES_BLOCKS),
}
