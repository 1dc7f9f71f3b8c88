"""The server's end of a twin socket: our commands go out there, their replies come back there.

vfio-user specification, "VFIO_USER_VERSION", capability ``twin_socket``. A client that serves it beside its
own commands can be asked for memory while one of these is pending, so also from inside a handler.
"""

import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from errno import EINVAL
from select import POLLIN, POLLOUT

from outboard.descriptors import ANCILLARY, close_all, received
from outboard.loop import Loop
from outboard.protocol import ErrorReply, Event, Fatal, Malformed, Reply, Request, ServerConnection

log = logging.getLogger(__name__)

RECEIVE_BYTES = 128 << 10
RECEIVE_FLAGS = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
SEND_FLAGS = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
MOST_WAITING = 8
"""Messages that wait for a client; with more it has given none of them a look for as many deadlines."""


class Twin:
    """Our end of a new pair of sockets; ``theirs`` is the descriptor for the client.

    ``connection`` frames what goes over it; ``deliver(reply)`` is told each reply. The loop watches it. A
    client that closes its end, or breaks the protocol on it, makes it ``closed``.
    """

    def __init__(
        self, connection: ServerConnection, deliver: Callable[[Reply | ErrorReply], object], loop: Loop
    ) -> None:
        self.connection = connection
        self.closed = False
        self._deliver = deliver
        self._loop = loop
        self._outbox: deque[memoryview] = deque()
        self._socket, theirs = socket.socketpair()
        self.theirs = theirs.detach()
        self.fd = self._socket.fileno()
        loop.watch(self.fd, self.receive)

    @property
    def events(self) -> int:
        """What `poll` has to wait for."""
        return POLLIN | (POLLOUT if self._outbox else 0)

    def send(self, data: bytes) -> None:
        """Sends one message, or as much as the socket takes: the rest goes with `work`."""
        self._outbox.append(memoryview(data))
        self._flush()
        if len(self._outbox) > MOST_WAITING:
            self._give_up("the client takes nothing from its twin socket")

    def work(self) -> None:
        """Sends what waits and takes what has come, without waiting."""
        self._flush()
        self.receive()

    def receive(self) -> None:
        """Takes what has come."""
        if self.closed:
            return
        try:
            data, ancillary, _, _ = self._socket.recvmsg(RECEIVE_BYTES, ANCILLARY, RECEIVE_FLAGS)
        except BlockingIOError:
            return
        except OSError as error:
            self._give_up(f"the twin socket broke: {error.strerror}")
            return
        # No reply to a command of ours has any.
        close_all(received(ancillary))
        if not data:
            self._give_up("the client has closed its twin socket")
            return
        self.let_go()
        for event in self.connection.feed(data):
            if not self.closed:
                self._handle(event)

    def let_go(self) -> None:
        """The client has its end: ours of it is closed, so that we hear of it when the client closes it."""
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1

    def close(self) -> None:
        """Ends it. Harmless to repeat."""
        if not self.closed:
            self.closed = True
            self._loop.unwatch(self.fd)
            self._socket.close()
        self._outbox.clear()
        self.let_go()

    def _handle(self, event: Event) -> None:
        match event:
            case Reply() | ErrorReply():
                if not self._deliver(event):
                    log.warning("a reply (id %d) that nobody waits for, on the twin socket", event.message_id)
            case Request() | Malformed():
                if isinstance(event, Request):
                    log.warning("%s came on the twin socket, where only replies belong", event.command.name)
                else:
                    log.warning("refused, on the twin socket: %s", event.error)
                self._refuse(event)
            case Fatal():
                self._give_up(f"the client broke the protocol on the twin socket: {event.error}")

    def _refuse(self, event: Request | Malformed) -> None:
        if self._outbox:  # it sends what it must not and does not listen: such answers are not stored
            self._give_up("the client sends commands on the twin socket and takes no answers")
        elif answer := self.connection.refuse(event, EINVAL):
            self.send(answer)

    def _flush(self) -> None:
        while self._outbox and not self.closed:
            data = self._outbox[0]
            try:
                sent = self._socket.send(data, SEND_FLAGS)
            except BlockingIOError:
                return
            except OSError:
                self._give_up("the client has closed its twin socket")
                return
            if sent < len(data):
                self._outbox[0] = data[sent:]
            else:
                self._outbox.popleft()

    def _give_up(self, why: str) -> None:
        log.warning("%s", why)
        self.close()
