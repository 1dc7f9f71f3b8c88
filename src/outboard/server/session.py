"""One client's conversation with one device, without a socket.

A `Session` takes what arrived (bytes and descriptors), lets the protocol make requests of it, asks the
device, and hands the answers to ``send``. A server gives it a socket, `TestClient` a function call.
Requests are handled in the order of the wire.
"""

import errno
import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from outboard.descriptors import close_all
from outboard.device import DeviceContract
from outboard.errors import OutboardError, RequestRefused
from outboard.loop import Loop
from outboard.protocol import Command, ErrorReply, Event, Fatal, Malformed, Reply, Request, ServerConnection
from outboard.protocol.connection import MAX_ERRNO
from outboard.protocol.messages import Version
from outboard.server.remote_dma import MessageDma
from outboard.server.requests import OnError, Requests

log = logging.getLogger(__name__)

NO_DESCRIPTORS: tuple[int, ...] = ()
PATIENCE = 5.0
"""Seconds after which QEMU gives a request up (its x-msg-timeout)."""


class Session:
    """One client's conversation with `device`.

    ``send(data, fds)`` transmits one whole message; ``pump(seconds)`` lets input arrive while the device
    waits for memory by message. ``on_error`` says what a read gets whose handler failed: an error reply,
    or, with ``"ones"``, a successful reply of all ones (for clients that cannot take an error).
    """

    def __init__(
        self,
        device: DeviceContract,
        loop: Loop,
        send: Callable[[bytes, Sequence[int]], None],
        pump: Callable[[float], None],
        *,
        on_error: OnError = "error",
    ) -> None:
        self.device = device
        self.closed = False
        self.in_handler = False
        self._is_connected = False
        self._transmit = send
        self._report = loop.report
        self._connection = ServerConnection()
        self._memory = MessageDma(self, self._connection, pump)
        self._requests = Requests(device, on_error)
        self._sizes = self._requests.sizes
        _optional(device, "attach", loop)

    @property
    def introduced(self) -> bool:
        """Whether the client has said VERSION, and it was agreed."""
        return self._is_connected

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Handles what arrived; sets `closed` when the client has to go."""
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
        for event in self._connection.feed(data, fds):
            if self.closed:
                close_all(event.fds)
            elif type(event) is Request:
                self._handle(event)
            else:
                self._handle_other(event)

    def send(self, data: bytes) -> None:
        """Transmits one message, if there is one."""
        if data:
            self._transmit(data, ())

    def close(self) -> None:
        """Ends the conversation: guest memory is unmapped, eventfds closed; the device stays."""
        self.closed = True
        close_all(self._connection.pending_fds)
        hook = getattr(self.device, "disconnected", None) if self._is_connected else None
        self._is_connected = False
        for release in (hook, *self._requests.releases()):
            try:
                if release is not None:
                    release()
            except Exception as error:
                self._report(error, "letting go of the client")

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
                answer = self._connection.accept(request)
                self._is_connected = True
                self._requests.client_takes_fds = self._connection.peer.max_msg_fds > 0
                assert isinstance(request.body, Version)
                _optional(self.device, "introduced", request.body.capabilities is not None)
                _optional(self.device, "connected", self._memory)
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
        if monotonic() - started > PATIENCE:
            _warn_of_slowness(request.command.name, monotonic() - started)
        if answer:
            self._transmit(answer, fds)

    def _refusal(self, request: Request, error: Exception) -> bytes:
        """The error reply to a request that failed; whose fault it was goes to the log."""
        if isinstance(error, OutboardError):
            log.warning("%s refused (%s fault): %s", request.command.name, error.fault, error)
            # A device that is a client itself may pass on an errno that no reply can carry.
            number = error.errno if 0 < error.errno <= MAX_ERRNO else errno.EIO
            return self._connection.refuse(request, number)
        self._report(error, request.command.name)
        return self._connection.refuse(request, errno.EIO)

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
