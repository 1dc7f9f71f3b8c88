"""Zones whose descriptors have changed: the event and the log that tell of them, and who is told.

Zoned Namespace Command Set 1.1, 4.1.1 (asynchronous event) and 4.1.4.1 (Changed Zone List). Here the zones of
a namespace are also connected with the subsystem it belongs to, which keeps them over a power cycle.
"""

import logging
import struct
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from outboard.devices.nvme.command import Command
from outboard.devices.nvme.events import ZONE_CHANGED
from outboard.devices.nvme.namespace import Namespace
from outboard.devices.nvme.status import CommandFailed, Status
from outboard.devices.nvme.zone import Zone
from outboard.devices.nvme.zone_storage import ZonedStorage
from outboard.devices.nvme.zone_table import ZoneTable

if TYPE_CHECKING:
    from outboard.devices.nvme.state import State
    from outboard.devices.nvme.subsystem import Subsystem

log = logging.getLogger(__name__)

MOST_LISTED = 511
_TOO_MANY = 0xFFFF


def belong(subsystem: "Subsystem", space: Namespace) -> None:
    """Let the zones of a namespace that is added to a subsystem be kept there, and its hosts be told.

    Raises `SetupError` if what was kept cannot be taken back.
    """
    zones = space.zones
    if zones is None:
        return
    if subsystem.store.path is not None and isinstance(space.storage, ZonedStorage):
        path = subsystem.store.path
        table = ZoneTable(path.with_name(f"{path.name}.zones{space.nsid}"), zones, space.block_size)
        space.storage.table = table
        zones.keep = table.put
        space.storage.look()
    elif isinstance(space.storage, ZonedStorage):
        log.warning("namespace %d: its zones are forgotten with this process: give it a store", space.nsid)
    zones.lose_power()
    if space.deallocated is not None:
        for zone in zones.zones:
            space.deallocated.add(zone.written, zone.start + zones.geometry.size)
    zones.turn = subsystem.turn
    zones.told = partial(_tell, subsystem, space)
    zones.reached = partial(subsystem.reconfigure, space.nsid)


def part(space: Namespace) -> None:
    """The zones of a namespace are gone from the subsystem, and so is what was kept of them."""
    zones, storage = space.zones, space.storage
    if zones is None:
        return
    zones.turn, zones.keep, zones.told, zones.reached = nullcontext(), _nobody, _nobody, lambda: None
    if isinstance(storage, ZonedStorage) and storage.table is not None:
        table, storage.table = storage.table, None
        try:
            table.remove()
        except OSError as error:
            log.error("the zones of namespace %d are still kept: %s", space.nsid, error)


def _nobody(zone: Zone) -> None:
    """Whom a zone of no subsystem interests."""


def _tell(subsystem: "Subsystem", space: Namespace, zone: Zone) -> None:
    for state in subsystem.states_of(space.nsid):
        state.changed_zones.setdefault(space.nsid, {})[zone.start] = None
        state.report(replace(ZONE_CHANGED, detail=space.nsid))


def changed_zones(state: "State", command: Command) -> bytes:
    """The log of zones that have changed since it was read last."""
    if state.namespace(command.nsid).zones is None:
        raise CommandFailed(Status.INVALID_FIELD, f"namespace {command.nsid} has no zones", location=4)
    changed = state.changed_zones.get(command.nsid, {})
    listed = [] if len(changed) > MOST_LISTED else sorted(changed)
    head = struct.pack("<H6x", _TOO_MANY if len(changed) > MOST_LISTED else len(changed))
    return (head + struct.pack(f"<{len(listed)}Q", *listed)).ljust(4096, b"\0")
