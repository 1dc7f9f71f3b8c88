"""Metrics for Prometheus, by its own conventions: every scrape reads `outboard.operation.statistics`.

Needs prometheus-client (the extra ``metrics``).
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from outboard.errors import SetupError
from outboard.operation.configuration import MetricsOptions
from outboard.operation.service import Service
from outboard.operation.statistics import ControllerStatistics, SubsystemStatistics, statistics_of

CONTROLLER = ("subsystem", "controller")
COUNTERS = {
    "interrupts": ("interrupts", "Interrupts sent."),
    "withheld": ("interrupts_withheld", "Interrupts not sent, because the host was still consuming."),
    "diverted": ("diverted_commands", "I/O commands that the compiled loop left to Python."),
    "sleeps": ("poller_sleeps", "How often a poller went to sleep."),
    "naps": ("poller_naps", "How often a poller napped between looks."),
}
"""What the data plane counts: the metric and its help."""
GAUGES = {
    "waiting": "Commands that wait in the submission queue.",
    "unconsumed": "Completions that the host has not consumed yet.",
    "entries": "Entries of the submission queue.",
}
"""What is told of each queue."""
QUEUE_COUNTERS = {
    "commands": ("commands", "Commands that the compiled loop took from the submission queue."),
    "bytes": ("bytes", "Bytes that it read and wrote for them."),
    "completions": ("completions", "Completions in the queue's completion queue."),
    "interrupts": ("interrupts", "Interrupts that this one sent."),
}
"""What is counted of each queue."""
NANOSECONDS = 1e9


class NvmeCollector(Collector):
    """Everything that is told of ``service``."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """The metrics, as they are now."""
        subsystems = statistics_of(self._service).subsystems
        controllers = [(each.name, controller) for each in subsystems for controller in each.controllers]
        yield from _commands(controllers)
        yield from _controllers(controllers)
        yield from _queues(controllers)
        yield from _namespaces(subsystems)


Controllers = list[tuple[str, ControllerStatistics]]


def _commands(controllers: Controllers) -> Iterator[Metric]:
    labels = (*CONTROLLER, "direction")
    commands = CounterMetricFamily(
        "outboard_nvme_commands", "Read and write commands completed.", labels=labels
    )
    moved = CounterMetricFamily("outboard_nvme_bytes", "Bytes read and written.", labels=labels)
    for name, each in controllers:
        place = (name, str(each.cntlid))
        commands.add_metric((*place, "read"), each.reads)
        commands.add_metric((*place, "write"), each.writes)
        moved.add_metric((*place, "read"), each.bytes_read)
        moved.add_metric((*place, "write"), each.bytes_written)
    yield commands
    yield moved


def _controllers(controllers: Controllers) -> Iterator[Metric]:
    for key, (metric, meaning) in COUNTERS.items():
        family = CounterMetricFamily(f"outboard_nvme_{metric}", meaning, labels=CONTROLLER)
        for name, each in controllers:
            family.add_metric((name, str(each.cntlid)), each.counters.get(key, 0))
        yield family
    errors = CounterMetricFamily("outboard_nvme_errors", "Entries in the error log.", labels=CONTROLLER)
    media = CounterMetricFamily(
        "outboard_nvme_media_errors", "Commands that storage failed.", labels=CONTROLLER
    )
    connected = GaugeMetricFamily("outboard_nvme_connected", "Whether a client is there.", labels=CONTROLLER)
    ready = GaugeMetricFamily("outboard_nvme_ready", "Whether the controller is ready.", labels=CONTROLLER)
    for name, each in controllers:
        place = (name, str(each.cntlid))
        errors.add_metric(place, each.errors)
        media.add_metric(place, each.media_errors)
        connected.add_metric(place, each.connected)
        ready.add_metric(place, each.state == "ready")
    yield from (errors, media, connected, ready)


def _queues(controllers: Controllers) -> Iterator[Metric]:
    for field, meaning in GAUGES.items():
        family = GaugeMetricFamily(f"outboard_nvme_queue_{field}", meaning, labels=(*CONTROLLER, "queue"))
        for name, each in controllers:
            for queue in each.queues:
                family.add_metric((name, str(each.cntlid), str(queue.id)), getattr(queue, field))
        yield family
    for field, (metric, meaning) in QUEUE_COUNTERS.items():
        counter = CounterMetricFamily(f"outboard_nvme_queue_{metric}", meaning, labels=(*CONTROLLER, "queue"))
        for name, each in controllers:
            for queue in each.queues:
                counter.add_metric((name, str(each.cntlid), str(queue.id)), getattr(queue, field))
        yield counter


def _namespaces(subsystems: tuple[SubsystemStatistics, ...]) -> Iterator[Metric]:
    labels = ("subsystem", "nsid")
    size = GaugeMetricFamily("outboard_nvme_namespace_size_bytes", "The namespace's size.", labels=labels)
    attached = GaugeMetricFamily("outboard_nvme_namespace_controllers", "Who has it attached.", labels=labels)
    for each in subsystems:
        for space in each.namespaces:
            size.add_metric((each.name, str(space.nsid)), space.size)
            attached.add_metric((each.name, str(space.nsid)), len(space.attached))
    yield from (size, attached)
    yield from _work(subsystems)


def _work(subsystems: tuple[SubsystemStatistics, ...]) -> Iterator[Metric]:
    """What is done with each namespace."""
    labels = ("subsystem", "nsid")
    prefix = "outboard_nvme_namespace"
    commands = CounterMetricFamily(
        f"{prefix}_commands", "Reads and writes completed.", labels=(*labels, "direction")
    )
    moved = CounterMetricFamily(f"{prefix}_bytes", "Bytes read and written.", labels=(*labels, "direction"))
    latency = CounterMetricFamily(
        f"{prefix}_latency_seconds", "How long the measured commands took together.", labels=labels
    )
    measured = CounterMetricFamily(
        f"{prefix}_measured_commands", "Commands whose time was measured: not every one is.", labels=labels
    )
    for each in subsystems:
        for space in each.namespaces:
            place = (each.name, str(space.nsid))
            commands.add_metric((*place, "read"), space.reads)
            commands.add_metric((*place, "write"), space.writes)
            moved.add_metric((*place, "read"), space.bytes_read)
            moved.add_metric((*place, "write"), space.bytes_written)
            latency.add_metric(place, space.latency_ns / NANOSECONDS)
            measured.add_metric(place, space.measured)
    yield from (commands, moved, latency, measured)


class MetricsServer:
    """Serves the metrics of ``service`` by HTTP, where ``options`` say; it does when the constructor returns.

    Raises `SetupError`.
    """

    def __init__(self, options: MetricsOptions, service: Service) -> None:
        registry = CollectorRegistry()
        registry.register(NvmeCollector(service))
        host, port = options.address
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SetupError(f"cannot listen on {options.listen}: {reason}") from error
        self.port: int = self._server.server_port

    def close(self) -> None:
        """End it. Harmless to repeat."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
