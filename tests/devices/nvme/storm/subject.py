"""A subsystem with namespaces of every kind, which a storm of commands goes over."""

from outboard.devices.nvme import Namespace, PlacementLayout, Protection, RamPool, Subsystem, ZoneLayout
from outboard.storage import NullStorage, RamStorage, VolatileStorage
from tests.devices.nvme.storm.by_hand import ByHand

KIB = 1024
ZONE, ZONE_CAPACITY = 16 * KIB, 12 * KIB
MOST_NAMESPACES = 20
POOL = 1 << 20


class Threaded(RamStorage):
    """Memory that is called in a thread, as a storage that may block."""

    fast = None


def threaded() -> list[Namespace]:
    """Namespaces whose commands wait for their storage."""
    return [
        Namespace(Threaded(256 * KIB)),
        Namespace(Threaded(64 * KIB), 512, 8, tracked=True, protection=Protection(1)),
        Namespace(Threaded(8 * ZONE), zoned=ZoneLayout(ZONE, most_active=5, most_open=3)),
        Namespace(VolatileStorage(Threaded(64 * KIB)), 4096, 8, extended=True),
    ]


def plain() -> list[Namespace]:
    """Blocks of every format: with metadata apart and behind, with every type of protection, and tracked."""
    return [
        Namespace(RamStorage(256 * KIB)),
        Namespace(RamStorage(256 * KIB), 4096, shared=False),
        Namespace(RamStorage(64 * KIB), tracked=True, ana_group=2),
        Namespace(RamStorage(64 * KIB), 512, 8, protection=Protection(1)),
        Namespace(RamStorage(128 * KIB), 4096, 8, extended=True, protection=Protection(2)),
        Namespace(RamStorage(64 * KIB), 512, 16, protection=Protection(3, guard=64)),
        Namespace(RamStorage(128 * KIB), 4096, 64, extended=True, protection=Protection(1, True, 64)),
        Namespace(RamStorage(128 * KIB), 4096, 64, protection=Protection(2)),
        Namespace(RamStorage(64 * KIB), 512, 8, tracked=True),
        Namespace(RamStorage(64 * KIB), 512, 8, extended=True),
        Namespace(VolatileStorage(RamStorage(64 * KIB))),
        Namespace(NullStorage(1 << 28)),
    ]


def zoned() -> list[Namespace]:
    """Zones with limits, extensions and metadata, and with random write areas."""
    return [
        Namespace(
            RamStorage(8 * ZONE),
            zoned=ZoneLayout(ZONE, ZONE_CAPACITY, most_active=4, most_open=2, extension=64, cross_read=False),
        ),
        Namespace(
            RamStorage(8 * ZONE),
            4096,
            zoned=ZoneLayout(
                ZONE, ZONE_CAPACITY, 5, 3, zrwa=8 * KIB, zrwa_granularity=4 * KIB, zrwa_resources=2
            ),
        ),
        Namespace(RamStorage(9 * ZONE), 512, 8, tracked=True, zoned=ZoneLayout(ZONE)),
    ]


def placed() -> list[Namespace]:
    """Namespaces that have reclaim unit handles, and one that takes what there is."""
    return [
        Namespace(RamStorage(512 * KIB), placement_handles=(0, 1)),
        Namespace(RamStorage(512 * KIB), 4096, placement_handles=(2,)),
        Namespace(RamStorage(128 * KIB)),
    ]


def subsystem(*, with_zones: bool, in_threads: bool = False) -> Subsystem:
    """All of them: zones and data placement do not go together."""
    if in_threads:
        spaces = [*threaded(), *zoned()]
    else:
        spaces = [*plain(), *zoned()] if with_zones else [*placed(), Namespace(RamStorage(64 * KIB), 512, 8)]
    placement = None if with_zones or in_threads else PlacementLayout(handles=4, groups=2, unit=64 * KIB)
    made = Subsystem(*spaces, most_namespaces=MOST_NAMESPACES, pool=RamPool(POOL), placement=placement)
    if not in_threads:
        made.background = ByHand(made.turn, made.at_work)
    return made
