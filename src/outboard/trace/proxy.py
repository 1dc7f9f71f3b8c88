"""A proxy between any VMM and any server: passes everything on, watches, breaks on purpose what it is told.

vfio-user specification, "Transport", "VFIO_USER_VERSION" (the twin socket) and "Socket Disconnection
Behavior". For each client the proxy opens a connection of its own to the server. Messages go on byte for
byte, with their descriptors: guest memory, interrupts and mapped BARs are shared by both ends and pass by
the proxy, at their usual speed.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from outboard.descriptors import close_all
from outboard.errors import RemoteProtocolError, SetupError
from outboard.loop import Loop, Timer
from outboard.protocol import Command, Direction
from outboard.protocol.messages import Version
from outboard.protocol.wire import HEADER, HEADER_SIZE, HeaderFlag
from outboard.server.background import Background
from outboard.server.listening import ACCEPT_AGAIN, Admission, Peer
from outboard.server.listening import listen as listen_at
from outboard.trace.capture import Captured, CaptureWriter
from outboard.trace.faults import MADE_UP, Disconnect, Fate, Fault, Faults, Part, Passing
from outboard.trace.interrupts import Interrupts
from outboard.trace.relay import UNCUT, Lane, Relay

log = logging.getLogger(__name__)

MAIN, TWIN = 0, 1
KEPT_BACK = "its descriptor was kept back"
BETWEEN = "the proxy stands between its interrupts"

AS_IT_IS = Fate(None)

Observer = Callable[[Captured], None]


class Proxy(Background):
    """Listens at ``listen`` and passes every client on to the server at ``connect``.

    It listens when the constructor returns. Run it with `serve_forever`, or in a thread of its own with
    `start`. One client is served at a time, a second one waits its turn. Every message is written to
    ``capture`` and shown to ``observer``, from the proxy's thread. ``faults`` happen by the chance of
    ``seed``; each connection starts their schedules anew. Without ``share_memory`` the server gets no
    descriptor of guest memory, and asks for all of it by messages: then a capture holds what it read.
    ``mode``, ``owner``, ``allow_users`` and ``allow_groups`` say who may connect, as `Server`'s do. A context
    manager that closes.

    ::

        with Server(Edu(), server).start(), Proxy(client, server, faults=[Delay(0.05)]).start():
            ...

    Raises SetupError if ``listen`` cannot be listened on, or has a live server.
    """

    def __init__(
        self,
        listen: str | os.PathLike[str],
        connect: str | os.PathLike[str],
        *,
        faults: Iterable[Fault] = (),
        seed: int = 0,
        capture: CaptureWriter | None = None,
        observer: Observer | None = None,
        share_memory: bool = True,
        mode: int | None = None,
        owner: str | None = None,
        allow_users: Iterable[str | int] = (),
        allow_groups: Iterable[str | int] = (),
    ) -> None:
        self.path = Path(listen)
        self.server = Path(connect)
        self.faults = tuple(faults)
        self.seed = seed
        self._admission = Admission(allow_users, allow_groups)
        super().__init__(f"outboard proxy {self.path}")
        self.loop.report = self._fail
        self._capture = capture
        self._observer = observer
        self._share_memory = share_memory
        self._conversation: Conversation | None = None
        self._served = 0
        try:
            self._listener = listen_at(self.path, mode=mode, owner=owner)
        except OSError as error:
            self.loop.close()
            raise SetupError(f"cannot listen on {self.path}: {error.strerror}") from error
        except BaseException:
            self.loop.close()
            raise
        self._listener.setblocking(False)
        self._listen_on()

    def close(self) -> None:
        """Stops, cuts both ends off, and removes the socket's file. Harmless to repeat."""
        super().close()
        if self._conversation is not None:
            self._conversation.close("the proxy ends")
        if self._listener.fileno() >= 0:
            self.loop.unwatch(self._listener.fileno())
            self.path.unlink(missing_ok=True)
            self._listener.close()
        self.loop.close()

    def _listen_on(self) -> None:
        if self._conversation is None and not self.loop.stopped:
            self.loop.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        # The next client waits in the backlog until this one has gone.
        self.loop.unwatch(self._listener.fileno())
        try:
            client, _ = self._listener.accept()
        except OSError as error:
            log.warning("a client could not be taken: %s; tried again in a second", error.strerror)
            self.loop.after(ACCEPT_AGAIN, self._listen_on)
            return
        if not self._admission.admits(peer := Peer.of(client)):
            log.warning("refused a client that is not allowed: %s", peer)
            client.close()
            self._listen_on()
            return
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.setblocking(False)
        try:
            server.connect(os.fspath(self.server))
        except OSError as error:
            log.warning("a client is let go, for the server at %s: %s", self.server, error.strerror or error)
            client.close()
            server.close()
            self._listen_on()
            return
        log.info("a client has connected")
        connection = 0 if self._capture is None else self._capture.connection(str(self.server))
        faults = Faults(self.faults, f"{self.seed} {self._served}")
        self._served += 1
        observer = self._observe if self._capture or self._observer else None
        self._conversation = Conversation(
            self.loop,
            client,
            server,
            faults,
            observer,
            connection,
            self._disconnected,
            share_memory=self._share_memory,
        )
        for fault in self.faults:
            if isinstance(fault, Disconnect) and fault.at is not None:
                self._conversation.close_after(fault.at)

    def _disconnected(self, why: str) -> None:
        log.info("a client has gone: %s", why)
        self._conversation = None
        self._listen_on()

    def _observe(self, captured: Captured) -> None:
        if self._capture is not None:
            try:
                self._capture.write(captured)
            except OSError as error:
                log.error("the capture ends here, it cannot be written: %s", error.strerror)
                self._capture = None
        if self._observer is not None:
            self._observer(captured)

    def _fail(self, error: Exception, doing: str) -> None:
        log.error("the proxy failed: %s", doing, exc_info=error)
        if self._conversation is not None:
            self._conversation.close("the proxy failed")


