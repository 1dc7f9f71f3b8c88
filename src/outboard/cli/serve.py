"""``outboard serve``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def serve(
    device: str,
    /,
    *,
    socket: Annotated[Path | None, Parameter(alias="--socket-path")] = None,
    fd: int | None = None,
) -> None:
    """Serve the device that a Python file describes.

    Stays in the foreground until Ctrl-C or SIGTERM, takes one client after the other, and keeps the
    device's state between them.

    ## Examples

    ```
    outboard serve edu.py:Edu --socket /tmp/edu.sock
    outboard serve mylab.devices:Robot --fd 3
    ```

    Parameters
    ----------
    device
        FILE.py:Class, or package.module:Class; also a name of a ready-made object.
    socket
        Where to listen, a UNIX socket.
    fd
        An inherited descriptor to listen on instead, or of a connection.
    """
