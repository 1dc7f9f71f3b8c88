"""What carries a client's messages: a UNIX socket, or anything with the same four methods."""

import array
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from outboard.descriptors import ANCILLARY, received
from outboard.errors import ConnectionLost, PeerTimeout

RECEIVE_BYTES = 128 << 10
SEND_FLAGS = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


class Transport(Protocol):
    """Moves bytes and descriptors to a server and back."""

    def send(self, data: bytes, fds: Sequence[int] = (), timeout: float | None = None) -> None:
        """Sends all of `data`; `fds` (which stay the caller's) ride on its first byte.

        Raises ConnectionLost, and PeerTimeout when the server has not taken it within `timeout` seconds.
        """

    def receive(self, timeout: float | None) -> tuple[bytes, Sequence[int]]:
        """What has arrived, waiting for it up to `timeout` seconds; the descriptors are the caller's.

        No bytes came if something beside was served (`serve_beside`). Raises PeerTimeout, and
        ConnectionLost when the server has gone.
        """

    def wait(self, fd: int, timeout: float) -> bool:
        """Waits up to `timeout` seconds for `fd` to be readable (False) or something to arrive (True)."""

    def serve_beside(self, fd: int, serve: Callable[[], None]) -> None:
        """Calls `serve` whenever `fd` is readable while we wait, also for room to send; -1: no more."""

    def close(self) -> None:
        """Ends the connection."""


class SocketTransport:
    """A `Transport` over a connected UNIX stream socket, which it owns."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setblocking(True)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._beside = -1
        self._serve: Callable[[], None] = lambda: None

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
        left = memoryview(data)
        try:
            while left:
                try:
                    sent = self._socket.sendmsg([left], ancillary, SEND_FLAGS)
                except BlockingIOError:
                    # For all of it: a server may take a byte now and then.
                    rest = None if deadline is None else deadline - time.monotonic()
                    if rest is not None and rest <= 0:
                        raise TimeoutError from None
                    self._await_room(rest)
                    continue
                left, ancillary = left[sent:], []
        except TimeoutError as error:
            raise PeerTimeout(
                f"the server has not taken the {len(data)} bytes of a message within {timeout:g} s"
            ) from error
        except OSError as error:
            raise ConnectionLost(f"the server has gone: {error.strerror}") from error

    def receive(self, timeout: float | None) -> tuple[bytes, Sequence[int]]:
        """What has arrived; see `Transport.receive`."""
        ready = self._poll.poll(None if timeout is None else max(0.0, timeout) * 1000)
        if not ready:
            raise PeerTimeout(f"the server sent nothing for {timeout:g} s")
        # The last answer of a server that goes counts for more than the end of what is beside.
        if all(fd == self._beside for fd, _ in ready):
            self._serve()
            return b"", ()
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
        if self._beside >= 0:
            poll.register(self._beside, select.POLLIN)
        return any(ready != fd for ready, _ in poll.poll(timeout * 1000))

    def serve_beside(self, fd: int, serve: Callable[[], None]) -> None:
        """Calls `serve` whenever `fd` is readable; see `Transport.serve_beside`."""
        if self._beside >= 0:
            self._poll.unregister(self._beside)
        self._beside, self._serve = fd, serve
        if fd >= 0:
            self._poll.register(fd, select.POLLIN)

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def _await_room(self, timeout: float | None) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        if self._beside >= 0:
            poll.register(self._beside, select.POLLIN)
        ready = poll.poll(None if timeout is None else timeout * 1000)
        if not ready:
            raise TimeoutError
        if any(fd == self._beside for fd, _ in ready):
            self._serve()
