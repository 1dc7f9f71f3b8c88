"""The zones of a namespace: how they are, and how they fail."""

from dataclasses import dataclass
from typing import Annotated, Literal

from outboard.devices.nvme.zone import Zone, ZoneState
from outboard.devices.nvme.zone_layout import MOST_ZONES
from outboard.devices.nvme.zones import Zones
from outboard.errors import RequestRefused
from outboard.operation.control.method import Functions
from outboard.operation.declared import Between
from outboard.operation.service import Served

MOST_TOLD = 4096

Nsid = Annotated[int, Between(1, 0xFFFF_FFFE), "The namespace."]
Number = Annotated[int, Between(0, MOST_ZONES - 1), "The zone; they count from 0."]
First = Annotated[int, Between(0, MOST_ZONES - 1), "The first one to tell."]
Count = Annotated[int, Between(1, MOST_TOLD), "How many to tell, at most."]
Failed = Annotated[
    Literal["read_only", "offline"], "read_only: it can only be read; offline: nothing is left of it."
]


@dataclass(frozen=True, slots=True)
class ZoneShown:
    """A zone; ``start`` and ``pointer`` are logical blocks, ``capacity`` is how many can be written."""

    zone: int
    state: str
    start: int
    capacity: int
    pointer: int


def list_them(served: Served, nsid: Nsid, first: First = 0, count: Count = 64) -> list[ZoneShown]:
    """Tell the zones of a namespace."""
    return [_shown(zone) for zone in _zones(served, nsid).zones[first : first + count]]


def set_state(served: Served, nsid: Nsid, zone: Number, state: Failed) -> ZoneShown:
    """Let a zone fail; hosts are told by the changed zone list."""
    zones = _zones(served, nsid)
    zones.set_state(zone, ZoneState[state.upper()])
    return _shown(zones.zones[zone])


def recommend_reset(served: Served, nsid: Nsid, zone: Number) -> None:
    """Tell hosts that a full zone should be reset soon."""
    _zones(served, nsid).recommend_reset(zone)


def _zones(served: Served, nsid: int) -> Zones:
    zones = served.namespace(nsid).zones
    if zones is None:
        raise RequestRefused(f"namespace {nsid} has no zones: it was not configured as zoned")
    return zones


def _shown(zone: Zone) -> ZoneShown:
    return ZoneShown(zone.number, zone.state.name.lower(), zone.start, zone.end - zone.start, zone.pointer)


FUNCTIONS: Functions = {
    "zone.list": list_them,
    "zone.set_state": set_state,
    "zone.recommend_reset": recommend_reset,
}
