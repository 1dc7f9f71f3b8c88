"""Blocks that cannot be read: Get LBA Status, the log that says where they are, the event that tells of them.

NVM Command Set 1.0, 4.2.1 (Get LBA Status), 4.1.4 (LBA Status Information log) and 5.8 (potentially
unrecoverable blocks). They are the blocks that a host has made uncorrectable and nobody has written since:
all of them are known, so that there is nothing that a scan would find beside.
"""

import struct
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import TYPE_CHECKING
from zlib import crc32

from outboard.devices.nvme import ana
from outboard.devices.nvme.command import Command
from outboard.devices.nvme.events import LBA_STATUS_ALERT
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.spec import FeatureId
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.transfer import deliver

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State
    from outboard.devices.nvme.subsystem import Subsystem

SCAN, TRACKED = 0x10, 0x11
"""Action types: look for blocks that are not known yet, too; or tell of known ones only."""

TRUNCATED, COMPLETE = 1, 2
"""Completion conditions: the host had no room for all, or all were found."""

MOST_RANGES = 1024
"""Ranges of a namespace that the log has; of one with more it says only that there are many."""

INTERVAL_UNIT = 0.1
"""Seconds in which the report interval is counted."""

_MANY = _MOST_BLOCKS = 0xFFFF_FFFF
_LIST, _BLOCKS = struct.Struct("<IB3x"), struct.Struct("<QIxBxx")
_LOG, _NAMESPACE, _RANGE = struct.Struct("<III2xH"), struct.Struct("<IIB7x"), struct.Struct("<QI4x")


class LbaStatusLog:
    """What one controller has told of such blocks.

    ``generation`` changes when the log has changed since it was read last. ``untold``: there is something to
    tell, which has to wait until the interval that the host has set has passed.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.digest = 0
        self.untold = False
        self._told_at = float("-inf")

    def forget(self) -> None:
        """The controller was reset: nothing is to be told any more."""
        self.untold = False
        self._told_at = float("-inf")

    def read(self, ranges: bytes) -> int:
        """The generation of a log that has these ranges."""
        digest = crc32(ranges)
        if digest != self.digest:
            self.generation, self.digest = (self.generation + 1) & 0xFFFF, digest
        return self.generation

    def save(self) -> dict[str, int]:
        """All of it, as JSON."""
        return {"generation": self.generation, "digest": self.digest, "untold": int(self.untold)}

    def restore(self, saved: Mapping[str, int]) -> None:
        """Take back what `save` gave. Raises KeyError, ValueError, TypeError."""
        self.generation, self.digest = int(saved["generation"]) & 0xFFFF, int(saved["digest"])
        self.untold = bool(saved["untold"])

    def may_tell(self, interval: float) -> bool:
        """Whether the host may be told now, if there is something; it is then."""
        now = monotonic()
        if not self.untold or now - self._told_at < interval:
            return False
        self.untold, self._told_at = False, now
        return True


def lost(subsystem: "Subsystem", space: Namespace) -> None:
    """More blocks of a namespace cannot be read."""
    for state in subsystem.states_of(space.nsid):
        state.lba_status.untold = True
        tell(state)


def tell(state: "State") -> None:
    """Tell the host that blocks were lost, if they were, and it was not told only just now."""
    interval = state.features.get(FeatureId.LBA_STATUS_ATTRIBUTES) * INTERVAL_UNIT
    if state.lba_status.may_tell(interval):
        state.report(LBA_STATUS_ALERT)


def get_lba_status(state: "State", command: Command) -> int:
    """Execute Get LBA Status: which blocks of a range cannot be read."""
    space = state.namespace(command.nsid)
    ana.require_access(state, space)
    room, action = (command.cdw12 + 1) * 4, command.cdw13 >> 24
    if action not in (SCAN, TRACKED):
        raise CommandFailed(Status.INVALID_FIELD, f"there is no action type {action:#x}", location=55)
    if room > state.limits.transfer:
        raise CommandFailed(
            Status.INVALID_FIELD, f"{room} bytes of descriptors are more than MDTS allows", location=48
        )
    blocks = command.cdw13 & 0xFFFF or space.blocks - command.slba
    if command.slba >= space.blocks or command.slba + blocks > space.blocks:
        raise CommandFailed(
            Status.LBA_OUT_OF_RANGE,
            f"block {command.slba:#x} + {blocks:#x} of {space.blocks:#x}",
            location=40,
        )
    found, condition = bytearray(), COMPLETE
    for start, count in _ranges(space, command.slba, command.slba + blocks):
        if _LIST.size + len(found) + _BLOCKS.size > room:
            condition = TRUNCATED
            break
        found += _BLOCKS.pack(start, count, 0)
    page = _LIST.pack(len(found) // _BLOCKS.size, condition) + found
    deliver(state.bus, command, page[:room])
    return 0


def log(state: "State", command: Command) -> bytes:
    """Return the LBA Status Information log: where such blocks are in the namespaces of the controller."""
    page, total, named = b"", 0, 0
    for nsid, space in sorted(state.namespaces.items()):
        if not space.uncorrectable or not ana.reachable(state, space):
            continue
        named, total = named + 1, total + space.uncorrectable.total
        if len(space.uncorrectable) > MOST_RANGES:
            page += _NAMESPACE.pack(nsid, _MANY, SCAN)
            continue
        ranges = list(_ranges(space, 0, space.blocks))
        page += _NAMESPACE.pack(nsid, len(ranges), TRACKED)
        page += b"".join(_RANGE.pack(*each) for each in ranges)
    generation = state.lba_status.read(page)
    return _LOG.pack(_LOG.size + len(page), named, min(total, _MOST_BLOCKS), generation) + page


def _ranges(space: Namespace, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """First blocks and numbers of the ranges between two blocks that cannot be read."""
    for run in space.uncorrectable.within(begin, end):
        for start in range(*run, _MOST_BLOCKS):
            yield start, min(run[1] - start, _MOST_BLOCKS)
