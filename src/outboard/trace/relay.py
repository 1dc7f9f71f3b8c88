"""Two sockets joined: what one end sends is cut into messages, and each goes whole to the other end.

vfio-user specification, "Transport". Nothing is read that the other end does not take: while bytes wait for
it, the sender waits too, so what is held is a chunk and the message in progress. A stream that cannot be cut
(a header with an impossible size) goes on as bytes: its receiver is who has to refuse it.
"""

import array
import errno
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import NamedTuple

from outboard.descriptors import ANCILLARY, MAX_DESCRIPTORS, close_all, received
from outboard.loop import Loop, Timer
from outboard.protocol import Capabilities, Direction
from outboard.protocol.codec import SLACK, BadHeader, FrameReader
from outboard.protocol.wire import HEADER, HEADER_SIZE, Buffer

RECEIVE_BYTES = 64 << 10
RECEIVE_FLAGS = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
SEND_FLAGS = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
TRUNCATED = int(socket.MSG_CTRUNC)
LARGEST_TRANSFER = 64 << 20
"""Bytes of data in one message up to which it is put together: QEMU refuses servers that take more."""
MOST_ANSWERS = 1 << 20
"""Bytes of answers of our own that wait for an end before no more of its commands are read."""
LOOK_AGAIN = 1.0
"""Seconds between looks whether an end that has closed one direction is gone altogether."""

UNCUT = "in a stream that cannot be cut into messages"
"""The remark on what is not a whole message."""
CLOSED = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
NONE: tuple[int, ...] = ()


class Parcel(NamedTuple):
    """What waits to be sent: not before `due` (monotonic seconds), with descriptors that are ours."""

    due: float
    data: Buffer
    fds: Sequence[int]


class Lane:
    """One direction: what `source` sends, message by message, to `target`.

    ``deliver(lane, data, fds, whole)`` is told of each message as it comes, or, when the stream cannot be cut
    any more, of bytes that are not ``whole``; what shall go on it hands to `send`.
    """

    def __init__(
        self,
        relay: "Relay",
        source: socket.socket,
        target: socket.socket,
        direction: Direction,
        deliver: "Deliver",
    ) -> None:
        self.source = source
        self.target = target
        self.direction = direction
        self.ended = False  # `source` sends no more
        self.closed = False  # and `target` has been told, or takes no more
        self.backlog = 0
        self.outbox: deque[Parcel] = deque()
        self._relay = relay
        self._deliver = deliver
        self._reader = FrameReader(Capabilities().max_data_xfer_size)
        self._in_step = True
        self._timer: Timer | None = None

    @property
    def opposite(self) -> "Lane":
        """The other direction."""
        return self._relay.to_client if self is self._relay.to_server else self._relay.to_server

    def expect(self, max_data_xfer_size: int) -> None:
        """Takes note of what the receiver takes: larger messages it refuses by their header alone."""
        self._reader.limit = HEADER_SIZE + SLACK + min(max_data_xfer_size, LARGEST_TRANSFER)

    def receive(self) -> None:
        """Takes what `source` has sent."""
        try:
            data, ancillary, flags, _ = self.source.recvmsg(RECEIVE_BYTES, ANCILLARY, RECEIVE_FLAGS)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary, flags = b"", [], 0
        fds = received(ancillary) if ancillary else NONE
        if flags & TRUNCATED:
            close_all(fds)
            self._relay.close("descriptors were lost: this process may have too many open")
            return
        if not data:
            self._end()
            return
        if not self._in_step:
            self._deliver(self, data, fds, False)
        elif self._reader.is_empty and len(data) >= HEADER_SIZE and HEADER.unpack_from(data)[2] == len(data):
            # By far most chunks are one message: it goes on as it came.
            self._deliver(self, data, fds, True)
        else:
            self._cut(data, fds)
        if self._relay.unsettled:
            self._relay.settle()

    def _cut(self, data: bytes, fds: Sequence[int]) -> None:
        reader = self._reader
        reader.receive(data, fds)
        try:
            while (frame := reader.next_frame()) is not None:
                size = HEADER_SIZE + len(frame.payload)
                head = HEADER.pack(frame.message_id, frame.command, size, frame.flags, frame.error)
                self._deliver(self, head + frame.payload, frame.fds, True)
                if self._relay.closed:
                    return
        except BadHeader:
            self._in_step = False
            rest, fds = reader.held, reader.claim_all()
            if len(fds) > MAX_DESCRIPTORS:
                close_all(fds)
                self._relay.close(f"a message came with {len(fds)} descriptors")
            else:
                self._deliver(self, rest, fds, False)

    def _end(self) -> None:
        """`source` has closed: what it left unfinished still goes on."""
        self.ended = True
        rest, fds = self._reader.held, self._reader.claim_all()
        if rest:
            self._deliver(self, rest, fds, False)
        else:
            close_all(fds)
        self._relay.settle()

    def send(self, data: Buffer, fds: Sequence[int] = NONE, delay: float = 0.0) -> None:
        """Sends `data` to `target` after all before it, in one call if the socket takes it whole.

        Closes `fds`. After ``delay`` seconds at the earliest; what comes later waits too.
        """
        if not self.outbox and not delay:
            sent = self._try(data, fds)
            if sent == len(data):
                return
            if sent:
                data, fds = memoryview(data)[sent:], NONE
        self.outbox.append(Parcel(monotonic() + delay, data, fds))
        self.backlog += len(data)
        self._relay.unsettled = True

    def flush(self) -> None:
        """Sends what waits and is due."""
        while self.outbox:
            due, data, fds = self.outbox[0]
            if due > monotonic():
                break
            sent = self._try(data, fds)
            if not self.outbox:  # `target` is gone
                break
            self.backlog -= sent
            if sent < len(data):
                if sent:
                    self.outbox[0] = Parcel(due, memoryview(data)[sent:], NONE)
                break
            self.outbox.popleft()
        self._relay.settle()

    def _try(self, data: Buffer, fds: Sequence[int]) -> int:
        """How much of `data` is off our hands; `fds` went with its first byte and are closed."""
        try:
            if fds:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                sent = self.target.sendmsg([data], rights, SEND_FLAGS)
            else:
                sent = self.target.send(data, SEND_FLAGS)
        except BlockingIOError:
            return 0
        except OSError as error:
            close_all(fds)
            if error.errno in CLOSED:  # it will read nothing any more
                self.drop()
                self._relay.unsettled = True
            else:
                self._relay.close(f"a message cannot be passed on: {error.strerror}")
            return len(data)
        close_all(fds)
        return sent

    def drop(self) -> None:
        """Gives this direction up, and what waits in it."""
        self.ended = self.closed = True
        for parcel in self.outbox:
            close_all(parcel.fds)
        self.outbox.clear()
        self.backlog = 0
        if self._timer is not None:
            self._timer.cancel()
        close_all(self._reader.claim_all())

    def pause(self, loop: Loop) -> bool:
        """Whether what waits is not due yet; then `flush` comes by itself."""
        wait = self.outbox[0].due - monotonic() if self.outbox else 0.0
        if wait <= 0:
            return False
        if self._timer is None or self._timer.callback is None or self._timer.due < monotonic():
            self._timer = loop.after(wait, self.flush)
        return True


