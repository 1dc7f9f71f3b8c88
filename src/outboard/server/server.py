"""A device behind a UNIX socket: listens, takes one client at a time, survives its going.

Follows vfio-user's "Socket Disconnection Behavior" and its conventions for back-end programs: in the
foreground, a clean end on SIGTERM, a socket by path or by inherited descriptor.
"""

import array
import logging
import os
import select
import signal
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TypedDict, Unpack

from outboard.descriptors import ANCILLARY, received
from outboard.device import DeviceContract
from outboard.errors import SetupError
from outboard.loop import Timer
from outboard.server.background import Background
from outboard.server.listening import ACCEPT_AGAIN, Admission, Peer, listen
from outboard.server.profiles import OnError, Profile, ProfileName, chosen
from outboard.server.session import Session

log = logging.getLogger(__name__)

RECEIVE_BYTES = 16 << 10
# As plain integers: arithmetic on the socket module's flags costs a microsecond each.
SEND_FLAGS = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
RECEIVE_FLAGS = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
BURST_FLAGS = int(socket.MSG_CMSG_CLOEXEC)
BURST_PAUSE = struct.pack("@ll", 0, 1000)
"""How long the next message of a burst is awaited in place (struct timeval: 1 ms, at least one tick)."""
TRUNCATED = int(socket.MSG_CTRUNC)
NO_DESCRIPTORS: tuple[int, ...] = ()
TOO_MANY = "more descriptors came than a message may carry (253), or than this process may open (ulimit -n)"
PATIENT_BACKLOG = 1 << 20
"""Bytes of answers that wait for a client while we go on reading: it may send long before it listens."""
MAX_BACKLOG = 64 << 20
"""Bytes of answers for which a client is dropped: what it sends at once may ask for gigabytes."""
MAX_ANSWERS = 1 << 17
"""Answers for which a client is dropped: the smallest has 16 bytes, and costs us twenty times that."""
INTRODUCTION = 3.0
"""Seconds after which a client that has not said VERSION yields to one that waits: QEMU waits for 5."""


