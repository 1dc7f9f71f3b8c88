"""One end of a connection, made of bytes: every wait has a deadline, every surprise is a sentence.

vfio-user specification, "Transport". Works for either side: commands that the other side sends while a
reply is awaited are handed to ``serve``.
"""

import array
import fcntl
import itertools
import select
import socket
import struct
import termios
import time
from collections.abc import Callable, Sequence

from outboard.conformance import wire
from outboard.conformance.points import Wrong
from outboard.conformance.wire import Body, Message
from outboard.descriptors import ANCILLARY, close_all, received

CHUNK = 1 << 16
WHOLE = 1 << 15
"""What is smaller arrives at once if it was sent at once."""


LARGEST = wire.HEADER_SIZE + wire.PAGE + wire.MOST_DATA
MOST_MESSAGES = 30_000
"""Several times what any check needs: a peer that never stops talking is wrong too."""


def ready(fd: int, seconds: float = 0.0, events: int = select.POLLIN) -> int:
    """Which of ``events`` a descriptor is ready for, waiting if it is not yet; 0 if for none in time."""
    poll = select.poll()
    poll.register(fd, events)
    return next((found for _, found in poll.poll(seconds * 1000)), 0)


class Closed(Wrong):
    """The other end closed the connection."""

    def __init__(self, awaited: str) -> None:
        super().__init__(awaited, "the connection closed")


class Silence(Wrong):
    """The other end said nothing until the deadline."""

    def __init__(self, awaited: str, seconds: float) -> None:
        super().__init__(awaited, f"nothing for {seconds:g} seconds")


