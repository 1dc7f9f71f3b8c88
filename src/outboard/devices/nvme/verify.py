"""Verify and Write Uncorrectable (NVM Command Set 1.0, 3.2.6 and 3.2.7): no data moves in either.

Both take as many blocks as a command can name (VSL and WUSL are 0: no limit of their own).
"""

from outboard.devices.nvme import lba_status
from outboard.devices.nvme.admission import Access
from outboard.devices.nvme.blocks import (
    block_count,
    check_readable,
    media_error,
    range_of,
    verify_stored,
)
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.command_set import CHANGES_BLOCKS, IoCommand
from outboard.devices.nvme.metadata import Extent
from outboard.devices.nvme.protection import Prinfo
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
    prinfo = Prinfo.of(space, command)
    prinfo.no_action()
    blocks = block_count(command)
    range_of(space, command.slba, blocks)
    check_readable(state, space, command.slba, blocks)
    step = AT_ONCE // space.block_size
    for done in range(0, blocks, step):
        part = Extent(space, command.slba + done, min(step, blocks - done))
        try:
            yield Call(space.storage, part.load)
        except StorageError as error:
            raise media_error(state, Status.UNRECOVERED_READ_ERROR, error) from error
        verify_stored(state, part, prinfo.behind(space, done))
    return 0


def write_uncorrectable(state: State, command: Command) -> int:
    """Execute Write Uncorrectable: until they are written, the blocks cannot be read."""
    space = state.namespace(command.nsid)
    range_of(space, command.slba, block_count(command))
    start, end = command.slba, command.slba + block_count(command)
    uncorrectable = state.subsystem.uncorrectable
    with space.writing(start, end - start):
        uncorrectable.add(space, start, end)
    if space.deallocated is not None:
        space.deallocated.remove(start, end)
    if not state.features.write_cache:
        uncorrectable.keep(space.nsid)
    lba_status.lost(state.subsystem, space)
    return 0


COMMANDS: dict[int, IoCommand] = {
    IoOpcode.VERIFY: IoCommand(verify, Access.READ),
    IoOpcode.WRITE_UNCORRECTABLE: IoCommand(write_uncorrectable, Access.WRITE, CHANGES_BLOCKS),
}
