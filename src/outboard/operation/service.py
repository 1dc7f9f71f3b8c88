"""NVMe subsystems at work: what a configuration describes of them, made, served, changed, ended in order."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from outboard.device import DeviceContract
from outboard.devices.nvme import Namespace, Nvme, Subsystem
from outboard.errors import ConfigurationError, DefinitionError, OutboardError, RequestRefused
from outboard.operation.configuration import Configuration, SubsystemOptions
from outboard.operation.options import NamespaceOptions, ServedController
from outboard.server import Server


@dataclass(frozen=True, slots=True)
class ControllerServed:
    """A controller, the server of its socket, and what was said of both."""

    nvme: Nvme
    server: Server
    options: ServedController


@dataclass(slots=True)
class Served:
    """A subsystem that is served, by ``name``; its controllers by their identifiers."""

    name: str
    subsystem: Subsystem
    service: "Service"
    controllers: dict[int, ControllerServed] = field(default_factory=dict)

    def add_namespace(self, options: NamespaceOptions) -> int:
        """Open a namespace and add it; its identifier. Raises `OutboardError`, and nothing stays open."""
        space = options.open()
        try:
            return self.subsystem.add(space, options.nsid).nsid
        except BaseException:
            space.storage.close()
            raise

    def namespace(self, nsid: int) -> Namespace:
        """The namespace of that identifier. Raises `RequestRefused`."""
        if nsid not in self.subsystem.namespaces:
            raise no_namespace(self, nsid)
        return self.subsystem.namespaces[nsid]

    def controller(self, cntlid: int) -> ControllerServed:
        """The controller of that identifier. Raises `RequestRefused`."""
        if cntlid not in self.controllers:
            raise no_controller(self, cntlid)
        return self.controllers[cntlid]

    def remove_namespace(self, nsid: int) -> None:
        """Take a namespace away from every host, and close its storage; one that a host created is deleted.

        Raises `RequestRefused`.
        """
        space = self.namespace(nsid)
        self.subsystem.remove(nsid)
        if not space.created:  # the others are the pool's, which has deleted them
            space.storage.close()


class Service:
    """The subsystems of ``configuration``; every socket listens when the constructor returns.

    `start` begins to serve, `wait` returns when `stop` was called or nothing is served any more. A context
    manager that closes. Errors begin with ``source``, if there is one, and the place in it. Raises
    `OutboardError`, and then nothing stays behind.
    """

    def __init__(self, configuration: Configuration, source: str = "") -> None:
        self.subsystems: dict[str, Served] = {}
        self._ended: SimpleQueue[bool] = SimpleQueue()
        with ExitStack() as undo:
            undo.callback(self.close)
            for name, options in configuration.subsystem.items():
                self._open(name, options, source and f"{source}: subsystem.{name}")
            undo.pop_all()

    def named(self, name: str | None) -> Served:
        """The subsystem of that name, or the only one. Raises `RequestRefused`."""
        names = ", ".join(self.subsystems)
        if name is None and len(self.subsystems) == 1:
            return next(iter(self.subsystems.values()))
        if name is None:
            raise RequestRefused(f"which subsystem is meant? There are {names}")
        if name not in self.subsystems:
            raise RequestRefused(f"there is no subsystem {name[:60]!r}: there are {names}")
        return self.subsystems[name]

    def start(self) -> Self:
        """Serve, each socket in a thread of its own."""
        for served in self.subsystems.values():
            for controller in served.controllers.values():
                controller.server.start()
        return self

    def wait(self) -> None:
        """Return when `stop` was called, or when the last server has ended by itself."""
        while not self._ended.get():
            serving = list(self._serving())
            if serving and not any(serving):
                return

    def stop(self) -> None:
        """End `wait`; may be called from any thread and from a signal handler."""
        self._ended.put(True)

    def add_controller(self, served: Served, options: ServedController) -> int:
        """One more controller that listens; its identifier. Raises `OutboardError`."""
        nvme = options.open(served.subsystem)
        try:
            server = options.listen(nvme, self._server)
        except BaseException:
            nvme.close()
            raise
        cntlid = nvme.state.identity.cntlid
        served.controllers[cntlid] = ControllerServed(nvme, server, options)
        return cntlid

    def remove_controller(self, served: Served, cntlid: int) -> None:
        """Let a controller's client go, remove its socket and the controller. Not in the subsystem's turn.

        Raises `RequestRefused` if there is none.
        """
        with served.subsystem.turn:
            controller = served.controller(cntlid)
            del served.controllers[cntlid]
        controller.server.close()
        controller.nvme.close()

    def close(self) -> None:
        """End everything: clients are let go, sockets removed, storages closed. Harmless to repeat."""
        for served in self.subsystems.values():
            # All of them, before what they share goes.
            for controller in served.controllers.values():
                controller.server.close()
            for cntlid in list(served.controllers):
                self.remove_controller(served, cntlid)
            for space in served.subsystem.namespaces.values():
                if not space.created:
                    space.storage.close()
            if served.subsystem.pool is not None:
                served.subsystem.pool.close()
            served.subsystem.store.close()
        self.subsystems.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serving(self) -> Iterator[bool]:
        for served in self.subsystems.values():
            yield from (not each.server.loop.stopped for each in list(served.controllers.values()))

    def _open(self, name: str, options: SubsystemOptions, at: str) -> None:
        with naming(at):
            subsystem = options.open()
        served = self.subsystems[name] = Served(name, subsystem, self)
        # Those that say which one they are come first, so that nobody else takes that.
        for number, space in sorted(enumerate(options.namespace), key=lambda each: each[1].nsid == 0):
            with naming(at and f"{at}.namespace[{number}]", f"namespace {space.backend}"):
                served.add_namespace(space)
        for number, controller in enumerate(options.controller):
            with naming(at and f"{at}.controller[{number}]"):
                self.add_controller(served, controller)

    def _server(self, device: DeviceContract, *place: Any, **options: Any) -> Server:
        return _Ending(lambda: self._ended.put(False), device, *place, **options)


class _Ending(Server):
    """A server that tells when it has ended."""

    def __init__(self, ended: Callable[[], None], *arguments: Any, **options: Any) -> None:
        self._tell = ended
        super().__init__(*arguments, **options)

    def serve_forever(self) -> None:
        """As `Server`'s."""
        try:
            super().serve_forever()
        finally:
            self._tell()


@contextmanager
def naming(place: str, otherwise: str = "") -> Iterator[None]:
    """Have errors begin with where in the configuration they come from; what cannot be is the fault of that.

    Without a place that is ``otherwise``, for those that do not say by themselves what they are about.
    """
    try:
        yield
    except DefinitionError as error:
        about = place or otherwise
        raise ConfigurationError(f"{about}: {error.sentence}" if about else error.sentence) from error
    except OutboardError as error:
        if place:
            error.args = (f"{place}: {error.sentence}", *error.args[1:])
        raise


def no_namespace(served: Served, nsid: int) -> RequestRefused:
    """The error for an identifier that no namespace has."""
    there = ", ".join(map(str, sorted(served.subsystem.namespaces))) or "none"
    return RequestRefused(f"there is no namespace {nsid} in {served.name}: there is {there}")


def no_controller(served: Served, cntlid: int) -> RequestRefused:
    """The error for an identifier that no controller has."""
    there = ", ".join(map(str, sorted(served.controllers))) or "none"
    return RequestRefused(f"there is no controller {cntlid} in {served.name}: there is {there}")
