"""File descriptors that ride on messages: taken out of a recvmsg, and closed.

UNIX sockets carry them as ancillary data (SCM_RIGHTS, unix(7)); server and client treat it alike.
"""

import array
import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress

MAX_DESCRIPTORS = 253
"""What Linux lets one message carry (SCM_MAX_FD): room for peers that send more than we said we take."""
ANCILLARY = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
"""Bytes of ancillary data that recvmsg has to have room for."""


def received(ancillary: Sequence[tuple[int, int, bytes]]) -> tuple[int, ...]:
    """The descriptors in what recvmsg gave as ancillary data; they are the caller's."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return tuple(fds)


def close_all(fds: Iterable[int]) -> None:
    """Closes every one of `fds`, also when some are closed already."""
    for fd in fds:
        with suppress(OSError):
            os.close(fd)
