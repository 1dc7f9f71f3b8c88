"""What the commands that touch blocks have in common: which blocks, may they be read, are they durable.

NVM Command Set 1.0, 3.2.1.2 (deallocated blocks) and 3.2.7 (blocks that were made uncorrectable). While a
namespace has such blocks the data plane does not touch it: `BLOCK_STATES`.
"""

import errno
from collections.abc import Iterator
from functools import partial

from outboard.devices.nvme.admission import FLUSHES, READS, WRITES, Access, Condition
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.metadata import Extent, Place, find, make_durable
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.protection import Prinfo, verify
from outboard.devices.nvme.state import State
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.work import Call, flush_of
from outboard.errors import StorageError

FORCE_UNIT_ACCESS = 1 << 30

SLBA_LOCATION, NLB_LOCATION = 40, 48
"""Where in a command they are, in bytes."""


def extent(state: State, space: Namespace, command: Command, prinfo: Prinfo) -> Extent:
    """Return room for the blocks a data command names. Raises `CommandFailed`."""
    count = block_count(command)
    behind = prinfo.carried(space) if space.extended else 0
    if count * (space.block_size + behind) > state.limits.transfer:
        raise CommandFailed(
            Status.INVALID_FIELD, f"{count} blocks are more than MDTS allows", location=NLB_LOCATION
        )
    range_of(space, command.slba, count)
    return Extent(space, command.slba, count)


def place_of(state: State, command: Command, extent: Extent, prinfo: Prinfo, *, reading: bool) -> Place:
    """Find where in guest memory the blocks of a data command are. Raises `CommandFailed`."""
    carried = prinfo.carried(extent.space)
    return find(state.bus, command, extent.space, extent.blocks, carried, reading=reading)


def verify_stored(state: State, extent: Extent, prinfo: Prinfo) -> None:
    """Verify what storage gave: what does not pass was damaged there. Raises `CommandFailed`."""
    try:
        verify(extent, prinfo)
    except CommandFailed:
        state.health.media_errors += 1
        raise


def block_count(command: Command) -> int:
    """How many blocks a command names: NLB, which is zero based."""
    return (command.cdw12 & 0xFFFF) + 1


def range_of(space: Namespace, slba: int, count: int) -> tuple[int, int]:
    """Return offset and size, in bytes, of ``count`` blocks; raises `CommandFailed` (LBA Out of Range)."""
    if slba + count > space.blocks:
        raise CommandFailed(
            Status.LBA_OUT_OF_RANGE,
            f"blocks {slba:#x}..{slba + count:#x} of {space.blocks:#x}",
            location=SLBA_LOCATION,
        )
    return slba * space.block_size, count * space.block_size


def check_readable(state: State, space: Namespace, slba: int, count: int) -> None:
    """Raise `CommandFailed` if one of the blocks was made uncorrectable, or must not be read deallocated.

    Or if its zone cannot be read.
    """
    if space.zones is not None:
        space.zones.check_read(slba, count)
    bad = space.uncorrectable.first(slba, slba + count)
    if bad is not None:
        state.health.media_errors += 1
        raise CommandFailed(Status.UNRECOVERED_READ_ERROR, f"block {bad:#x} is uncorrectable", lba=bad)
    if space.deallocated is not None and state.features.reports_deallocated(space.nsid):
        unwritten = space.deallocated.first(slba, slba + count)
        if unwritten is not None:
            raise CommandFailed(
                Status.DEALLOCATED_OR_UNWRITTEN_BLOCK, f"block {unwritten:#x} is deallocated", lba=unwritten
            )


def written(state: State, space: Namespace, slba: int, count: int, identifier: int | None = None) -> None:
    """Blocks were written: whatever was wrong with them is not any more.

    ``identifier`` is where the host has placed them, if it has.
    """
    _mend(state, space, slba, count)
    if space.placed is not None and state.subsystem.placement is not None:
        state.subsystem.placement.write(space, space.placed, slba, count, identifier)


def _mend(state: State, space: Namespace, slba: int, count: int) -> None:
    if space.deallocated is not None:
        space.deallocated.remove(slba, slba + count)
    state.subsystem.uncorrectable.remove(space, slba, slba + count)


def deallocated(state: State, space: Namespace, slba: int, count: int) -> None:
    """Blocks were deallocated."""
    _mend(state, space, slba, count)
    if space.deallocated is not None:
        space.deallocated.add(slba, slba + count)
    if space.placed is not None and state.subsystem.placement is not None:
        state.subsystem.placement.discard(space, space.placed, slba, count)


def settle(
    state: State, space: Namespace, cdw12: int, slba: int = 0, blocks: int | None = None
) -> Iterator[Call]:
    """Make a write durable before it completes, if the host asks for that: these blocks, or everything.

    What there is to say of the blocks, too: they were `written` before.
    """
    if cdw12 & FORCE_UNIT_ACCESS or not state.features.write_cache:
        if blocks is None:
            yield flush_of(space.storage)
        else:
            yield Call(space.storage, partial(make_durable, space, slba, blocks))
        state.subsystem.uncorrectable.keep(space.nsid)


def media_error(state: State, status: Status, error: StorageError) -> CommandFailed:
    """How a command ends whose storage has failed."""
    if error.errno == errno.ENOSPC:
        status = Status.CAPACITY_EXCEEDED
    state.health.media_errors += 1
    return CommandFailed(status, str(error))


def _check(state: State, space: Namespace, command: Command, access: Access) -> None:
    """Commands look at the blocks themselves: only they know which."""


def _slow(state: State, space: Namespace) -> int:
    opcodes = WRITES | READS if space.uncorrectable else 0
    if state.subsystem.uncorrectable.is_unkept(space.nsid):
        opcodes |= FLUSHES
    if space.deallocated is not None:
        opcodes |= WRITES | (READS if state.features.reports_deallocated(space.nsid) else 0)
    return opcodes


BLOCK_STATES = Condition(_check, _slow)
