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

from outboard.errors import SetupError
from outboard.operation.declared import Between, Misfit, build
from outboard.operation.options import NamespaceOptions, ServedController, SocketOptions

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
        forgotten when the process ends.
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
    most_namespaces: Annotated[int, Between(1, 1024)] = 32
    namespace: tuple[NamespaceOptions, ...] = ()
    controller: tuple[ServedController, ...] = ()

    @property
    def derived_serial(self) -> str:
        """The serial number where none is given."""
        first = next((each.socket for each in self.controller if each.socket is not None), None)
        return serial_of(Path(first)) if first is not None else "OUTBOARD0001"


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
        """Host and port. Raises `SetupError`.

        >>> MetricsOptions(listen="[::1]:9100").address
        ('::1', 9100)
        """
        found = LISTEN.fullmatch(self.listen)
        if found is None or int(found[3]) > 0xFFFF:
            raise SetupError(f"metrics.listen is {self.listen!r}: write HOST:PORT, as {DEFAULT_LISTEN}")
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
        raise SetupError(f"{path} is not TOML: {error}") from error
    return configuration_of(document, str(path))


def configuration_of(document: dict[str, Any], source: str) -> Configuration:
    """What a document says; ``source`` is its name, for errors. Raises `SetupError`."""
    try:
        found: Configuration = build(Configuration, document)
        for problem in _problems(found):
            raise Misfit(problem)
    except Misfit as error:
        raise SetupError(f"{source}: {error}") from error
    return found


def _problems(found: Configuration) -> Iterator[str]:
    """What each value by itself does not show."""
    if not found.subsystem:
        yield "there is no subsystem: begin with [subsystem.main]"
    sockets = Counter([found.control.socket] if found.control else [])
    serials: Counter[str] = Counter()
    for name, subsystem in found.subsystem.items():
        at = f"subsystem.{name}"
        if not subsystem.controller:
            yield f"{at} has no controller: add [[{at}.controller]] with a socket"
        for number, controller in enumerate(subsystem.controller):
            if (controller.socket is None) == (controller.fd is None):
                yield f"{at}.controller[{number}] needs a place to listen on: give one of socket and fd"
            if controller.socket is not None:
                sockets[controller.socket] += 1
        serials[subsystem.serial or subsystem.derived_serial] += 1
    for what, counted in (("socket", sockets), ("serial", serials)):
        for value, count in counted.items():
            if count > 1:
                yield f"{what} {value!r} is there {count} times: each one needs its own"


def serial_of(socket: Path) -> str:
    """A serial number that belongs to a socket: the same after a restart, another for another socket.

    >>> serial_of(Path("/run/disk.sock"))
    'OB2F3765DDCD12'
    """
    return "OB" + hashlib.sha256(str(socket.resolve()).encode()).hexdigest()[:12].upper()