class Conversation:
    """One client and its connection to the server: the main socket, and the twin if they agree on one."""

    def __init__(
        self,
        loop: Loop,
        client: socket.socket,
        server: socket.socket,
        faults: Faults,
        observer: Observer | None,
        connection: int,
        on_close: Callable[[str], None],
        *,
        share_memory: bool,
    ) -> None:
        self._loop = loop
        self._faults = faults
        self._observer = observer
        self._connection = connection
        self._on_close = on_close
        self._share_memory = share_memory
        self._started = time.monotonic()
        self._limits: dict[Direction, int] = {}
        self._twin: Relay | None = None
        self._end: Timer | None = None
        self._interrupts = Interrupts(loop, self._drops) if faults.on_interrupts else None
        self._main = Relay(loop, client, server, self._deliver, self._closed)

    def close(self, why: str) -> None:
        """Cuts both ends off, at once."""
        self._main.close(why)

    def close_after(self, seconds: float) -> None:
        """Cuts both ends off in so many seconds."""
        self._end = self._loop.after(seconds, lambda: self.close(f"cut off after {seconds:g} s, as told"))

    def _closed(self, why: str) -> None:
        if self._end is not None:
            self._end.cancel()
        if self._twin is not None:
            self._twin.close(why)
        if self._interrupts is not None:
            self._interrupts.close()
        self._on_close(why)

    def _deliver(self, lane: Lane, data: bytes, fds: Sequence[int], whole: bool) -> None:
        try:
            if self._interrupts is not None and whole and _answers_set_irqs(lane, data):
                self._interrupts.answered(data)  # before a fault makes something else of it
            if not whole:
                self._note(lane, data, len(fds), UNCUT)
                lane.send(data, fds)
            elif self._faults.on_messages:
                self._judge(lane, data, fds)
            else:
                self._forward(lane, data, fds)
        except BaseException:
            close_all(fds)
            raise

    def _judge(self, lane: Lane, data: bytes, fds: Sequence[int]) -> None:
        """Does with a message what the faults say."""
        fate = self._faults.judge(Passing(data, lane.direction), time.monotonic() - self._started)
        if fate.data is not None:
            if not fate.fds:
                close_all(fds)
                fds = ()
            self._forward(lane, fate.data, fds, fate)
            return
        self._note(lane, data, len(fds), fate.remark)
        close_all(fds)
        if fate.disconnect:
            self.close("cut off, as told")
        elif fate.answer is not None:
            back = lane.opposite
            self._note(back, fate.answer, 0, MADE_UP)
            back.send(fate.answer, delay=fate.delay)

    def _forward(self, lane: Lane, data: bytes, fds: Sequence[int], fate: Fate = AS_IT_IS) -> None:
        command, remark = HEADER.unpack_from(data)[1], fate.remark
        if command == Command.VERSION:
            fds = self._take_note(lane, data, fds)
        elif command == Command.DEVICE_SET_IRQS and self._interrupts is not None and _is_command(data):
            fds = self._interrupts.stand_between(data, fds)
            remark = "; ".join(filter(None, (remark, BETWEEN if fds else "")))
        elif command == Command.DMA_MAP and not self._share_memory and fds:
            close_all(fds)
            fds, remark = (), "; ".join(filter(None, (remark, KEPT_BACK)))
        if self._observer is None:
            lane.send(data, fds, fate.delay)
            return
        came, count = time.time_ns(), len(fds)
        lane.send(data, fds, fate.delay)
        self._note(lane, data, count, remark, came)

    def _note(self, lane: Lane, data: bytes, fds: int, remark: str, came: int | None = None) -> None:
        """Tells whoever watches of a message that `came` then, or now: after it went on, as a CPU waits."""
        if self._observer is None:
            return
        place = TWIN if self._twin is not None and lane in self._twin.lanes else MAIN
        time_ns = time.time_ns() if came is None else came
        self._observer(Captured(time_ns, lane.direction, data, fds, place, remark, self._connection))

    def _take_note(self, lane: Lane, data: bytes, fds: Sequence[int]) -> Sequence[int]:
        """Of what VERSION says: the sizes its sender takes, and the twin socket, between which we get too."""
        try:
            said = Version.decode(data[HEADER_SIZE:]).capabilities
        except RemoteProtocolError:
            return fds
        if said is None:
            return fds
        lane.opposite.expect(said.max_data_xfer_size)
        self._limits[lane.opposite.direction] = said.max_data_xfer_size
        index = said.twin_socket.fd_index or 0
        wanted = said.twin_socket.supported and lane.direction is Direction.TO_CLIENT
        if not wanted or self._twin is not None or index >= len(fds):
            return fds
        copy = os.dup(fds[index])
        try:
            server = socket.socket(fileno=copy)
        except OSError:  # no socket
            os.close(copy)
            return fds
        if (server.family, server.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            server.close()
            return fds
        client, theirs = socket.socketpair()
        self._twin = Relay(self._loop, client, server, self._deliver, lambda why: None)
        for each in self._twin.lanes:
            each.expect(self._limits.get(each.direction, 1 << 20))
        close_all(fds[index : index + 1])
        return [*fds[:index], theirs.detach(), *fds[index + 1 :]]

    def _drops(self, index: int, vector: int) -> bool:
        return self._faults.drops(index, vector, time.monotonic() - self._started)


def _answers_set_irqs(lane: Lane, data: bytes) -> bool:
    reply = HEADER.unpack_from(data)[1] == Command.DEVICE_SET_IRQS and not _is_command(data)
    return reply and lane.direction is Direction.TO_CLIENT


def _is_command(data: bytes) -> bool:
    return Passing(data, Direction.TO_SERVER).part is Part.COMMAND and not data[8] & HeaderFlag.ERROR
