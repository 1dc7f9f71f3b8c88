"""``outboard serve``: any device, from a file of its author."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from outboard.cli.access import ANYONE, Access
from outboard.cli.data_plane import prepare_data_plane
from outboard.cli.device_file import load_device
from outboard.cli.foreground import serve_in_foreground
from outboard.native.jit import ENTRIES
from outboard.server.profiles import ProfileName


def serve(
    device: str,
    /,
    *,
    socket: Annotated[Path | None, Parameter(alias="--socket-path")] = None,
    fd: int | None = None,
    profile: ProfileName = "auto",
    access: Access = ANYONE,
) -> None:
    """Serve a device that a Python file describes.

    It stays in the foreground until Ctrl-C or SIGTERM, takes one client after the other and
    keeps the device's state between them. What QEMU has to be told is printed at the start.

    **Examples**

    ```
    outboard serve edu.py:Edu --socket /tmp/edu.sock
    outboard serve mylab.devices:Robot --fd 3
    ```

    Parameters
    ----------
    device
        FILE.py:Class or package.module:Class. A class is instantiated, a function called.
        Where a file has one device class, FILE.py is enough.
    socket
        The UNIX socket to listen on.
    fd
        Listen on this inherited descriptor instead; a connected one serves that one client.
    profile
        What clients are taken for. auto: what their first message says.
    access
        Who may connect.
    """
    known = len(ENTRIES)
    served = load_device(device)
    # What the file brought is compiled now, not while a client waits.
    prepare_data_plane(*ENTRIES[known:])
    title = f"serving {type(served).__name__}"
    serve_in_foreground(served, socket, fd, access=access, title=title, profile=profile)
