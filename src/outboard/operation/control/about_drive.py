"""The drive as a thing: how it is, whether it has power, where data is placed on its medium."""

from dataclasses import dataclass
from typing import Annotated

from outboard.devices.nvme.placement import OF_CONTROLLER, UNUSED
from outboard.devices.nvme.vitals import Vitals
from outboard.errors import RequestRefused
from outboard.operation.control.method import Functions
from outboard.operation.declared import Between
from outboard.operation.service import Served

Seed = Annotated[
    int, Between(0, (1 << 53) - 1), "Chooses what a volatile: back end keeps of what was not flushed."
]
Percent = Annotated[int | None, Between(0, 100)]


@dataclass(frozen=True, kw_only=True)
class VitalsOptions:
    """How a drive is from now on; what is left out stays.

    Parameters
    ----------
    temperature
        Kelvins.
    spare
        Spare blocks that are left, in percent.
    spare_threshold
        The least of them there should be, in percent: below it hosts are warned.
    percentage_used
        Wear in percent of the expected life, which may be more than 100.
    unreliable
        A critical warning: the media cannot be relied on.
    read_only
        A critical warning: the media can only be read, and writes fail.
    backup_failed
        A critical warning: the backup of volatile memory has failed.
    persistent_memory_failed
        A critical warning: persistent memory can only be read, or is unreliable.
    """

    temperature: Annotated[int | None, Between(0, 0xFFFF)] = None
    spare: Percent = None
    spare_threshold: Percent = None
    percentage_used: Annotated[int | None, Between(0, 255)] = None
    unreliable: bool | None = None
    read_only: bool | None = None
    backup_failed: bool | None = None
    persistent_memory_failed: bool | None = None


@dataclass(frozen=True, slots=True)
class HandleShown:
    """A reclaim unit handle. ``used_by``: hosts that name it, the controller for the others, or nobody."""

    handle: int
    used_by: str
    bytes_written: int


@dataclass(frozen=True, slots=True)
class PlacementShown:
    """Bytes that hosts have written, that the medium has (write amplification), and that it has erased."""

    groups: int
    unit: int
    host_bytes: int
    media_bytes: int
    erased_bytes: int
    handles: tuple[HandleShown, ...]


def get_health(served: Served) -> Vitals:
    """Tell how the drive is: what hosts see as SMART."""
    return served.subsystem.vitals


def set_health(served: Served, vitals: VitalsOptions) -> Vitals:
    """Say how the drive is. Hosts are told of critical warnings; wear outlives a power cycle."""
    served.subsystem.set_vitals(**{name: value for name, value in vars(vitals).items() if value is not None})
    return served.subsystem.vitals


def cut_power(served: Served, seed: Seed = 0) -> None:
    """Cut the power of all controllers, and give it back: commands vanish, and what was in a volatile cache.

    Hosts are to be killed, or reset, at the same moment.
    """
    served.subsystem.power_cut(seed)


def show_placement(served: Served) -> PlacementShown:
    """Tell of data placement (FDP) what was written, and by which handles."""
    placement = served.subsystem.placement
    if placement is None:
        raise RequestRefused(f"{served.name} has no data placement: it is configured as placement")
    return PlacementShown(
        groups=placement.layout.groups,
        unit=placement.layout.unit,
        host_bytes=placement.host_bytes,
        media_bytes=placement.media_bytes,
        erased_bytes=placement.erased_bytes,
        handles=tuple(
            HandleShown(
                number,
                {UNUSED: "nobody", OF_CONTROLLER: "controller"}.get(handle.use, "hosts"),
                handle.bytes_written,
            )
            for number, handle in enumerate(placement.handles)
        ),
    )


FUNCTIONS: Functions = {
    "health.get": get_health,
    "health.set": set_health,
    "placement.show": show_placement,
    "power.cut": cut_power,
}
