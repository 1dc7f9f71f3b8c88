"""What the control socket says of subsystems, namespaces and controllers."""

from dataclasses import dataclass

from outboard.devices.nvme import Namespace
from outboard.devices.nvme.spec import WriteProtection
from outboard.operation.service import ControllerServed, Served
from outboard.operation.statistics import state_of
from outboard.storage import Storage


@dataclass(frozen=True, slots=True)
class NamespaceShown:
    """A namespace; sizes are bytes, ``attached`` are the controllers that have it; 0 ``zones``: not zoned.

    ``created`` says whether a host did that, from the pool; ``protection`` is that against writes.
    """

    nsid: int
    storage: str
    size: int
    block_size: int
    metadata: int
    shared: bool
    zones: int
    ana_group: int
    protection: str
    created: bool
    attached: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ControllerShown:
    """A controller. ``place`` is where it is served, ``state`` is off, ready or failed."""

    cntlid: int
    place: str
    connected: bool
    state: str
    namespaces: tuple[int, ...]
    io_queues: int
    vectors: int


@dataclass(frozen=True, slots=True)
class SubsystemShown:
    """A subsystem, whole; of its pool, bytes, all of them and those that are free."""

    name: str
    serial: str
    model: str
    nqn: str
    pool: int
    pool_free: int
    namespaces: tuple[NamespaceShown, ...]
    controllers: tuple[ControllerShown, ...]


def storage_name(storage: Storage) -> str:
    """What people call a storage, whatever is around it."""
    while (below := getattr(storage, "below", None)) is not None:
        storage = below
    return str(getattr(storage, "name", type(storage).__name__))


def namespace_shown(space: Namespace) -> NamespaceShown:
    """What is said of a namespace."""
    return NamespaceShown(
        nsid=space.nsid,
        storage=storage_name(space.storage),
        size=space.blocks * space.block_size,
        block_size=space.block_size,
        metadata=space.metadata,
        shared=space.shared,
        zones=len(space.zones.zones) if space.zones is not None else 0,
        ana_group=space.ana_group,
        protection=WriteProtection(space.write_protection).name.lower(),
        created=bool(space.created),
        attached=tuple(sorted(space.attached)),
    )


def controller_shown(served: ControllerServed) -> ControllerShown:
    """What is said of a controller."""
    state = served.nvme.state
    return ControllerShown(
        cntlid=state.identity.cntlid,
        place=served.options.place,
        connected=served.server.connected,
        state=state_of(served.nvme),
        namespaces=tuple(sorted(state.namespaces)),
        io_queues=sum(1 for sq in state.submission if sq),
        vectors=state.limits.vectors,
    )


def subsystem_shown(served: Served) -> SubsystemShown:
    """What is said of a subsystem."""
    pool = served.subsystem.pool
    return SubsystemShown(
        name=served.name,
        serial=served.subsystem.serial,
        model=served.subsystem.model,
        nqn=served.subsystem.nqn,
        pool=pool.capacity if pool is not None else 0,
        pool_free=pool.free if pool is not None else 0,
        namespaces=tuple(namespace_shown(space) for _, space in sorted(served.subsystem.namespaces.items())),
        controllers=tuple(controller_shown(each) for _, each in sorted(served.controllers.items())),
    )
