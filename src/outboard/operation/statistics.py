"""What has been counted, and how full queues are now: of each subsystem, controller, queue and namespace.

Counters only grow while the process lives. `outboard top`, the control socket and the metrics all read this.
"""

import time
from dataclasses import dataclass

from outboard.devices.nvme import Namespace, Nvme
from outboard.operation.service import ControllerServed, Served, Service

SUMMED = ("reads", "writes", "bytes_read", "bytes_written", "measured", "latency_ns")
"""What is added up of a namespace, over its controllers."""
COUNTED_OF_QUEUES = ("depth", "commands", "bytes", "completions", "interrupts")


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """A submission queue: commands that wait in it, and completions of its completion queue not consumed yet.

    ``compiled`` says whether the data plane serves it; the admin queue, 0, is never. ``depth`` is how many
    commands it has, with those under way. ``commands`` and ``bytes`` are those of the data plane,
    ``completions`` and ``interrupts`` those of the completion queue.
    """

    id: int
    completion_queue: int
    entries: int
    waiting: int
    unconsumed: int
    vector: int
    compiled: bool
    depth: int
    commands: int
    bytes: int
    completions: int
    interrupts: int


@dataclass(frozen=True, slots=True)
class ControllerStatistics:
    """A controller. ``counters`` are the data plane's and its pollers', by their names."""

    cntlid: int
    connected: bool
    state: str
    reads: int
    writes: int
    bytes_read: int
    bytes_written: int
    media_errors: int
    errors: int
    counters: dict[str, int]
    queues: tuple[QueueStatistics, ...]


@dataclass(frozen=True, slots=True)
class NamespaceStatistics:
    """A namespace: its size in bytes, the controllers that have it, and what those there are now did with it.

    ``latency_ns`` is how long those commands took together of which that was ``measured``, ``longest_ns`` the
    longest of them (see `outboard.devices.nvme.datapath.plane.DataPlane.namespace_statistics`).
    """

    nsid: int
    size: int
    attached: tuple[int, ...]
    reads: int
    writes: int
    bytes_read: int
    bytes_written: int
    measured: int
    latency_ns: int
    longest_ns: int


@dataclass(frozen=True, slots=True)
class SubsystemStatistics:
    """A subsystem."""

    name: str
    controllers: tuple[ControllerStatistics, ...]
    namespaces: tuple[NamespaceStatistics, ...]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Everything, at ``time`` (seconds of a clock that never goes back)."""

    time: float
    subsystems: tuple[SubsystemStatistics, ...]


def statistics_of(service: Service) -> Statistics:
    """What there is to be told now; of each subsystem in its turn."""
    return Statistics(time.monotonic(), tuple(map(_subsystem, list(service.subsystems.values()))))


def state_of(nvme: Nvme) -> str:
    """How a controller is: off, ready, or failed (CSTS.CFS)."""
    return "failed" if nvme.fatal else "ready" if nvme.ready else "off"


def _subsystem(served: Served) -> SubsystemStatistics:
    with served.subsystem.turn:
        controllers = tuple(_controller(cntlid, each) for cntlid, each in sorted(served.controllers.items()))
        counted = [each.nvme.plane.namespace_statistics() for each in served.controllers.values()]
        namespaces = tuple(
            _namespace(space, [each[nsid] for each in counted if nsid in each])
            for nsid, space in sorted(served.subsystem.namespaces.items())
        )
    return SubsystemStatistics(served.name, controllers, namespaces)


def _namespace(space: Namespace, counted: list[dict[str, int]]) -> NamespaceStatistics:
    """``counted`` is what each controller has counted, under the namespace's number."""
    total = {name: sum(each[name] for each in counted) for name in SUMMED}
    return NamespaceStatistics(
        nsid=space.nsid,
        size=space.blocks * space.block_size,
        attached=tuple(sorted(space.attached)),
        longest_ns=max((each["longest_ns"] for each in counted), default=0),
        **total,
    )


def _controller(cntlid: int, served: ControllerServed) -> ControllerStatistics:
    state = served.nvme.state
    reads, writes, bytes_read, bytes_written = state.health.totals
    counted = served.nvme.plane.queue_statistics()
    return ControllerStatistics(
        cntlid=cntlid,
        connected=served.server.connected,
        state=state_of(served.nvme),
        reads=reads,
        writes=writes,
        bytes_read=bytes_read,
        bytes_written=bytes_written,
        media_errors=state.health.media_errors,
        errors=state.errors.count,
        counters=served.nvme.statistics,
        queues=tuple(
            QueueStatistics(
                id=sq.id,
                completion_queue=sq.cq.id,
                entries=sq.size,
                waiting=sq.waiting,
                unconsumed=sq.cq.used,
                vector=sq.cq.vector,
                compiled=sq.fast,
                **{name: counted.get(sq.id, {}).get(name, 0) for name in COUNTED_OF_QUEUES},
            )
            for _, sq in sorted(state.submission.items())
        ),
    )
