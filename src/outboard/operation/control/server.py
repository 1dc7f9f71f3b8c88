"""The control socket: a UNIX stream socket on which lines of JSON-RPC are answered, by one thread.

A client's next line is taken when it has taken the answer to the one before: so what is kept of each is one
line and one answer. Bounded are the line, and the number of clients.
"""

import logging
import socket
from collections.abc import Callable
from pathlib import Path

from outboard.errors import SetupError
from outboard.operation.configuration import ControlOptions
from outboard.operation.control.rpc import (
    BUSY,
    INVALID_REQUEST,
    MOST_LINE,
    Dispatcher,
    encoded,
    failure,
)
from outboard.server.background import Background
from outboard.server.listening import ACCEPT_AGAIN, Admission, Peer, listen

log = logging.getLogger(__name__)

MOST_CLIENTS = 32
RECEIVE_BYTES = 64 << 10
AT_ONCE = 16
"""Lines of one client that are answered before the others have their turns."""


class ControlServer(Background):
    """Answers on the socket that ``options`` describe; it listens when the constructor returns.

    Run it with `serve_forever`, or in a thread of its own with `start`. Raises `SetupError`.
    """

    def __init__(self, options: ControlOptions, dispatcher: Dispatcher) -> None:
        self.path = Path(options.socket)
        self.dispatcher = dispatcher
        self._admission = Admission(options.allow_user, options.allow_group)
        super().__init__(f"outboard control {self.path}")
        self._clients: set[_Client] = set()
        try:
            self._listener = listen(self.path, mode=options.mode, owner=options.socket_owner)
        except BaseException as error:
            self.loop.close()
            if isinstance(error, OSError):
                raise SetupError(f"cannot listen on {self.path}: {error.strerror}") from error
            raise
        self._listener.setblocking(False)
        self._listen_on()

    def close(self) -> None:
        """Stop, let the clients go, and remove the socket's file. Harmless to repeat."""
        super().close()
        if self._listener.fileno() < 0:
            return
        for client in list(self._clients):
            client.close()
        # While we still listen, nobody else takes the path for a dead server's and listens there.
        self.path.unlink(missing_ok=True)
        self._listener.close()
        self.loop.close()

    def _listen_on(self) -> None:
        self.loop.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("a client of the control socket could not be taken: %s", error.strerror)
            self.loop.unwatch(self._listener.fileno())
            self.loop.after(ACCEPT_AGAIN, self._listen_on)
            return
        connection.setblocking(False)
        peer = Peer.of(connection)
        if not self._admission.admits(peer):
            log.warning("refused a client of the control socket that is not allowed: %s", peer)
            connection.close()
            return
        client = _Client(self, connection, self._clients.discard)
        self._clients.add(client)
        if len(self._clients) > MOST_CLIENTS:
            client.refuse(encoded(failure(None, BUSY, f"there are {MOST_CLIENTS} clients already")))


class _Client:
    """One connection: the line that comes, and the answer that goes."""

    def __init__(
        self, server: ControlServer, connection: socket.socket, gone: "Callable[[_Client], None]"
    ) -> None:
        self._loop, self._dispatcher = server.loop, server.dispatcher
        self._connection = connection
        self._gone = gone
        self._inbox = bytearray()
        self._outbox = memoryview(b"")
        self._ended = False
        self._loop.watch(connection.fileno(), self._receive)

    def refuse(self, answer: bytes) -> None:
        """Say ``answer``, and let go."""
        self._inbox.clear()
        self._ended = True
        self._outbox = memoryview(answer)
        self._work()

    def close(self) -> None:
        """Let go."""
        self._loop.unwatch(self._connection.fileno())
        self._connection.close()
        self._gone(self)

    def _receive(self) -> None:
        try:
            data = self._connection.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._inbox += data
        if not data:
            # The last line may lack its end.
            self._ended = True
            self._inbox += b"\n" if self._inbox else b""
        self._work()

    def _work(self) -> None:
        """Answer the lines that are there, as far as the client takes the answers."""
        for _ in range(AT_ONCE):
            if not self._send() or (line := self._next_line()) is None:
                break
            if line.strip():
                self._outbox = memoryview(self._dispatcher.answer(line))
        else:
            self._loop.unwatch(self._connection.fileno())
            self._loop.call_soon(self._work)
            return
        if self._connection.fileno() < 0:
            return
        if self._outbox:
            self._loop.watch(self._connection.fileno(), None, self._work)
        elif self._ended:
            self.close()
        elif len(self._inbox) > MOST_LINE:
            self.refuse(encoded(failure(None, INVALID_REQUEST, f"a line has at most {MOST_LINE} bytes")))
        else:
            self._loop.watch(self._connection.fileno(), self._receive)

    def _next_line(self) -> bytes | None:
        end = self._inbox.find(b"\n")
        if not 0 <= end <= MOST_LINE:
            return None
        line = bytes(self._inbox[:end])
        del self._inbox[: end + 1]
        return line

    def _send(self) -> bool:
        """Send what waits; whether all of it has gone."""
        while self._outbox:
            try:
                self._outbox = self._outbox[self._connection.send(self._outbox, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                return False
            except OSError:
                self.close()
                return False
        return True
