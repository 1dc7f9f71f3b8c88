"""A whole configuration, running: the subsystems, the control socket, the metrics."""

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from outboard.errors import SetupError
from outboard.operation.configuration import Configuration, MetricsOptions
from outboard.operation.control.methods import METHODS
from outboard.operation.control.rpc import Dispatcher
from outboard.operation.control.server import ControlServer
from outboard.operation.service import Service, naming


class Running:
    """Everything that ``configuration`` describes; all of it listens when the constructor returns.

    `start` begins to serve. A context manager that closes. Raises `OutboardError` that begins with
    ``source``, if there is one, and the place in it; then nothing stays behind.
    """

    def __init__(self, configuration: Configuration, source: str = "") -> None:
        self.control: ControlServer | None = None
        self.metrics_port = 0
        with ExitStack() as stack:
            self.service = service = stack.enter_context(Service(configuration, source))
            if (options := configuration.control) is not None:
                procedures = {
                    name: lambda params, method=method: method(service, params)
                    for name, method in METHODS.items()
                }
                with naming(source and f"{source}: control"):
                    self.control = stack.enter_context(ControlServer(options, Dispatcher(procedures)))
            if configuration.metrics is not None:
                with naming(source and f"{source}: metrics"):
                    self.metrics_port = _serve_metrics(configuration.metrics, service, stack)
            self._stack = stack.pop_all()

    def start(self) -> Self:
        """Serve."""
        self.service.start()
        if self.control is not None:
            self.control.start()
        return self

    def close(self) -> None:
        """End everything. Harmless to repeat."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve_metrics(options: MetricsOptions, service: Service, stack: ExitStack) -> int:
    """Serve them until ``stack`` is closed; the port."""
    try:
        from outboard.operation.metrics import MetricsServer
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("outboard"):
            raise
        raise SetupError("metrics need prometheus-client: pip install 'outboard[metrics]'") from missing
    server = MetricsServer(options, service)
    stack.callback(server.close)
    return server.port
