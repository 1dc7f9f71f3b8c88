"""``outboard nvme``: NVMe subsystems, as flags or a file describe them."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from outboard.cli.access import ANYONE, Access
from outboard.cli.data_plane import prepare_data_plane
from outboard.cli.foreground import allow_descriptors, announce
from outboard.cli.log import log_to_stderr
from outboard.devices.nvme.datapath.loop import serve
from outboard.devices.nvme.protection import protect_blocks
from outboard.errors import ConfigurationError
from outboard.operation import Configuration, Running, read_configuration
from outboard.operation.configuration import ControlOptions, MetricsOptions, SubsystemOptions
from outboard.operation.declared import Misfit, build
from outboard.operation.options import ControllerOptions, NamespaceOptions, ServedController
from outboard.server.profiles import ProfileName

Controller = Annotated[ControllerOptions, Parameter(name="*", group=Group("The controller"))]
USUAL = ControllerOptions()


def nvme(
    *,
    namespace: list[str] | None = None,
    socket: Annotated[Path | None, Parameter(alias="--socket-path")] = None,
    fd: int | None = None,
    serial: str | None = None,
    state: str | None = None,
    pool: str | None = None,
    placement: str | None = None,
    config: Path | None = None,
    control: Path | None = None,
    metrics: str | None = None,
    profile: ProfileName = "auto",
    controller: Controller = USUAL,
    access: Access = ANYONE,
) -> None:
    """Serve NVMe controllers.

    It stays in the foreground until Ctrl-C or SIGTERM; what QEMU has to be told is printed at
    the start. What a guest flushed into a file is on the host's disk. One controller is described
    by flags; a file describes several, and subsystems, with the same names.

    **Examples**

    ```
    outboard nvme --socket /tmp/disk.sock --namespace ram:256M
    outboard nvme --socket /tmp/disk.sock --namespace disk.img --namespace null:1T,block_size=4096
    outboard nvme --socket /tmp/disk.sock --namespace new.img,size=8G --serial LAB-7
    outboard nvme --config disks.toml --control /tmp/control.sock --metrics 127.0.0.1:9100
    ```

    Parameters
    ----------
    namespace
        BACKEND[,block_size=4096]: ram:SIZE, null:SIZE, a file or block device, or FILE,size=SIZE
        for a file to be created, volatile:BACKEND for one with a write cache that a power cut loses; then
        whatever a namespace has in the file. Each use adds one namespace.
    socket
        The UNIX socket to listen on.
    fd
        Listen on this inherited descriptor instead; a connected one serves that one client.
    serial
        The controller's serial number, at most 20 characters of ASCII; two in one machine need different
        ones. Without it the number follows from the socket's path.
    state
        A file that keeps what outlives a power cycle; it is made if it is not there. One process at a time
        may use it.
    pool
        Where namespaces come from that hosts create: ram:SIZE, or FOLDER,size=SIZE for files in a folder.
    placement
        handles=8,groups=1,unit=96M, or some of that: hosts may say which data belongs together (FDP).
    config
        A TOML file that describes subsystems, their namespaces and controllers, instead of flags.
    control
        Listen for `outboard ctl` and `outboard top` on this UNIX socket; only its owner may connect.
    metrics
        HOST:PORT: tell Prometheus by HTTP what was counted.
    profile
        What clients are taken for. auto: what their first message says.
    controller
        The controller.
    access
        Who may connect.
    """
    if config is None:
        source = ""
        place = {"socket": None if socket is None else str(socket), "fd": fd, "profile": profile}
        traits = {"serial": serial, "state": state, "pool": pool, "placement": placement}
        described = of_flags(namespace, traits, vars(controller) | vars(access) | place)
    elif (namespace, socket, fd, serial, state, pool, placement, profile, controller, access) == (
        *(None, None, None, None, None, None, None, "auto"),
        USUAL,
        ANYONE,
    ):
        source, described = str(config), read_configuration(config)
    else:
        raise ConfigurationError(
            f"{config} describes everything but --control and --metrics: give no other flag"
        )
    run(with_flags(described, control, metrics), source)


def of_flags(
    namespace: list[str] | None, traits: dict[str, Any], controller: dict[str, Any]
) -> Configuration:
    """A subsystem of these ``traits`` with one controller. Raises `ConfigurationError`."""
    if not namespace and traits["pool"] is None:
        raise ConfigurationError("there is nothing to serve: give --namespace BACKEND, or --config FILE")
    spaces = tuple(map(NamespaceOptions.of_text, namespace or ()))
    most = max(SubsystemOptions.most_namespaces, len(spaces))
    try:
        served = build(ServedController, controller)
        subsystem = build(SubsystemOptions, {**traits, "most_namespaces": most})
    except Misfit as error:
        raise ConfigurationError(str(error)) from error
    if (served.socket is None) == (served.fd is None):
        raise ConfigurationError("a device needs a place to listen on: give one of --socket PATH and --fd N")
    return Configuration(subsystem={"main": replace(subsystem, namespace=spaces, controller=(served,))})


def with_flags(described: Configuration, control: Path | None, metrics: str | None) -> Configuration:
    """The same, with what the flags say of operation instead of what the file does."""
    return Configuration(
        subsystem=described.subsystem,
        control=described.control if control is None else ControlOptions(socket=str(control)),
        metrics=described.metrics if metrics is None else MetricsOptions(listen=metrics),
    )


def run(described: Configuration, source: str) -> None:
    """Serve until a signal ends it; ``source`` is the file's name."""
    controllers = [each for subsystem in described.subsystem.values() for each in subsystem.controller]
    if any(each.tuning.pollers for each in controllers):
        spaces = [each for subsystem in described.subsystem.values() for each in subsystem.namespace]
        prepare_data_plane(serve, *([protect_blocks] if any(each.pi for each in spaces) else []))
    log_to_stderr()
    allow_descriptors()
    with Running(described, source) as running:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: running.service.stop())
        for name, subsystem in described.subsystem.items():
            backends = ", ".join(each.backend for each in subsystem.namespace) or "no namespace"
            title = f"serving an NVMe controller ({backends})"
            if source:
                title = f"serving {name}: NVMe ({backends})"
            places = [None if each.socket is None else Path(each.socket) for each in subsystem.controller]
            announce(title, places, bootable=True)
        if described.control is not None:
            print(f"outboard ctl --socket {described.control.socket}", flush=True)
        if running.metrics_port:
            print(f"metrics on port {running.metrics_port}", flush=True)
        running.start()
        running.service.wait()
