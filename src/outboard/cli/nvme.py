"""``outboard nvme``: an NVMe controller with any number of namespaces."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from outboard.cli.access import ANYONE, Access
from outboard.cli.data_plane import prepare_data_plane
from outboard.cli.foreground import serve_in_foreground
from outboard.cli.namespaces import controller, serial_of
from outboard.devices.nvme import Doorbells, Tuning
from outboard.devices.nvme.datapath.loop import serve
from outboard.native.jit import available
from outboard.server.profiles import ProfileName


def nvme(
    *,
    namespace: list[str],
    socket: Annotated[Path | None, Parameter(alias="--socket-path")] = None,
    fd: int | None = None,
    serial: str | None = None,
    vectors: int | None = None,
    doorbells: Doorbells = "auto",
    pollers: int | None = None,
    spin: int = Tuning.spin,
    nap: int = Tuning.longest_poll,
    profile: ProfileName = "auto",
    access: Access = ANYONE,
) -> None:
    """Serve an NVMe controller.

    It stays in the foreground until Ctrl-C or SIGTERM; what QEMU has to be told is printed at
    the start. What a guest flushed into a file is on the host's disk.

    **Examples**

    ```
    outboard nvme --socket /tmp/disk.sock --namespace ram:256M
    outboard nvme --socket /tmp/disk.sock --namespace disk.img --namespace null:1T,block_size=4096
    outboard nvme --socket /tmp/disk.sock --namespace new.img,size=8G --serial LAB-7
    ```

    Parameters
    ----------
    namespace
        BACKEND[,block_size=4096]: ram:SIZE, null:SIZE, a file or block device, or FILE,size=SIZE
        for a file to be created. Each use adds one namespace.
    socket
        The UNIX socket to listen on.
    fd
        Listen on this inherited descriptor instead; a connected one serves that one client.
    serial
        The controller's serial number, at most 20 characters of ASCII; two in one machine need different
        ones. Without it the number follows from the socket's path.
    vectors
        How many MSI-X vectors the controller has: the most a guest can spread its queues over. With 0
        it has MSI and INTx: QEMU up to 11.1 ends itself when a vfio-user device with MSI-X is unplugged.
    doorbells
        How the guest tells of new commands. shadow: in its own memory, silently while a poller looks, with
        a message only when that sleeps (needs a driver that can, as Linux's). mmap: in a page that the
        client maps and a poller looks at all the time. trapped: by messages only. auto: mmap for a client
        that knows no other way, as SPDK's driver; else shadow.
    pollers
        Threads that serve the queues, spread over them. 0: the thread that serves the socket does it.
        Without the option one, or none where Numba is not installed.
    spin
        Microseconds a poller looks for more before it naps, at most; it spins less when that is in vain.
    nap
        Microseconds between looks at mapped doorbells after a while without commands, at most.
    profile
        What clients are taken for. auto: what their first message says.
    access
        Who may connect.
    """
    if serial is None and socket is not None:
        serial = serial_of(socket)
    count = int(available()) if pollers is None else pollers
    if count:
        prepare_data_plane(serve)
    tuning = Tuning(pollers=count, spin=spin, longest_poll=nap)
    device = controller(namespace, serial=serial, vectors=vectors, doorbells=doorbells, tuning=tuning)
    title = f"serving an NVMe controller ({', '.join(namespace)})"
    serve_in_foreground(device, socket, fd, access=access, title=title, bootable=True, profile=profile)
