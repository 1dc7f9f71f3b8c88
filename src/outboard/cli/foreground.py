"""Serving in the foreground, as back-end programs do: until Ctrl-C or SIGTERM, then a clean end."""

import resource
import signal
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from outboard.cli.access import Access
from outboard.cli.log import log_to_stderr
from outboard.cli.qemu_command import device_argument, shell
from outboard.device import DeviceContract
from outboard.errors import SetupError
from outboard.server import Server
from outboard.server.profiles import ProfileName
from outboard.testing.guest.command_line import Attach


def serve_in_foreground(
    device: DeviceContract,
    socket: Path | None,
    fd: int | None,
    *,
    access: Access,
    title: str,
    bootable: bool = False,
    profile: ProfileName = "auto",
) -> None:
    """Serve ``device`` on one of ``socket`` and ``fd``; print how QEMU is attached; return when ended.

    Raises:
        SetupError: neither or both were given, or the socket cannot be listened on.
    """
    if (socket is None) == (fd is None):
        raise SetupError("a device needs a place to listen on: give one of --socket PATH and --fd N")
    log_to_stderr()
    allow_descriptors()
    server = Server(device, socket, fd=fd, profile=profile, **access.options())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    with server:
        announce(title, [socket], bootable)
        server.serve_forever()


def allow_descriptors() -> None:
    """As many descriptors as we may have at all: the usual 1024 are for programs that call select()."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def announce(title: str, places: Sequence[Path | None], bootable: bool) -> None:
    """Say what is served, and what to paste behind QEMU's command; a place that is None is a descriptor."""
    console = Console(highlight=False, soft_wrap=True)
    sockets = [place for place in places if place is not None]
    where = [str(place or "an inherited descriptor") for place in places]
    console.print(f"[bold]{escape(title)}[/] on {escape(', '.join(where))}; Ctrl-C ends it")
    if not sockets:
        return
    console.print("[dim]QEMU 10.1 or newer attaches it with (2G: the size of the guest's memory)[/]")
    lines = [
        ["-machine", "q35,memory-backend=mem", "-m", "2G"],
        ["-object", "memory-backend-memfd,id=mem,size=2G,share=on"],
    ]
    for number, socket in enumerate(sockets):
        # Root ports are told apart by their chassis, of which the first may go unsaid.
        chassis = f",chassis={number}" if number else ""
        attached = Attach(socket.resolve(), bootindex=number + 1 if bootable else None)
        lines += [
            ["-device", f"pcie-root-port,id=rp{number}{chassis}"],
            ["-device", device_argument(attached, f"dev{number}", f"rp{number}")],
        ]
    console.print(" \\\n".join("  " + shell(line) for line in lines), markup=False)
