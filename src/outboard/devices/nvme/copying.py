"""Copy: blocks go from up to 128 ranges to one place, without the host's memory (NVM Command Set 1.0, 3.2.2).

Descriptor formats 0 and 1 copy within the namespace, 2 and 3 name the namespace of each range; a host has to
enable the latter (Host Behavior Support). Formats 1 and 3 are for namespaces with large guards. Every range
is checked before the first block is copied; what is not copied completely is told in dword 0. What is read is
verified as each range says, what is written as the command does, or gets new protection information.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from outboard.devices.nvme.admission import Access, admit
from outboard.devices.nvme.blocks import (
    check_readable,
    media_error,
    range_of,
    settle,
    verify_stored,
    written,
)
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.command_set import CHANGES_BLOCKS, IoCommand
from outboard.devices.nvme.datapath.protect import ACTION
from outboard.devices.nvme.metadata import Extent
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.protection import Prinfo, receive
from outboard.devices.nvme.spec import IoOpcode
from outboard.devices.nvme.state import State
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import fetch
from outboard.devices.nvme.work import Call, Work
from outboard.errors import StorageError

MOST_RANGES = 128
MOST_BLOCKS_OF_RANGE = 2048
MOST_BLOCKS = 32768
"""MSRC, MSSRL and MCL: a copy in memory is made in one go, while the other commands wait."""

FORMATS_OFFERED = 0b1111
"""OCFS: descriptor formats 0 to 3."""

AT_ONCE = 1 << 20
"""Bytes that are on their way at a time."""

_READ_PROTECTION, _PROTECTION = 12, 0xF
"""Where PRINFOR begins in dword 12, and its bits."""

_SHORT = struct.Struct("<I4xQH6x4sHH")
_LONG = struct.Struct("<I4xQH12x6sHH")


@dataclass(frozen=True, slots=True)
class _Source:
    """A range to copy from."""

    space: Namespace
    slba: int
    count: int
    prinfo: Prinfo


def copy(state: State, command: Command) -> Work:
    """Execute Copy."""
    space = state.namespace(command.nsid)
    prinfo = Prinfo.of(space, command)
    sources = _sources(state, space, command, prinfo)
    target = command.slba
    total = sum(source.count for source in sources)
    range_of(space, target, total)
    for number, source in enumerate(sources):
        try:
            _check_source(state, space, target, sources, source)
        except CommandFailed as failure:
            failure.result = number
            raise
    with space.writing(target, total):
        for number, source in enumerate(sources):
            try:
                yield from _copy(state, space, target, source, prinfo.behind(space, target - command.slba))
            except CommandFailed as failure:
                failure.result = number
                raise
            target += source.count
        try:
            yield from settle(state, space, command.cdw12)
        except StorageError as error:
            raise media_error(state, Status.WRITE_FAULT, error) from error
    return 0


def _sources(state: State, space: Namespace, command: Command, prinfo: Prinfo) -> list[_Source]:
    """The ranges the host names: enough of them to be checked, not more than there can be."""
    kind, count = command.cdw12 >> 8 & 0xF, (command.cdw12 & 0xFF) + 1
    if kind > 3 or (kind > 1 and not state.features.copies_across(kind)):
        raise CommandFailed(
            Status.INVALID_FIELD, f"copy descriptors of format {kind} are not enabled", location=49
        )
    if count > MOST_RANGES:
        raise CommandFailed(
            Status.COMMAND_SIZE_LIMIT_EXCEEDED, f"{count} ranges: {MOST_RANGES} can be", location=48
        )
    layout = _LONG if kind & 1 else _SHORT
    if space.protection is not None and (space.protection.guard == 64) != (kind & 1):
        raise CommandFailed(
            Status.INVALID_FORMAT,
            f"descriptors of format {kind} do not fit guards of {space.protection.guard} bits",
        )
    info = command.cdw12 >> _READ_PROTECTION & _PROTECTION
    if space.protection is not None and bool(info & ACTION) != prinfo.action:
        raise CommandFailed(Status.INVALID_FIELD, "PRACT is for both, or for neither", location=49)
    sources = []
    for nsid, slba, blocks, *tags in layout.iter_unpack(fetch(state.bus, command, count * layout.size)):
        other = state.namespace(nsid) if kind > 1 else space
        reference, application, mask = int.from_bytes(tags[0], "big" if kind & 1 else "little"), *tags[1:]
        wanted = Prinfo(bool(info & ACTION), info & ~ACTION, application, mask, reference)
        sources.append(_Source(other, slba, blocks + 1, wanted if other.protection else Prinfo()))
    if any(source.count > MOST_BLOCKS_OF_RANGE for source in sources):
        raise CommandFailed(
            Status.COMMAND_SIZE_LIMIT_EXCEEDED, f"a range has {MOST_BLOCKS_OF_RANGE} blocks at most"
        )
    if sum(source.count for source in sources) > MOST_BLOCKS:
        raise CommandFailed(Status.COMMAND_SIZE_LIMIT_EXCEEDED, f"a copy has {MOST_BLOCKS} blocks at most")
    return sources


def _check_source(
    state: State, space: Namespace, target: int, sources: list[_Source], source: _Source
) -> None:
    other = source.space
    _check_other(state, space, other)
    range_of(other, source.slba, source.count)
    end = target + sum(each.count for each in sources)
    if other is space and source.slba < end and target < source.slba + source.count:
        raise CommandFailed(Status.OVERLAPPING_IO_RANGE, "a source is part of the destination")
    source.prinfo.check(other, source.slba)
    check_readable(state, other, source.slba, source.count)


def _check_other(state: State, space: Namespace, other: Namespace) -> None:
    """Raise `CommandFailed` if ``other`` is none that ``space`` can have blocks from, or is not any more."""
    if state.namespace(other.nsid) is not other:
        raise CommandFailed(Status.INVALID_NAMESPACE, f"namespace {other.nsid} is another one meanwhile")
    if (other.format, other.protection) != (space.format, space.protection):
        raise CommandFailed(
            Status.INCOMPATIBLE_NAMESPACE_OR_FORMAT,
            f"namespaces {other.nsid} and {space.nsid} have blocks of different formats",
        )
    if other is not space:
        admit(state, Command(IoOpcode.READ, nsid=other.nsid), Access.READ)


def _copy(state: State, space: Namespace, target: int, source: _Source, prinfo: Prinfo) -> Iterator[Call]:
    """Copy one range, a piece at a time."""
    step = max(1, AT_ONCE // space.block_size)
    for done in range(0, source.count, step):
        count = min(step, source.count - done)
        # A command is aborted with its own namespace only: the other one may be formatted, or taken away.
        _check_other(state, space, source.space)
        there, here = Extent(source.space, source.slba + done, count), Extent(space, target + done, count)
        try:
            yield Call(there.space.storage, there.load)
        except StorageError as error:
            raise media_error(state, Status.UNRECOVERED_READ_ERROR, error) from error
        _check_other(state, space, source.space)
        verify_stored(state, there, source.prinfo.behind(there.space, done))
        here.data, here.metadata = there.data, there.metadata
        receive(here, prinfo.behind(space, done))
        try:
            yield Call(space.storage, space.alone(here.store))
        except StorageError as error:
            raise media_error(state, Status.WRITE_FAULT, error) from error
        written(state, space, target + done, count)


COMMANDS: dict[int, IoCommand] = {IoOpcode.COPY: IoCommand(copy, Access.WRITE, CHANGES_BLOCKS)}
