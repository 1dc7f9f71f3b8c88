"""What carries a client's messages: a UNIX socket, or anything with the same four methods."""

import array
import os
import select
import socket
import time
from collections.abc import Sequence
from typing import Protocol

from outboard.descriptors import ANCILLARY, received
from outboard.errors import ConnectionLost, PeerTimeout

RECEIVE_BYTES = 128 << 10


class Transport(Protocol):
    """Moves bytes and descriptors to a server and back."""

    def send(self, data: bytes, fds: Sequence[int] = (), timeout: float | None = None) -> None:
        """Sends all of `data`; `fds` (which stay the caller's) ride on its first byte.

        Raises ConnectionLost, and PeerTimeout when the server has not taken it within `timeout` seconds.
        """

    def receive(self, timeout: float | None) -> tuple[bytes, Sequence[int]]:
        """What has arrived, waiting for it up to `timeout` seconds; the descriptors are the caller's.

        Raises PeerTimeout, and ConnectionLost when the server has gone.
        """

    def wait(self, fd: int, timeout: float) -> bool:
        """Waits up to `timeout` seconds for `fd` to be readable (False) or something to arrive (True)."""

    def close(self) -> None:
        """Ends the connection."""


class SocketTransport:
    """A `Transport` over a connected UNIX stream socket, which it owns."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setblocking(True)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def fileno(self) -> int:
        """The socket's descriptor, to wait for."""
        return self._socket.fileno()

    @classmethod
    def connect(cls, path: str | os.PathLike[str], timeout: float = 0.0) -> "SocketTransport":
        """Connects to the server at `path`, trying again for up to `timeout` seconds while none listens."""
        deadline = time.monotonic() + timeout
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                connection.connect(os.fspath(path))
                return cls(connection)
            except OSError as error:
                connection.close()
                if time.monotonic() >= deadline:
                    raise ConnectionLost(f"no server at {path}: {error.strerror}; is it running?") from error
                time.sleep(0.01)

    def send(self, data: bytes, fds: Sequence[int] = (), timeout: float | None = None) -> None:
        """Sends all of `data`, in one call where the socket takes it; see `Transport.send`."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        deadline = None if timeout is None else time.monotonic() + timeout
        if timeout != self._socket.gettimeout():
            self._socket.settimeout(timeout)
        try:
            sent = self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            while sent < len(data):
                if deadline is not None:  # for all of it: a server may take a byte now and then
                    self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
                sent += self._socket.send(memoryview(data)[sent:], socket.MSG_NOSIGNAL)
        except TimeoutError as error:
            raise PeerTimeout(
                f"the server has not taken the {len(data)} bytes of a message within {timeout:g} s"
            ) from error
        except OSError as error:
            raise ConnectionLost(f"the server has gone: {error.strerror}") from error

    def receive(self, timeout: float | None) -> tuple[bytes, Sequence[int]]:
        """What has arrived; see `Transport.receive`."""
        if not self._poll.poll(None if timeout is None else max(0.0, timeout) * 1000):
            raise PeerTimeout(f"the server sent nothing for {timeout:g} s")
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                RECEIVE_BYTES, ANCILLARY, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise ConnectionLost(f"the connection broke: {error.strerror}") from error
        fds = received(ancillary)
        if not data or flags & socket.MSG_CTRUNC:
            for fd in fds:
                os.close(fd)
            raise ConnectionLost(
                "the server sent more descriptors than fit" if data else "the server has gone"
            )
        return data, fds

    def wait(self, fd: int, timeout: float) -> bool:
        """Waits for `fd` or for the server; see `Transport.wait`."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._socket, select.POLLIN)
        return any(ready == self._socket.fileno() for ready, _ in poll.poll(timeout * 1000))

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()