class Peer:
    """One end of ``connection``, which it closes. ``timeout`` seconds are the deadline of each wait.

    ``serve`` answers a command of the other side; the default refuses it. ``cut`` names the messages that
    arrived in pieces although they would have fitted into one. ``largest`` is the longest message taken.
    """

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        self.socket = connection
        self.timeout = timeout
        self.serve: Callable[[Message], None] = self.refuse
        self.cut: list[str] = []
        self.largest = LARGEST
        self._left = MOST_MESSAGES
        self._ids = itertools.count(1)
        self._came: list[Message] = []

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes; ``fds`` ride on the first. What the other side sends meanwhile is kept."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        view = memoryview(data)
        self.socket.setblocking(False)
        while view:
            try:
                sent = self.socket.sendmsg([view], ancillary)
            except BlockingIOError:
                self._make_room()
                continue
            except OSError as error:
                raise Closed(f"{len(data)} bytes to be taken") from error
            view, ancillary = view[sent:], []

    def _make_room(self) -> None:
        """Wait until more can be sent, receiving meanwhile: the other side may wait for that."""
        events = ready(self.socket.fileno(), self.timeout, select.POLLIN | select.POLLOUT)
        if events & select.POLLIN:
            self._came.append(self._read_message("what was sent to be taken"))
        elif not events:
            raise Silence("what was sent to be taken", self.timeout)

    def send_in_pieces(self, pieces: Sequence[bytes]) -> None:
        """Send pieces so that the other side sees each by itself: the next goes when it took the last."""
        for piece in pieces:
            self.send(piece)
            end = time.monotonic() + min(self.timeout, 0.25)
            # A peer that waits until all is there (MSG_PEEK) never takes the piece: then time decides.
            while self._untaken() and time.monotonic() < end:
                time.sleep(0.0002)

    def _untaken(self) -> int:
        """Bytes of ours (as the kernel counts them) that the other side has not read."""
        buffer = fcntl.ioctl(self.socket, termios.TIOCOUTQ, b"\0\0\0\0")
        return int(struct.unpack("=i", buffer)[0])

    def receive(self, awaited: str = "a message") -> Message:
        """The next whole message, whatever it is. Raises Closed, Silence, or Wrong for a bad header."""
        return self._came.pop(0) if self._came else self._read_message(awaited)

    def put_back(self, messages: Sequence[Message]) -> None:
        """Have messages received again, before what comes next."""
        self._came[:0] = messages

    def _read_message(self, awaited: str) -> Message:
        end = time.monotonic() + self.timeout
        head, fds = self._read(wire.HEADER_SIZE, end, awaited)
        try:
            id, command, size, flags, error = wire.HEADER.unpack(head)
            self._left -= 1
            if self._left < 0:
                raise Wrong(awaited, f"more than {MOST_MESSAGES} messages on one connection")
            if not wire.HEADER_SIZE <= size <= self.largest:
                raise Wrong(awaited, f"a header that announces {size} bytes: the stream is out of step")
            if size < WHOLE and self._waiting() < size - wire.HEADER_SIZE:
                self.cut.append(wire.name(command))
            payload, more = self._read(size - wire.HEADER_SIZE, end, f"the rest of {wire.name(command)}")
        except BaseException:
            close_all(fds)
            raise
        return Message(id, command, size, flags, error, payload, fds + more)

    def _waiting(self) -> int:
        """Bytes that have arrived and were not read."""
        return int(struct.unpack("=i", fcntl.ioctl(self.socket, termios.FIONREAD, b"\0\0\0\0"))[0])

    def _read(self, size: int, end: float, awaited: str) -> tuple[bytes, tuple[int, ...]]:
        data = bytearray()
        fds: tuple[int, ...] = ()
        self.socket.setblocking(False)
        try:
            while len(data) < size:
                left = max(0.0, end - time.monotonic())
                if not ready(self.socket.fileno(), left):
                    raise Silence(awaited, self.timeout)
                part, more = self._receive_some(min(size - len(data), CHUNK))
                fds += more
                if not part:
                    raise Closed(awaited)
                data += part
        except BaseException:
            close_all(fds)
            raise
        return bytes(data), fds

    def _receive_some(self, most: int) -> tuple[bytes, tuple[int, ...]]:
        try:
            part, ancillary, _, _ = self.socket.recvmsg(most, ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return b"", ()
        return part, received(ancillary)

    def new_id(self) -> int:
        """An id no command of this connection had before."""
        return next(self._ids) & 0xFFFF

    def command(self, body: Body, fds: Sequence[int] = (), *, flags: int = 0, id: int | None = None) -> int:
        """Send one command; its id."""
        number = self.new_id() if id is None else id
        self.send(body.message(number, flags), fds)
        return number

    def answer(self, to: Body, id: int) -> Message:
        """The next reply, success or error, which has to be the one to ``to``."""
        awaited = f"an answer to {wire.name(to.command)}"
        while not (message := self.receive(awaited)).is_reply and not message.is_error:
            self.serve(message)
        if (message.id, message.command) != (id, to.command):
            close_all(message.fds)
            raise Wrong(
                f"{awaited} with id {id}", f"{message} with id {message.id}: the stream is out of step"
            )
        return message

    def ask(self, body: Body, fds: Sequence[int] = (), *, id: int | None = None) -> Message:
        """Send one command that has to succeed; its reply. Descriptors that come with it are the caller's."""
        answer = self.answer(body, self.command(body, fds, id=id))
        if answer.is_error:
            raise Wrong(f"{wire.name(body.command)} to succeed", str(answer))
        return answer

    def refused(self, body: Body, fds: Sequence[int] = (), *, what: str = "") -> Message:
        """Send one command that has to be answered by an error, and leave the stream in step."""
        answer = self.answer(body, self.command(body, fds))
        if not answer.is_error:
            close_all(answer.fds)
            raise Wrong(f"an error reply to {what or wire.name(body.command)}", str(answer))
        return answer

    def refused_or_closed(self, data: bytes, awaited: str) -> bool:
        """Send bytes that no peer may take; whether the connection is still open afterwards."""
        try:
            self.send(data)
            answer = self.receive(awaited)
        except Closed:
            return False
        if not answer.is_error:
            close_all(answer.fds)
            raise Wrong(awaited, str(answer))
        return True

    def expect_closed(self, awaited: str) -> None:
        """The other end closes; anything else that comes, or silence, is wrong."""
        try:
            message = self.receive(awaited)
        except Closed:
            return
        close_all(message.fds)
        raise Wrong(awaited, str(message))

    def reply(self, to: Message, payload: bytes = b"", *, fds: Sequence[int] = ()) -> None:
        """Answer a command of the other side."""
        self.send(Body(to.command, payload).message(to.id, wire.REPLY), fds)

    def refuse(self, message: Message, error: int = 95) -> None:
        """Answer a command of the other side with an error (default: EOPNOTSUPP)."""
        close_all(message.fds)
        if not message.flags & wire.NO_REPLY:
            self.send(Body(message.command).message(message.id, wire.REPLY | wire.ERROR, error=error))

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.socket.fileno() < 0

    def close(self) -> None:
        """End the connection. Harmless to repeat."""
        for message in self._came:
            close_all(message.fds)
        self._came.clear()
        self.socket.close()
