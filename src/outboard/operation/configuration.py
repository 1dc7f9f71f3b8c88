"""The configuration file: one TOML document that describes subsystems and how they are operated.

::

    [subsystem.main]
    serial = "LAB-7"

    [[subsystem.main.namespace]]
    backend = "disk.img,size=8G"

    [[subsystem.main.controller]]
    socket = "/run/outboard/disk.sock"

    [control]
    socket = "/run/outboard/control.sock"

Paths are taken from the working directory, as on the command line.
"""

import hashlib
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from outboard.devices.nvme import Store, Subsystem, open_pool
from outboard.errors import ConfigurationError, SetupError
from outboard.operation.declared import Between, Misfit, build
from outboard.operation.options import NamespaceOptions, PlacementOptions, ServedController, SocketOptions

DEFAULT_LISTEN = "127.0.0.1:9100"
LISTEN = re.compile(r"(?:\[([0-9a-fA-F:]+)\]|([^:\[\]]*)):([0-9]{1,5})")


@dataclass(frozen=True, kw_only=True)
class SubsystemOptions:
    """A subsystem: namespaces, and the controllers by which they are reached.

    Parameters
    ----------
    serial
        The serial number, at most 20 characters of ASCII; two in one machine need different ones. Without it
        the number follows from the first controller's socket.
    model
        The model number, at most 40 characters of ASCII.
    state
        A file that keeps what outlives a power cycle; it is made if it is not there. Without it that is
        forgotten when the process ends. One process at a time may use it: FILE.lock beside it is locked.
    pool
        Where namespaces come from that hosts create: ram:SIZE, or FOLDER,size=SIZE for files in a folder.
        What was created before comes back, if there is a state file too. One process at a time may use a
        folder.
    placement
        Hosts may say which data belongs together (FDP).
    multipath
        Hosts are told from the start that there may be several controllers; they ask only once. Without it
        they are told as soon as there are.
    most_namespaces
        The largest namespace identifier there can be.
    namespace
        Its namespaces.
    controller
        Its controllers, each on a socket of its own.
    """

    serial: str | None = None
    model: str = "outboard NVMe"
    state: str | None = None
    pool: str | None = None
    placement: PlacementOptions | None = None
    multipath: bool = False
    most_namespaces: Annotated[int, Between(1, 1024)] = 32
    namespace: tuple[NamespaceOptions, ...] = ()
    controller: tuple[ServedController, ...] = ()

    @property
    def derived_serial(self) -> str:
        """The serial number where none is given."""
        first = next((each.socket for each in self.controller if each.socket is not None), None)
        return serial_of(Path(first)) if first is not None else "OUTBOARD0001"

    def open(self) -> Subsystem:
        """The subsystem, with what hosts have created before, and no controller. Raises `OutboardError`."""
        pool = open_pool(self.pool) if self.pool is not None else None
        try:
            return Subsystem(
                serial=self.serial or self.derived_serial,
                model=self.model,
                most_namespaces=self.most_namespaces,
                multipath=self.multipath,
                store=Store(Path(self.state)) if self.state is not None else None,
                pool=pool,
                placement=self.placement.layout() if self.placement is not None else None,
            )
        except BaseException:
            if pool is not None:
                pool.close()
            raise


@dataclass(frozen=True, kw_only=True)
class ControlOptions(SocketOptions):
    """The control socket.

    Parameters
    ----------
    socket
        Where it is.
    socket_mode
        Permission bits of the socket's file in octal; whoever may connect may do everything.
    """

    socket: str
    socket_mode: str | None = "600"


@dataclass(frozen=True, kw_only=True)
class MetricsOptions:
    """Metrics for Prometheus, by HTTP.

    Parameters
    ----------
    listen
        HOST:PORT to listen on; without a host every address of the machine, with port 0 a free port.
    """

    listen: str = DEFAULT_LISTEN

    @property
    def address(self) -> tuple[str, int]:
        """Host and port. Raises `ConfigurationError`.

        >>> MetricsOptions(listen="[::1]:9100").address
        ('::1', 9100)
        """
        found = LISTEN.fullmatch(self.listen)
        if found is None or int(found[3]) > 0xFFFF:
            raise ConfigurationError(
                f"metrics.listen is {self.listen!r}: write HOST:PORT, as {DEFAULT_LISTEN}"
            )
        return found[1] or found[2] or "0.0.0.0", int(found[3])


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Everything: subsystems by their names, and how they are operated.

    Parameters
    ----------
    subsystem
        The subsystems, by name.
    control
        Without it there is no control socket.
    metrics
        Without it there are no metrics.
    """

    subsystem: dict[str, SubsystemOptions] = field(default_factory=dict)
    control: ControlOptions | None = None
    metrics: MetricsOptions | None = None


def read_configuration(path: Path) -> Configuration:
    """What the file says. Raises `SetupError`: the file, the key, the value and what there may be."""
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    return configuration_of(document, str(path))


def configuration_of(document: dict[str, Any], source: str) -> Configuration:
    """What a document says; ``source`` is its name, for errors. Raises `ConfigurationError`."""
    try:
        found: Configuration = build(Configuration, document)
        for problem in _problems(found):
            raise Misfit(problem)
    except Misfit as error:
        raise ConfigurationError(f"{source}: {error}") from error
    return found


def _problems(found: Configuration) -> Iterator[str]:
    """What each value by itself does not show."""
    if not found.subsystem:
        yield "there is no subsystem: begin with [subsystem.main]"
    sockets = Counter([found.control.socket] if found.control else [])
    serials, states, pools = Counter[str](), Counter[str](), Counter[str]()
    for name, subsystem in found.subsystem.items():
        at = f"subsystem.{name}"
        if not subsystem.controller:
            yield f"{at} has no controller: add [[{at}.controller]] with a socket"
        for number, controller in enumerate(subsystem.controller):
            if (controller.socket is None) == (controller.fd is None):
                yield f"{at}.controller[{number}] needs a place to listen on: give one of socket and fd"
            if controller.socket is not None:
                sockets[controller.socket] += 1
        if subsystem.state is not None:
            states[str(Path(subsystem.state).resolve())] += 1
        serials[subsystem.serial or subsystem.derived_serial] += 1
        if subsystem.pool is not None and not subsystem.pool.startswith("ram:"):
            pools[subsystem.pool.rpartition(",size=")[0]] += 1
    for what, counted in (("socket", sockets), ("serial", serials), ("state", states), ("pool", pools)):
        for value, count in counted.items():
            if count > 1:
                yield f"{what} {value!r} is there {count} times: each one needs its own"


def serial_of(socket: Path) -> str:
    """A serial number that belongs to a socket: the same after a restart, another for another socket.

    >>> serial_of(Path("/run/disk.sock"))
    'OB2F3765DDCD12'
    """
    return "OB" + hashlib.sha256(str(socket.resolve()).encode()).hexdigest()[:12].upper()