class Server(Background):
    """Serves `device` on a UNIX socket, at `path` or on an inherited descriptor `fd`.

    It listens when the constructor returns. Run it with `serve_forever`, in a thread of its own with
    `start`, or from another event loop: wait for `fileno()` and call `run_once()`. One client is served at a
    time, a second one waits its turn; when a client goes, its memory and interrupts are let go, the device
    keeps its state, and the next client is taken. A context manager that closes.

    ``profile``, by name or one of your own, says what clients are taken for, instead of what they say
    themselves; ``on_error``, instead of what the profile says, how failed requests are answered
    (`outboard.server.profiles`).

    A file left by a dead server is replaced; one with a live server is not (SetupError). ``mode`` and
    ``owner`` are those of the socket's file, as 0o660 and "qemu:kvm" (see `listen`). With ``allow_users`` or
    ``allow_groups``, names or numbers, only processes of these users or in these groups are served; others
    are let go with a line in the log. A client that has not begun to speak within ``introduction`` seconds
    is let go once another one waits (None: never).
    """

    def __init__(
        self,
        device: DeviceContract,
        path: str | os.PathLike[str] | None = None,
        *,
        fd: int | None = None,
        mode: int | None = None,
        owner: str | None = None,
        allow_users: Iterable[str | int] = (),
        allow_groups: Iterable[str | int] = (),
        introduction: float | None = INTRODUCTION,
        on_error: OnError | None = None,
        profile: ProfileName | Profile = "auto",
    ) -> None:
        if (path is None) == (fd is None):
            raise SetupError("a server needs a socket path or an inherited descriptor: give one of the two")
        if path is None and (mode is not None or owner is not None):
            raise SetupError("an inherited descriptor has its mode and owner already: give them with a path")
        self.device = device
        self.path = None if path is None else Path(path)
        self._admission = Admission(allow_users, allow_groups)
        self._introduction = introduction
        self._grace: Timer | None = None
        super().__init__(f"outboard {self.path or ''}")
        self._new_session = partial(
            Session,
            device,
            self.loop,
            self._send,
            self._pump,
            ended=self._end_conversation,
            on_error=on_error,
            profile=chosen(profile),
        )
        self._listener: socket.socket | None = None
        self._connection: socket.socket | None = None
        self._session: Session | None = None
        self._outbox: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._backlog = 0
        given: socket.socket | None = None
        try:
            given = listen(self.path, mode=mode, owner=owner) if self.path else socket.socket(fileno=fd)
            given.setblocking(False)
            if given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                self._listener = given
                self.loop.watch(given.fileno(), self._accept)
            else:
                peer = Peer.of(given)
                if not self._admission.admits(peer):
                    raise SetupError(f"the inherited connection is with one that is not allowed: {peer}")
                self._converse(given, peer)
        except BaseException as error:
            self.loop.close()
            if given is not None:
                given.close()
            if isinstance(error, OSError):
                raise SetupError(f"cannot listen on {self.path or fd}: {error.strerror}") from error
            raise

    @property
    def connected(self) -> bool:
        """Whether a client is being served."""
        return self._session is not None

    def fileno(self) -> int:
        """A descriptor that is readable when `run_once` has something to do."""
        return self.loop.fileno()

    def run_once(self, timeout: float | None = 0) -> bool:
        """Does what is due, waiting for it up to `timeout` seconds (None: for ever); True if anything was."""
        return self.loop.run_once(timeout)

    def close(self) -> None:
        """Stops, lets the client go, and removes the socket's file. Harmless to repeat."""
        super().close()
        self._disconnect("the server ends")
        if self._listener is not None:
            self.loop.unwatch(self._listener.fileno())
            # While we still listen, nobody else takes the path for a dead server's and listens there.
            if self.path is not None:
                self.path.unlink(missing_ok=True)
            self._listener.close()
            self._listener = None
        self.loop.close()

    def _accept(self) -> None:
        listener = self._listener
        assert listener is not None
        # The next client waits in the backlog until this one has gone.
        self.loop.unwatch(listener.fileno())
        try:
            connection, _ = listener.accept()
        except OSError as error:
            log.warning("a client could not be taken: %s; tried again in a second", error.strerror)
            self.loop.after(ACCEPT_AGAIN, self._listen_on)
            return
        peer = Peer.of(connection)
        if self._admission.admits(peer):
            self._converse(connection, peer)
        else:
            log.warning("refused a client that is not allowed: %s", peer)
            connection.close()
            self._listen_on()

    def _listen_on(self) -> None:
        if self._listener is not None and self._session is None:
            self.loop.watch(self._listener.fileno(), self._accept)

    def _converse(self, connection: socket.socket, peer: Peer) -> None:
        connection.setblocking(True)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, BURST_PAUSE)
        log.info("a client has connected: %s", peer)
        self._connection = connection
        self._session = self._new_session()
        self.loop.watch(connection.fileno(), self._meet)
        if self._listener is not None and self._introduction is not None:
            self._grace = self.loop.after(self._introduction, self._hurry)

    def _meet(self) -> None:
        """Receives until the client has introduced itself, for which it has its time."""
        self._receive()
        if self._session is not None and self._session.introduced and self._connection is not None:
            self._end_grace()
            if not self._outbox:  # else `_send` has seen to it
                self.loop.watch(self._connection.fileno(), self._receive)

    def _hurry(self) -> None:
        """Lets go of a client that only holds its place, once another waits for it."""
        listener, self._grace = self._listener, None
        self._meet()  # what has come meanwhile counts
        if listener is None or self._session is None or self._session.introduced:
            return
        waiting = select.poll()
        waiting.register(listener, select.POLLIN)
        if waiting.poll(0):
            self._disconnect(f"the client said no VERSION within {self._introduction:g} s, and another waits")
        else:
            self._grace = self.loop.after(ACCEPT_AGAIN, self._hurry)

    def _end_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _receive(self) -> None:
        connection, session = self._connection, self._session
        if connection is None or session is None:
            return
        patience = RECEIVE_FLAGS
        while self._receive_message(connection, session, patience) and self.loop.waits_for_one:
            # Accesses come in bursts: the next one is awaited in place for a moment, a system call less each.
            patience = BURST_FLAGS

    def _receive_message(self, connection: socket.socket, session: Session, patience: int) -> bool:
        """Takes what has arrived, or arrives within a moment, and handles it; False if nothing did."""
        try:
            data, ancillary, flags, _ = connection.recvmsg(RECEIVE_BYTES, ANCILLARY, patience)
        except BlockingIOError:
            return False
        except OSError as error:
            self._disconnect(f"the connection broke: {error.strerror}")
            return False
        fds = received(ancillary) if ancillary else NO_DESCRIPTORS
        if not data or flags & TRUNCATED:
            for fd in fds:
                os.close(fd)
            self._disconnect(TOO_MANY if data else "the client has gone")
            return False
        session.feed(data, fds)
        self._end_conversation()
        return self._session is session

    def _send(self, data: bytes, fds: Sequence[int] = ()) -> bool:
        """Sends one message, whole (True) if the socket takes it; what it does not take waits its turn."""
        connection = self._connection
        if connection is None:
            return True
        if not self._outbox:
            try:
                sent = connection.send(data, SEND_FLAGS) if not fds else _send_with(connection, data, fds)
            except OSError as error:
                sent = _unsent(error, data)
            if sent == len(data):
                return True
            if sent:
                data, fds = data[sent:], ()
        # Descriptors are the device's own and outlive the wait.
        self._outbox.append((memoryview(data), fds))
        self._backlog += len(data)
        if (self._backlog > MAX_BACKLOG or len(self._outbox) > MAX_ANSWERS) and self._session is not None:
            log.warning(
                "the client takes none of %d answers (%d bytes) it asked for; %d (%d bytes) are the most",
                len(self._outbox),
                self._backlog,
                MAX_ANSWERS,
                MAX_BACKLOG,
            )
            self._session.closed = True
        reading = self._receive if self._backlog < PATIENT_BACKLOG else None
        self.loop.watch(connection.fileno(), reading, self._flush)
        return False

    def _flush(self) -> None:
        connection = self._connection
        while self._outbox and connection is not None:
            data, fds = self._outbox[0]
            try:
                sent = _send_with(connection, data, fds)
            except OSError as error:
                sent = _unsent(error, data)
            self._backlog -= sent
            if sent < len(data):
                if sent:
                    self._outbox[0] = (data[sent:], ())
                return
            self._outbox.popleft()
        if connection is not None:
            self.loop.watch(connection.fileno(), self._receive)

    def _pump(self, seconds: float) -> None:
        """Lets input arrive for up to `seconds` while the device waits for its client's memory."""
        connection, session = self._connection, self._session
        if connection is None or session is None:
            return
        twin = session.twin
        poll = select.poll()
        # A handler that waits for memory is left alone by the next request, but not when the client goes.
        requests = 0 if session.in_handler else select.POLLIN
        poll.register(connection, requests | (select.POLLOUT if self._outbox else 0))
        poll.register(self.loop.waker, select.POLLIN)
        if twin is not None and not twin.closed:
            poll.register(twin.fd, twin.events)
        for fd, events in poll.poll(seconds * 1000):
            if fd == self.loop.waker:
                self.loop.drain()
                if self.loop.stopped:
                    self._leave(session, "the server ends")
            elif twin is not None and fd == twin.fd:
                twin.work()
            else:
                if events & select.POLLOUT:
                    self._flush()
                if not events & ~select.POLLOUT or self._connection is not connection:
                    continue
                if session.in_handler:
                    self._leave(session, "the client has gone")
                else:
                    self._receive_message(connection, session, RECEIVE_FLAGS)

    def _leave(self, session: Session, why: str) -> None:
        """Lets the client go: now, or when the handler that waits for its memory has returned."""
        if session.in_handler:
            session.closed = True
        else:
            self._disconnect(why)

    def _end_conversation(self) -> None:
        """Lets the client go if its session is closed."""
        if self._session is not None and self._session.closed:
            self._disconnect("the conversation has ended")

    def _disconnect(self, why: str) -> None:
        session, connection = self._session, self._connection
        if session is None or connection is None:
            return
        log.info("%s", why)
        self._end_grace()
        self._session = self._connection = None
        self._outbox.clear()
        self._backlog = 0
        self.loop.unwatch(connection.fileno())
        connection.close()
        session.close()
        if self._listener is not None:
            self.loop.watch(self._listener.fileno(), self._accept)
        else:
            self.stop()


