"""Fused commands: Compare and Write as one step (NVMe Base 2.0, 3.4.2; NVM Command Set 1.0, 2.1.2).

The first of a pair waits here, one for each submission queue, until the next command of its queue comes. That
nobody writes in between a namespace is served by Python alone from its first fused command on
(`Namespace.serialized`), and the pair is one call of its storage.
"""

from dataclasses import dataclass, field
from functools import partial

from outboard.devices.nvme.admission import WRITES, Access, Condition, admit
from outboard.devices.nvme.blocks import check_readable, extent, media_error, place_of, settle, written
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.metadata import Extent
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.protection import Prinfo, receive, verify
from outboard.devices.nvme.spec import IoOpcode
from outboard.devices.nvme.state import State
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.work import Call, Work
from outboard.errors import StorageError

FUSE, FIRST, SECOND = 0x3, 0x1, 0x2

FUSES = 1 << 0
"""Identify: Compare and Write is the pair there is."""


@dataclass(slots=True)
class Pair:
    """A fused pair, while it is executed: how each ended, if it is not with success."""

    first: Command
    second: Command
    failures: dict[int, CommandFailed] = field(default_factory=dict)


def check_first(command: Command) -> None:
    """Raise `CommandFailed` if the pair that begins with ``command`` cannot be."""
    if command.opcode != IoOpcode.COMPARE:
        raise CommandFailed(Status.INVALID_FIELD, "the first of a fused pair is Compare", location=1)


def compare_and_write(state: State, pair: Pair) -> Work:
    """Execute a pair: the write happens if the blocks hold what they are compared with.

    Failures are left in ``pair``, and how many they are is returned; nothing is raised but what is nobody's
    fault here.
    """
    first, second = pair.first, pair.second
    try:
        space = _namespace(state, pair)
        prinfo, made = Prinfo.of(space, first), Prinfo.of(space, second)
        prinfo.no_action()
        theirs, given = extent(state, space, first, prinfo), extent(state, space, second, made)
        check_readable(state, space, theirs.slba, theirs.blocks)
        place_of(state, first, theirs, prinfo, reading=False).fetch(state.bus, theirs)
        place_of(state, second, given, made, reading=False).fetch(state.bus, given)
        receive(given, made)
        failures: list[CommandFailed] = []
        step = partial(_compare_and_write, theirs, prinfo, given, failures)
        with space.writing(given.slba, given.blocks):
            yield Call(space.storage, space.alone(step))
            if failures:
                raise failures[0]
            written(state, space, given.slba, given.blocks)
            yield from settle(state, space, second.cdw12, given.slba, given.blocks)
    except StorageError as error:
        pair.failures = {0: media_error(state, Status.WRITE_FAULT, error)}
    except CommandFailed as failure:
        pair.failures = {0: failure}
    if pair.failures:
        pair.failures[1] = CommandFailed(Status.ABORTED_FAILED_FUSED, "the first of the pair has failed")
    return len(pair.failures)


def _namespace(state: State, pair: Pair) -> Namespace:
    """The namespace of both commands, which from now on is served by Python alone."""
    first, second = pair.first, pair.second
    space = state.namespace(first.nsid)
    if second.opcode != IoOpcode.WRITE:
        raise CommandFailed(Status.INVALID_FIELD, "the second of a fused pair is Write", location=1)
    if (second.nsid, second.slba, second.cdw12 & 0xFFFF) != (first.nsid, first.slba, first.cdw12 & 0xFFFF):
        raise CommandFailed(Status.INVALID_FIELD, "both of a fused pair name the same blocks", location=40)
    admit(state, first, Access.READ)
    admit(state, second, Access.WRITE)
    if not space.serialized:
        space.serialized = True
        state.subsystem.reconfigure(space.nsid)
    return space


def _compare_and_write(theirs: Extent, prinfo: Prinfo, given: Extent, failures: list[CommandFailed]) -> None:
    ours = Extent(theirs.space, theirs.slba, theirs.blocks)
    ours.load()
    try:
        verify(ours, prinfo)
    except CommandFailed as failure:
        failures.append(failure)
        return
    if ours.holds(theirs):
        given.store()
    else:
        failures.append(CommandFailed(Status.COMPARE_FAILURE, "the blocks hold something else"))


def _check(state: State, space: Namespace, command: Command, access: Access) -> None:
    """Nothing is in the way in Python: the writes wait for one another in `Namespace.alone`."""


SERIALIZED = Condition(_check, lambda state, space: WRITES if space.serialized else 0)
