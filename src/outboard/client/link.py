"""A client's end of the wire: one command at a time, the server's own commands served meanwhile.

A server may ask for guest memory (DMA_READ, DMA_WRITE) at any moment, also between our command and its
reply, on the same socket or on a twin; such commands are answered from the client's `AddressSpace`.
"""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from outboard.client.memory import AddressSpace
from outboard.client.transport import Transport
from outboard.client.twin import Twin, twin_of
from outboard.descriptors import close_all
from outboard.errors import ConnectionLost, OutboardError, PeerTimeout, RemoteError, RemoteProtocolError
from outboard.protocol import (
    RULES,
    Capabilities,
    ClientConnection,
    ErrorReply,
    Event,
    Fatal,
    Malformed,
    Message,
    Reply,
    Request,
)
from outboard.protocol.connection import MAX_ERRNO
from outboard.protocol.messages import DmaRead, DmaReadReply, DmaWrite, DmaWriteReply, Version

AHEAD = 64
"""Commands sent before their replies are read. With more, a server that writes its replies in blocking calls
and a client that writes its commands so would wait for each other: a socket holds a few hundred messages."""


class Link:
    """Commands to a server over `transport`; each waits for its reply up to `timeout` seconds.

    ConnectionLost says that the server closed the connection, RemoteProtocolError that it did so inside a
    message or sent what no server may, PeerTimeout that it was silent, or did not read. After each of them
    the link is closed: every later command raises ConnectionLost.
    """

    def __init__(
        self,
        transport: Transport,
        memory: AddressSpace,
        *,
        timeout: float | None = 5.0,
        connection: ClientConnection | None = None,
    ) -> None:
        self.timeout = timeout
        self.memory = memory
        self._transport = transport
        self._connection = connection or ClientConnection()
        self._closed = False
        self._twin: Twin | None = None
        self._replies: dict[int, Reply | ErrorReply] = {}

    @property
    def transfer_limit(self) -> int:
        """The most bytes of data a command may move."""
        return self._connection.transfer_limit

    @property
    def peer(self) -> Capabilities:
        """What the server said of itself in VERSION."""
        return self._connection.peer

    def negotiate(self) -> Version:
        """Sends VERSION; the server's answer. To be called once, first."""
        message_id, data = self._connection.version_command()
        [reply] = self._transact([(message_id, data, ())], "VERSION")
        if not isinstance(reply.body, Version):
            close_all(reply.fds)
            raise RemoteProtocolError(f"the server answered VERSION with {type(reply.body).__name__}")
        if not self._connection.offer.twin_socket.supported:
            close_all(reply.fds)
        elif (end := twin_of(reply.body, reply.fds)) is not None:
            self._twin = Twin(end, self._connection.twin(), self._answer, self.timeout)
            self._transport.serve_beside(self._twin.fd, self._serve_twin)
        return reply.body

    def command(self, body: Message, fds: Sequence[int] = ()) -> Message:
        """Sends `body` with `fds`, which stay the caller's; the reply's body.

        Raises RemoteError when the server answers with an error, PeerTimeout, ConnectionLost, and
        RemoteProtocolError when it breaks the protocol.
        """
        reply, descriptors = self.exchange(body, fds)
        close_all(descriptors)
        return reply

    def exchange(self, body: Message, fds: Sequence[int] = ()) -> tuple[Message, tuple[int, ...]]:
        """As `command`, for replies that have descriptors: they are the caller's."""
        self._check_open()
        message_id, data = self._connection.command(body)
        [reply] = self._transact([(message_id, data, fds)], type(body).__name__)
        return reply.body, reply.fds

    def pipeline(self, commands: Sequence[tuple[Message, Sequence[int]]]) -> list[Message]:
        """Sends `commands` (body, descriptors) ahead of their replies; the bodies of these.

        Raises as `command` does, for the first that the server refuses.
        """
        self._check_open()
        replies: list[Reply] = []
        for start in range(0, len(commands), AHEAD):
            some = commands[start : start + AHEAD]
            messages = [(*self._connection.command(body), fds) for body, fds in some]
            replies += self._transact(messages, f"{len(some)} pipelined commands")
        for reply in replies:
            close_all(reply.fds)
        return [reply.body for reply in replies]

    def post(self, body: Message) -> None:
        """Sends `body` with No_reply: nothing comes back, not even an error."""
        self._check_open()
        _, data = self._connection.command(body, no_reply=True)
        self._send(data)

    def serve_pending(self, timeout: float = 0.0) -> None:
        """Answers commands of the server that have arrived, waiting up to `timeout` seconds for the first."""
        self._check_open()
        try:
            self._receive(timeout)
        except PeerTimeout:
            if self._closed:
                raise

    def wait(self, fd: int, timeout: float) -> None:
        """Waits until `fd` is readable, up to `timeout` seconds; or serves the server and returns."""
        self._check_open()
        if self._transport.wait(fd, timeout):
            self.serve_pending()

    def close(self) -> None:
        """Ends the connection. Harmless to repeat."""
        if not self._closed:
            self._closed = True
            close_all(self._connection.pending_fds)
            for reply in self._replies.values():
                close_all(reply.fds)
            self._replies.clear()
            self._transport.close()
            if self._twin is not None:
                self._twin.close()

    def _transact(self, messages: Sequence[tuple[int, bytes, Sequence[int]]], name: str) -> list[Reply]:
        """Sends messages (id, bytes, descriptors) and waits for the reply of each."""
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        for _, data, fds in messages:
            self._send(data, fds)
        try:
            while any(message_id not in self._replies for message_id, _, _ in messages):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise PeerTimeout("time is up")
                self._receive(left)
        except PeerTimeout as error:
            self.close()
            raise PeerTimeout(f"the server has not answered {name} within {self.timeout:g} s") from error
        answers = [self._replies.pop(message_id) for message_id, _, _ in messages]
        replies = [answer for answer in answers if isinstance(answer, Reply)]
        for refusal in answers:
            if isinstance(refusal, ErrorReply):
                for reply in answers:
                    close_all(reply.fds)
                reason = _reason(refusal.errno)
                raise RemoteError(f"the server refuses {name}: {reason}", command=name, errno=refusal.errno)
        return replies

    def _receive(self, timeout: float | None) -> None:
        events: Iterator[Event] = iter(())
        try:
            events = iter(self._connection.feed(*self._transport.receive(timeout)))
            began = time.monotonic()
            for event in events:
                self._handle(event)
                # Commands of the server come by the thousand at once, and to answer each may take its time.
                if self.timeout is not None and time.monotonic() - began > self.timeout:
                    self.close()
                    raise PeerTimeout(f"answering the server's own commands took over {self.timeout:g} s")
        except ConnectionLost:
            self.close()
            self._connection.eof()
            raise
        except RemoteProtocolError:
            self.close()
            raise
        finally:
            for event in events:
                close_all(event.fds)

    def _handle(self, event: Event) -> None:
        match event:
            case Reply() | ErrorReply():
                if isinstance(event, ErrorReply) or not RULES[event.command].reply_fds:
                    close_all(event.fds)
                    event.fds = ()
                self._replies[event.message_id] = event
            case Request():
                close_all(event.fds)
                self._send(self._answer(self._connection, event))
            case Malformed():
                close_all(event.fds)
                self._send(self._connection.refuse(event, event.error.errno))
            case Fatal():
                close_all(event.fds)
                with suppress(ConnectionLost, PeerTimeout):
                    self._send(event.answer)
                raise event.error

    def _serve_twin(self) -> None:
        assert self._twin is not None
        try:
            goes_on = self._twin.serve()
        except OutboardError:
            self.close()
            raise
        if not goes_on:
            # The server asks no more; if it has gone, its other socket says so.
            self._transport.serve_beside(-1, self._serve_twin)
            self._twin.close()
            self._twin = None

    def _answer(self, connection: ClientConnection, request: Request) -> bytes:
        """The answer to DMA_READ and DMA_WRITE, out of our memory."""
        body = request.body
        try:
            if isinstance(body, DmaRead):
                source = self.memory.slice(body.address, body.count, write=False)
                return connection.reply(request, DmaReadReply(body.address, body.count, bytes(source)))
            if isinstance(body, DmaWrite):
                self.memory.slice(body.address, body.count, write=True)[:] = body.data
                return connection.reply(request, DmaWriteReply(body.address, body.count))
            return connection.refuse(request, errno.ENOSYS)
        except OutboardError as error:
            return connection.refuse(request, error.errno)

    def _send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if not data:
            return
        try:
            self._transport.send(data, fds, self.timeout)
        except (ConnectionLost, PeerTimeout):
            self.close()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionLost("the connection to the server is closed; connect again")


def _reason(number: int) -> str:
    """What a server's errno says; it may be any 32 bits."""
    if not number:
        return "no reason given"
    return os.strerror(number) if number <= MAX_ERRNO else f"errno {number:#x}, which means nothing"
