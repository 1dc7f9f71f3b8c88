"""The client's end of a twin socket: the server's commands come there, our answers go back there.

vfio-user specification, "VFIO_USER_VERSION", capability ``twin_socket``.
"""

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from outboard.client.transport import SocketTransport
from outboard.descriptors import close_all
from outboard.errors import ConnectionLost, PeerTimeout, RemoteProtocolError
from outboard.protocol import ClientConnection, Fatal, Malformed, Request
from outboard.protocol.messages import Version


class Twin:
    """Commands on ``connection``, a client's end of the twin socket, answered by what ``answer`` returns.

    It owns the socket. ``timeout`` is how long the server may take to read an answer, in seconds.
    """

    def __init__(
        self,
        end: socket.socket,
        connection: ClientConnection,
        answer: Callable[[ClientConnection, Request], bytes],
        timeout: float | None,
    ) -> None:
        self.fd = end.fileno()
        self._transport = SocketTransport(end)
        self._connection = connection
        self._answer = answer
        self._timeout = timeout

    def serve(self) -> bool:
        """Answers what has come; False when the server has closed its end.

        Raises RemoteProtocolError when it sends what no server may, PeerTimeout when it takes no answer.
        """
        try:
            data, fds = self._transport.receive(0)
            close_all(fds)  # no command of a server has any
            for event in self._connection.feed(data):
                match event:
                    case Request():
                        self._send(self._answer(self._connection, event))
                    case Malformed():
                        self._send(self._connection.refuse(event, event.error.errno))
                    case Fatal():
                        with suppress(ConnectionLost, PeerTimeout):
                            self._send(event.answer)
                        raise event.error
        except ConnectionLost:
            return False
        return True

    def close(self) -> None:
        """Ends it."""
        self._transport.close()

    def _send(self, data: bytes) -> None:
        if data:
            self._transport.send(data, (), self._timeout)


def twin_of(version: Version, fds: Sequence[int]) -> socket.socket | None:
    """The twin socket that came with the server's VERSION; None if it gives none. Closes all other `fds`.

    Raises RemoteProtocolError if it says that it gives one and what came is none.
    """
    said = version.capabilities.twin_socket if version.capabilities else None
    if said is None or not said.supported:
        close_all(fds)
        return None
    index = said.fd_index
    if index is None or index >= len(fds):
        close_all(fds)
        raise RemoteProtocolError(
            f"the server agreed to a twin socket as descriptor {index}, and sent {len(fds)} descriptors"
        )
    close_all(fd for fd in fds if fd != fds[index])
    try:
        end = socket.socket(fileno=fds[index])
    except OSError as error:
        os.close(fds[index])
        raise RemoteProtocolError(f"the twin socket is no socket: {error.strerror}") from error
    if (end.family, end.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        end.close()
        raise RemoteProtocolError(f"the twin socket is of another kind: {end.family.name}, {end.type.name}")
    return end