Deliver = Callable[[Lane, bytes, Sequence[int], bool], None]


class Relay:
    """Joins `client` and `server`, which it owns, in `loop`.

    ``deliver`` as in `Lane`; ``on_close(why)`` is told once, when both directions are at their end.
    """

    def __init__(
        self,
        loop: Loop,
        client: socket.socket,
        server: socket.socket,
        deliver: Deliver,
        on_close: Callable[[str], None],
    ) -> None:
        self.closed = False
        self.unsettled = False
        self.to_server = Lane(self, client, server, Direction.TO_SERVER, deliver)
        self.to_client = Lane(self, server, client, Direction.TO_CLIENT, deliver)
        self.lanes = (self.to_server, self.to_client)
        self._loop = loop
        self._on_close = on_close
        self._watched: dict[int, tuple[bool, bool]] = {}
        self._look: Timer | None = None
        for end in (client, server):
            end.setblocking(False)
        self.settle()

    def settle(self) -> None:
        """After a change: passes the ends of streams on, and watches for what is possible now."""
        self.unsettled = False
        if self.closed:
            return
        lanes = self.lanes
        for lane in lanes:
            if lane.ended and not lane.outbox and not lane.closed:
                lane.closed = True
                with suppress(OSError):
                    lane.target.shutdown(socket.SHUT_WR)
        if all(lane.closed for lane in lanes) or any(lane.closed and _is_gone(lane.source) for lane in lanes):
            self.close("an end has gone")
            return
        if any(lane.closed for lane in lanes) and (self._look is None or self._look.callback is None):
            # A half-closed end is not watched: it would be readable all the time.
            self._look = self._loop.after(LOOK_AGAIN, self._look_again)
        for lane in lanes:
            self._watch(lane, lane.opposite)

    def close(self, why: str) -> None:
        """Closes both ends at once, with all that waits. Harmless to repeat."""
        if self.closed:
            return
        self.closed = True
        if self._look is not None:
            self._look.cancel()
        for lane in self.lanes:
            self._loop.unwatch(lane.source.fileno())
            lane.drop()
        for lane in self.lanes:
            lane.source.close()
        self._on_close(why)

    def _look_again(self) -> None:
        self._look = None
        self.settle()

    def _watch(self, incoming: Lane, outgoing: Lane) -> None:
        """Watches the end that `incoming` reads from and `outgoing` writes to."""
        fd = incoming.source.fileno()
        readable = not (incoming.ended or incoming.outbox) and outgoing.backlog < MOST_ANSWERS
        writable = bool(outgoing.outbox) and not outgoing.pause(self._loop)
        if self._watched.get(fd, (False, False)) == (readable, writable):
            return
        self._watched[fd] = readable, writable
        if readable or writable:
            self._loop.watch(fd, incoming.receive if readable else None, outgoing.flush if writable else None)
        else:
            self._loop.unwatch(fd)


def _is_gone(end: socket.socket) -> bool:
    """Whether the peer of `end` has closed both directions: nobody reads there any more."""
    poll = select.poll()
    poll.register(end, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
