"""One client's conversation with one device, without a socket.

A `Session` takes what arrived (bytes and descriptors), lets the protocol make requests of it, asks the
device, and hands the answers to ``send``. A server gives it a socket, `TestClient` a function call.
Requests are handled in the order of the wire. One for which the device has to be quiet first (`QUIESCING`)
may have to wait until it is, and all that come behind it wait too.
"""

import errno
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

from outboard.descriptors import close_all
from outboard.device import DeviceContract
from outboard.errors import OutboardError, RequestRefused
from outboard.loop import Loop
from outboard.protocol import (
    SERVER_DEFAULTS,
    Command,
    ErrorReply,
    Event,
    Fatal,
    Malformed,
    Migration,
    Reply,
    Request,
    ServerConnection,
    TwinSocket,
)
from outboard.protocol.connection import MAX_ERRNO
from outboard.protocol.messages import DeviceFeature, DeviceReset, DmaMap, DmaUnmap, Version
from outboard.server.features import Features
from outboard.server.full_replies import full_reply
from outboard.server.profiles import SPEC, OnError, Profile, detect
from outboard.server.remote_dma import MessageDma
from outboard.server.requests import Requests
from outboard.server.twin import Twin

log = logging.getLogger(__name__)

NO_DESCRIPTORS: tuple[int, ...] = ()
PATIENCE = 5.0
"""Seconds after which QEMU gives a request up (its x-msg-timeout)."""
# By the class of the body: on Python 3.11 the hash of an enum's member costs time, for each register write.
QUIESCING = frozenset({DmaMap, DmaUnmap, DeviceReset, DeviceFeature})
"""Requests for which a device has to be quiet; of the last, only changes of its migration state."""
MOST_HELD, MOST_HELD_MESSAGES, MOST_HELD_FDS = 32 << 20, 1 << 16, 1024
"""Bytes, messages and descriptors a client may send while a request of it waits for a quiet device."""