class ServerOptions(TypedDict, total=False):
    """What `Server` takes by name, beside where it listens."""

    mode: int | None
    owner: str | None
    allow_users: Iterable[str | int]
    allow_groups: Iterable[str | int]
    introduction: float | None
    on_error: OnError | None
    profile: ProfileName | Profile


def serve(device: DeviceContract, path: str | os.PathLike[str], **options: Unpack[ServerOptions]) -> None:
    """Serves `device` on the UNIX socket `path` until SIGTERM or SIGINT, then ends cleanly.

    ``options`` are those of `Server`. Raises SetupError if `path` cannot be listened on, or has a live one.
    """
    serve_all({path: device}, **options)


def serve_all(
    devices: Mapping[str | os.PathLike[str], DeviceContract], **options: Unpack[ServerOptions]
) -> None:
    """Serves several devices, each on its socket and in its own thread, until SIGTERM or SIGINT.

    ``options`` are those of `Server`, for all of them.
    """
    # Unlike Event.set, put may interrupt itself: a second signal comes while the first is being handled.
    ended: SimpleQueue[int] = SimpleQueue()
    with ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGINT):
            if threading.current_thread() is threading.main_thread():
                previous = signal.signal(number, lambda number, _: ended.put(number))
                stack.callback(signal.signal, number, previous)
        for path, device in devices.items():
            stack.enter_context(Server(device, path, **options)).start()
        ended.get()


def _send_with(connection: socket.socket, data: bytes | memoryview, fds: Sequence[int]) -> int:
    """How much of `data` the socket took; `fds` went with its first byte."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return connection.sendmsg([data], ancillary, SEND_FLAGS)


def _unsent(error: OSError, data: bytes | memoryview) -> int:
    """What counts as sent after `error`: nothing if the socket is full, all if nobody will ever read it."""
    if isinstance(error, BlockingIOError):
        return 0
    # The peer has closed: reading says so next, in its turn.
    log.debug("an answer could not be sent: %s", error.strerror)
    return len(data)