class Session:
    """One client's conversation with `device`.

    ``send(data, fds)`` transmits one whole message; True if it has gone, with its descriptors, False if it
    waits its turn. ``pump(seconds)`` lets input arrive while the device waits for memory by message: on the
    ``twin`` socket if there is one, and on the client's own unless we are ``in_handler``. ``ended()`` is
    called when it is over (`closed`) although nothing has arrived just now. ``profile`` is what the client is
    taken for (None: what its VERSION says); ``on_error``, unless None, is put in place of the profile's.
    """

    def __init__(
        self,
        device: DeviceContract,
        loop: Loop,
        send: Callable[[bytes, Sequence[int]], bool],
        pump: Callable[[float], None],
        *,
        ended: Callable[[], None] = lambda: None,
        on_error: OnError | None = None,
        profile: Profile | None = None,
    ) -> None:
        self.device = device
        self.closed = False
        self.in_handler = False
        self.profile = SPEC
        self.twin: Twin | None = None
        self._is_connected = False
        self._given = profile
        self._on_error = on_error
        self._loop = loop
        self._transmit = send
        self._ended = ended
        self._report = loop.report
        self._quiesce: Callable[[Callable[[], None]], bool] | None = getattr(device, "quiesce", None)
        self._held: Request | None = None
        self._waiting: deque[Event] = deque()
        self._held_bytes = self._held_fds = 0
        migration = Migration() if hasattr(device, "save_state") else None
        self._connection = ServerConnection(replace(SERVER_DEFAULTS, migration=migration))
        self._memory = MessageDma(self, self._connection, pump)
        self._requests = Requests(device)
        self._sizes = self._requests.sizes
        _optional(device, "attach", loop)

    @property
    def introduced(self) -> bool:
        """Whether the client has said VERSION, and it was agreed."""
        return self._is_connected

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Handles what arrived; sets `closed` when the client has to go."""
        if self._held is not None:
            self._keep(self._connection.feed(data, fds), len(data))
            return
        # By far most messages are one register read that a vCPU waits for: it is answered with no event made.
        started = monotonic()
        self.in_handler = True
        try:
            answer = None if fds else self._connection.answer_read(data, self._sizes, self._requests.read)
        except Exception as error:
            [request] = self._connection.feed(data)
            assert isinstance(request, Request)
            answer = self._refusal(request, error)
        finally:
            self.in_handler = False
        if answer is not None:
            self._transmit(answer, NO_DESCRIPTORS)
            if monotonic() - started > PATIENCE:
                _warn_of_slowness("REGION_READ", monotonic() - started)
            return
        self._handle_in_turn(self._connection.feed(data, fds))

    def send(self, data: bytes) -> None:
        """Transmits one message, if there is one."""
        if data:
            self._transmit(data, ())

    def close(self) -> None:
        """Ends the conversation: guest memory is unmapped, eventfds closed; the device stays."""
        self.closed = True
        close_all(self._connection.pending_fds)
        if self.twin is not None:
            self.twin.close()
        for event in (self._held, *self._waiting):
            if event is not None:
                close_all(event.fds)
        self._held = None
        self._waiting.clear()
        hook = getattr(self.device, "disconnected", None) if self._is_connected else None
        reset = self.device.reset if self._is_connected and self.profile.reset_on_disconnect else None
        self._is_connected = False
        for release in (hook, *self._requests.releases(), reset):
            try:
                if release is not None:
                    release()
            except Exception as error:
                self._report(error, "letting go of the client")

    def _handle_in_turn(self, events: Sequence[Event]) -> None:
        """Handles `events`, up to one that has to wait for the device; those behind it wait too."""
        for number, event in enumerate(events):
            if self.closed:
                close_all(event.fds)
            elif type(event) is not Request:
                self._handle_other(event)
            elif self._has_to_wait(event):
                self._keep(events[number + 1 :], 0)
                return
            else:
                self._handle(event)

    def _has_to_wait(self, request: Request) -> bool:
        """Whether `request` is held back until the device is quiet."""
        if type(request.body) not in QUIESCING:
            return False
        if Features.changes_state(request.body):
            # What the device has put off until after the requests before is done first.
            self._held = request
            self._loop.call_soon(self._ask_for_quiet)
            return True
        if self._quiesce is None or request.command is Command.DEVICE_FEATURE:
            return False
        self._held = request
        if self._is_quiet():
            self._held = None
            return False
        return True

    def _ask_for_quiet(self) -> None:
        if self._held is not None and self._is_quiet():
            self._go_on()

    def _is_quiet(self) -> bool:
        """Whether the device is quiet already; if not, `_go_on_soon` is called when it is."""
        try:
            return self._quiesce is None or self._quiesce(self._go_on_soon)
        except Exception as error:
            # It will never say that it is quiet, and the client must not wait for ever.
            self._report(error, "becoming quiet")
            return True

    def _go_on_soon(self) -> None:
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """The device is quiet: what waited for that is handled, and what came after it."""
        request, self._held = self._held, None
        if request is None:
            return
        self._handle(request)
        waiting, self._waiting = tuple(self._waiting), deque()
        self._held_bytes = self._held_fds = 0
        self._handle_in_turn(waiting)
        if self.closed:
            self._ended()

    def _keep(self, events: Sequence[Event], size: int) -> None:
        """Keeps what comes while a request is held back; answers to our own commands are not among it."""
        self._held_bytes += size
        for event in events:
            if isinstance(event, Reply | ErrorReply):
                self._handle_other(event)
            else:
                self._waiting.append(event)
                self._held_fds += len(event.fds)
        if (
            self._held_bytes > MOST_HELD
            or len(self._waiting) > MOST_HELD_MESSAGES
            or self._held_fds > MOST_HELD_FDS
        ):
            log.warning(
                "the client sent %d messages (%d bytes, %d descriptors) while its %s waits for the device;"
                " the most are %d (%d, %d)",
                len(self._waiting),
                self._held_bytes,
                self._held_fds,
                self._held.command.name if self._held else "request",
                MOST_HELD_MESSAGES,
                MOST_HELD,
                MOST_HELD_FDS,
            )
            self.closed = True

    def _handle(self, request: Request) -> None:
        """Answers one request; no request costs the server its life."""
        started = monotonic()
        requests = self._requests
        fds: Sequence[int] = ()
        self.in_handler = True
        try:
            if method := requests.table.get(request.command):
                answer = self._connection.reply(request, method(request, request.body))
                fds, requests.reply_fds = requests.reply_fds, ()
            elif request.command is Command.VERSION:
                answer = self._accept(request)
                _optional(self.device, "connected", self._memory)
                fds = () if self.twin is None else (self.twin.theirs,)
            else:
                raise RequestRefused(f"this server does not support {request.command.name}")
        except Exception as error:
            answer = self._refusal(request, error)
            requests.reply_fds = ()
            # Without an agreed version nothing can follow.
            self.closed = request.command is Command.VERSION
        finally:
            self.in_handler = False
            if request.fds:
                close_all(request.fds)
            if type(request.body) in QUIESCING:
                self._resume()
        if monotonic() - started > PATIENCE:
            _warn_of_slowness(request.command.name, monotonic() - started)
        gone = bool(answer) and self._transmit(answer, fds)
        if request.command is Command.VERSION and self.twin is not None:
            self._memory.twin = self.twin  # not before the client has its end
            if gone:
                self.twin.let_go()

    def _resume(self) -> None:
        try:
            _optional(self.device, "unquiesce")
        except Exception as error:
            self._report(error, "going on")

    def _accept(self, request: Request) -> bytes:
        """The answer to VERSION; from now on the client is known."""
        version, connection = request.body, self._connection
        assert isinstance(version, Version)
        profile = self._given or detect(version)
        reason = "as told" if self._given else profile.told_by
        log.info("the client is taken for %s (profile %s: %s)", profile.client, profile.name, reason)
        self.profile = profile if self._on_error is None else replace(profile, on_error=self._on_error)
        peer = connection.peer
        takes_twin = peer.twin_socket.supported and peer.max_msg_fds > 0
        connection.offer = replace(
            connection.offer,
            write_multiple=profile.write_multiple,
            twin_socket=TwinSocket(supported=takes_twin),
        )
        answer = connection.accept(request)
        if takes_twin:
            self.twin = Twin(connection.twin(), self._memory.deliver, self._loop)
        self._is_connected = True
        self._requests.meet(self.profile, peer.max_msg_fds)
        self._requests.features.limit = connection.transfer_limit
        _optional(self.device, "introduced", self.profile)
        return answer

    def _refusal(self, request: Request, error: Exception) -> bytes:
        """The error reply to a request that failed; whose fault it was goes to the log."""
        if isinstance(error, OutboardError):
            # QEMU clears the whole space of a virtual IOMMU, in dozens of pieces of which most are empty.
            is_routine = request.command is Command.DMA_UNMAP and error.errno == errno.ENOENT
            level = logging.DEBUG if is_routine else logging.WARNING
            log.log(level, "%s refused (%s fault): %s", request.command.name, error.fault, error)
            # A device that is a client itself may pass on an errno that no reply can carry.
            number = error.errno if 0 < error.errno <= MAX_ERRNO else errno.EIO
        else:
            self._report(error, request.command.name)
            number = errno.EIO
        if self.profile.on_error == "full" and (body := full_reply(request.body)) is not None:
            return self._connection.reply(request, body)
        if number == errno.EEXIST:
            number = self.profile.overlap_errno
        return self._connection.refuse(request, number)

    def _handle_other(self, event: Event) -> None:
        close_all(event.fds)
        match event:
            case Reply() | ErrorReply():
                if not self._memory.deliver(event):
                    log.warning(
                        "the client answers a command (id %d) that nobody waits for", event.message_id
                    )
            case Malformed():
                log.warning("refused: %s", event.error)
                self.send(self._connection.refuse(event, event.error.errno))
            case Fatal():
                log.warning("closing the connection: %s", event.error)
                self.send(event.answer)
                self.closed = True


def _warn_of_slowness(command: str, seconds: float) -> None:
    log.warning(
        "%s took %.1f s; QEMU gives a request up after %g s: put slow work off with self.call_soon",
        command,
        seconds,
        PATIENCE,
    )


def _optional(device: Any, name: str, *arguments: object) -> None:
    """Calls a method that a device may have."""
    if (method := getattr(device, name, None)) is not None:
        method(*arguments)
