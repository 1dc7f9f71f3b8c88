"""The two ends of a vfio-user connection, without the socket: bytes in, events out, and back.

vfio-user specification, "vfio-user Protocol". Both ends live by the table in `states`. An end never
reads or writes anything: its holder feeds what arrived and sends what the methods return.

Descriptors are integers passed through. Every one that is fed comes out in exactly one event, or is
in ``pending_fds`` when the connection ends; whoever holds the event closes what it does not keep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import EINVAL, EIO
from struct import Struct
from typing import ClassVar, Self

from outboard.errors import LocalProtocolError, RemoteProtocolError
from outboard.protocol.capabilities import CLIENT_DEFAULTS, SERVER_DEFAULTS, Capabilities
from outboard.protocol.codec import BadHeader, Frame, FrameReader, Header
from outboard.protocol.messages import DmaLayout, DmaTransfer, Empty, RegionWrite, Version
from outboard.protocol.states import RULE_OF_REQUEST, RULES, Direction, Rule, State
from outboard.protocol.wire import (
    HEADER,
    HEADER_SIZE,
    VERSION_MAJOR,
    VERSION_MINOR,
    Buffer,
    Command,
    HeaderFlag,
    Message,
)

# Bound once: on Python 3.11 each look-up of an enum's member, and each operation on a flag, costs time
# that a register access cannot spare.
REPLY = int(HeaderFlag.REPLY)
TYPE_MASK = int(HeaderFlag.TYPE_MASK)
NO_REPLY = int(HeaderFlag.NO_REPLY)
ERROR = int(HeaderFlag.ERROR)
NEW, OPEN, CLOSED = State.NEW, State.OPEN, State.CLOSED
SPEC = DmaLayout.SPEC
REGION_READ, REGION_WRITE = Command.REGION_READ, Command.REGION_WRITE

WHOLE_ACCESS = Struct("=HHIIIQII")  # a header and the fields of a register access
ACCESS_SIZE = WHOLE_ACCESS.size
unpack_access, pack_access = WHOLE_ACCESS.unpack, WHOLE_ACCESS.pack

MAX_ERRNO = 4095
MAX_MESSAGE_ID = 0xFFFF


@dataclass(slots=True)
class Request:
    """The peer's command. Answer with `reply` or `refuse` (VERSION: `accept`), in order."""

    message_id: int
    command: Command
    body: Message
    fds: tuple[int, ...]
    no_reply: bool


@dataclass(slots=True)
class Reply:
    """The answer to our command ``message_id``."""

    message_id: int
    command: Command
    body: Message
    fds: tuple[int, ...]


@dataclass(slots=True)
class ErrorReply:
    """The peer could not do our command ``message_id``; ``errno`` is 0 if it did not say why."""

    message_id: int
    command: Command
    errno: int
    fds: tuple[int, ...]


@dataclass(slots=True)
class Malformed:
    """A message that may not be, in a stream still in step: `refuse` it, close ``fds`` and go on."""

    message_id: int
    command: int
    error: RemoteProtocolError
    fds: tuple[int, ...]
    no_reply: bool


@dataclass(slots=True)
class Fatal:
    """The stream cannot go on: send ``answer`` unless empty, close ``fds`` and the connection."""

    error: RemoteProtocolError
    answer: bytes
    fds: tuple[int, ...]


Event = Request | Reply | ErrorReply | Malformed | Fatal


class Connection:
    """What both ends do. ``peer`` is what the other end can take: the defaults until VERSION.

    ``dma_layout`` is how DMA_READ and DMA_WRITE lie on the wire; set it once the peer is known.
    """

    receives: ClassVar[Direction]

    def __init__(self, offer: Capabilities) -> None:
        self.offer = offer
        self.peer = Capabilities()
        self.state = NEW
        self.dma_layout = SPEC
        self._reader = FrameReader(offer.max_data_xfer_size)
        self._waiting: dict[int, Rule] = {}
        self._last_id = MAX_MESSAGE_ID

    @property
    def pending_fds(self) -> tuple[int, ...]:
        """Descriptors fed that are in no event yet: close them with the connection."""
        return self._reader.pending_fds

    @property
    def transfer_limit(self) -> int:
        """The most bytes of data one of our commands may move: both ends' limits hold."""
        return min(self.offer.max_data_xfer_size, self.peer.max_data_xfer_size)

    def twin(self) -> Self:
        """The same end of the twin socket: open, with what VERSION has agreed here.

        The server's commands and their replies go there; what else comes there is refused.
        """
        twin = type(self)(self.offer)
        twin.peer, twin.state = self.peer, self.state
        return twin

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> list[Event]:
        """Takes what one recvmsg gave; returns what is complete, in order. After a Fatal: nothing."""
        reader = self._reader
        events: list[Event] = []
        if self.state is CLOSED:
            reader.receive(b"", fds)
            return events
        reader.receive(data, fds)
        try:
            while (frame := reader.next_frame()) is not None:
                event = self._event(frame)
                events.append(event)
                if type(event) is Fatal:
                    event.fds += reader.claim_all()
                    break
        except BadHeader as error:
            events.append(self._fatal(error, error.header, reader.claim_all()))
        return events

    def eof(self) -> None:
        """The peer has closed. Raises RemoteProtocolError if that was inside a message."""
        if self._reader.in_message and self.state is not CLOSED:
            raise RemoteProtocolError("the peer closed the connection in the middle of a message")

    def reply(self, request: Request, body: Message) -> bytes:
        """The bytes that answer ``request``, none if it wants no reply.

        Raises LocalProtocolError if ``body`` is no answer to it.
        """
        expected = RULES[request.command].reply
        if type(body) is not expected:
            name = type(body).__name__
            raise LocalProtocolError(f"{request.command.name} is answered by {expected.__name__}, not {name}")
        if request.no_reply:
            return b""
        payload = body.encode() if self.dma_layout is SPEC else self._encode(body)
        size = HEADER_SIZE + len(payload)
        return HEADER.pack(request.message_id, request.command, size, REPLY, 0) + payload

    def refuse(self, request: Request | Malformed, errno: int) -> bytes:
        """The 16 bytes that answer ``request`` with ``errno``, none if it wants no reply."""
        if not 0 < errno <= MAX_ERRNO:
            raise LocalProtocolError(f"an error reply carries an errno from 1 to {MAX_ERRNO}, not {errno}")
        return b"" if request.no_reply else _refusal(request.message_id, request.command, errno)

    def command(self, body: Message, *, no_reply: bool = False) -> tuple[int, bytes]:
        """The id and the bytes of a command; its answer comes as an event with the same id.

        Raises LocalProtocolError if this end may not send it, not now, or not with so much data.
        """
        rule = RULE_OF_REQUEST.get(type(body))
        if rule is None or rule.direction is self.receives:
            raise LocalProtocolError(f"{type(body).__name__} is no command of this end of the connection")
        if self.state is not rule.state:
            raise LocalProtocolError(
                f"{rule.command.name} may not be sent on a connection that is {self.state.value}"
            )
        if body.transfer > self.transfer_limit:
            raise LocalProtocolError(
                f"{rule.command.name} moves {body.transfer} bytes, {self.transfer_limit} at most: split it"
            )
        payload = self._encode(body)
        message_id = self._next_id()
        if not no_reply:
            self._waiting[message_id] = rule
        flags = NO_REPLY if no_reply else 0
        return message_id, HEADER.pack(
            message_id, rule.command, HEADER_SIZE + len(payload), flags, 0
        ) + payload

    def _next_id(self) -> int:
        for step in range(1, MAX_MESSAGE_ID + 2):
            message_id = (self._last_id + step) & MAX_MESSAGE_ID
            if message_id not in self._waiting:
                self._last_id = message_id
                return message_id
        raise LocalProtocolError(f"all {MAX_MESSAGE_ID + 1} message ids wait for their replies")

    def _encode(self, body: Message) -> bytes:
        if self.dma_layout is not SPEC and isinstance(body, DmaTransfer):
            return body.encode(self.dma_layout)
        return body.encode()

    def _decode(self, kind: type[Message], payload: Buffer) -> Message:
        if self.dma_layout is not SPEC and issubclass(kind, DmaTransfer):
            return kind.decode(payload, self.dma_layout)
        return kind.decode(payload)

    def _event(self, frame: Frame) -> Event:
        flags = frame.flags
        if flags & TYPE_MASK == REPLY:
            return self._reply_event(frame)
        if flags & TYPE_MASK:
            error = RemoteProtocolError(f"a message has type {flags & TYPE_MASK}, neither command nor reply")
            return self._fatal(error, frame, frame.fds)
        rule = RULES.get(frame.command)
        if flags & ERROR and rule is not None and self._waiting.get(frame.message_id) is rule:
            return self._reply_event(frame)  # the Rust server leaves the type out of its error replies
        if rule is None or rule.direction is not self.receives:
            return self._malformed(frame, RemoteProtocolError(f"this end takes no command {frame.command}"))
        if rule.state is not self.state:
            sentence = f"{rule.command.name} came on a connection that is {self.state.value}"
            return self._malformed(frame, RemoteProtocolError(sentence))
        try:
            body = self._decode(rule.request, frame.payload)
            if body.transfer > self.offer.max_data_xfer_size or frame.fds:
                self._check(rule, body, frame.fds)
            if rule.state is NEW:
                self._agree(body)
        except RemoteProtocolError as error:
            if rule.state is NEW:  # with no version agreed, nothing can follow
                return self._fatal(error, frame, frame.fds)
            return self._malformed(frame, error)
        return Request(frame.message_id, rule.command, body, frame.fds, flags & NO_REPLY != 0)

    def _check(self, rule: Rule, body: Message, fds: tuple[int, ...]) -> None:
        name, limit = rule.command.name, self.offer.max_data_xfer_size
        if body.transfer > limit:
            raise RemoteProtocolError(f"{name} moves {body.transfer} bytes, max_data_xfer_size is {limit}")
        if rule.request_fds and len(fds) > rule.request_fds:
            raise RemoteProtocolError(f"{name} has {len(fds)} descriptors, {rule.request_fds} at most")

    def _reply_event(self, frame: Frame) -> Event:
        rule = self._waiting.get(frame.message_id)
        if rule is None or rule.command != frame.command:
            sentence = f"a reply to command {frame.command} with id {frame.message_id} was not waited for"
            return self._unexpected_reply(frame, RemoteProtocolError(sentence))
        del self._waiting[frame.message_id]
        if frame.flags & ERROR:
            return ErrorReply(frame.message_id, rule.command, frame.error, frame.fds)
        try:
            if rule.bare_reply and not frame.payload:
                body: Message = Empty()
            else:
                body = self._decode(rule.reply, frame.payload)
            if rule.state is NEW:
                self._agree(body)
        except RemoteProtocolError as error:
            return self._fatal(error, frame, frame.fds)
        return Reply(frame.message_id, rule.command, body, frame.fds)

    def _unexpected_reply(self, frame: Frame, error: RemoteProtocolError) -> Event:
        raise NotImplementedError

    def _agree(self, version: Message) -> None:
        """Takes the peer's VERSION as agreed. Raises RemoteProtocolError if it cannot be."""
        assert isinstance(version, Version)
        if version.major != VERSION_MAJOR:
            raise RemoteProtocolError(
                f"the peer speaks version {version.major}.{version.minor}, we speak {VERSION_MAJOR}.x"
            )
        self.peer = version.capabilities or Capabilities()
        self.state = OPEN

    def _malformed(self, frame: Frame, error: RemoteProtocolError) -> Malformed:
        silent = frame.flags & (NO_REPLY | TYPE_MASK) != 0  # a reply is never answered
        return Malformed(frame.message_id, frame.command, _bare(error), frame.fds, silent)

    def _fatal(self, error: RemoteProtocolError, header: Header | Frame, fds: tuple[int, ...]) -> Fatal:
        self.state = CLOSED
        silent = header.flags & NO_REPLY or header.flags & TYPE_MASK == REPLY
        answer = b"" if silent else _refusal(header.message_id, header.command, EINVAL)
        return Fatal(_bare(error), answer, fds)


def _bare(error: RemoteProtocolError) -> RemoteProtocolError:
    """The error without its traceback, which would keep the message alive until the collector runs."""
    return RemoteProtocolError(error.sentence, errno=error.errno)


def _refusal(message_id: int, command: int, errno: int) -> bytes:
    return HEADER.pack(message_id, command, HEADER_SIZE, REPLY | ERROR, errno)


class ServerConnection(Connection):
    """The device's end: takes the client's commands, sends DMA_READ and DMA_WRITE.

    Raises LocalProtocolError for an ``offer`` that would make QEMU refuse us.

    >>> client, server = ClientConnection(), ServerConnection()
    >>> _, hello = client.version_command()
    >>> [request] = server.feed(hello)
    >>> [welcome] = client.feed(server.accept(request))
    >>> welcome.body.minor, client.peer.max_msg_fds
    (1, 16)
    """

    receives = Direction.TO_SERVER

    def __init__(self, offer: Capabilities = SERVER_DEFAULTS) -> None:
        offer.check_offer()
        super().__init__(offer)
        self._in_step = False  # whether the next chunk begins a message of an open connection
        self._most_data = offer.max_data_xfer_size

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> list[Event]:
        """Takes what one recvmsg gave; returns what is complete, in order. After a Fatal: nothing."""
        if self._in_step and len(data) > ACCESS_SIZE and not fds:
            # A chunk that is one register write skips the general way, as `answer_read` does: a vCPU waits.
            message_id, command, size, flags, _, offset, region, count = WHOLE_ACCESS.unpack_from(data)
            if (
                command == REGION_WRITE
                and size == len(data) == ACCESS_SIZE + count
                and count <= self._most_data
                and (not flags or flags == NO_REPLY)
            ):
                body = RegionWrite(offset, region, count, data[ACCESS_SIZE:])
                return [Request(message_id, REGION_WRITE, body, (), flags != 0)]
        events = super().feed(data, fds)
        self._in_step = self.state is OPEN and self._reader.is_empty
        return events

    def answer_read(
        self, data: bytes, sizes: Sequence[int], read: Callable[[int, int, int], bytes]
    ) -> bytes | None:
        """The answer to `data` if it is one whole, ordinary REGION_READ, as nearly all messages are; or None.

        ``sizes`` are those of the regions, in bytes; ``read(region, offset, count)`` gives the content. The
        short way for a holder that answers at once and needs no event: a vCPU waits. Whatever `read` raises
        comes through, and LocalProtocolError if it gives another length.
        """
        if len(data) != ACCESS_SIZE or not self._in_step:
            return None
        message_id, command, size, flags, _, offset, region, count = unpack_access(data)
        if command != REGION_READ or size != ACCESS_SIZE or flags or not 0 < count <= self._most_data:
            return None
        if region >= len(sizes) or offset + count > sizes[region]:
            return None
        content = read(region, offset, count)
        if len(content) != count:
            raise LocalProtocolError(
                f"{len(content)} bytes answer a read of {count} at {offset:#x} of region {region}", errno=EIO
            )
        return pack_access(message_id, command, size + count, REPLY, 0, offset, region, count) + content

    def accept(self, request: Request) -> bytes:
        """The bytes that answer VERSION: the lower minor, our limits, the features both ends have."""
        version = request.body
        if not isinstance(version, Version):
            raise LocalProtocolError(f"{request.command.name} is answered by reply, only VERSION by accept")
        minor = min(version.minor, VERSION_MINOR)
        return self.reply(request, Version(VERSION_MAJOR, minor, self.offer.answer(self.peer)))

    def _unexpected_reply(self, frame: Frame, error: RemoteProtocolError) -> Event:
        return self._malformed(frame, error)


class ClientConnection(Connection):
    """The VMM's end: sends commands, serves DMA_READ and DMA_WRITE.

    A reply nobody waits for is fatal here: the next one might be taken for another's.
    """

    receives = Direction.TO_CLIENT

    def __init__(self, offer: Capabilities = CLIENT_DEFAULTS, *, minor: int = VERSION_MINOR) -> None:
        super().__init__(offer)
        self.minor = minor

    def version_command(self) -> tuple[int, bytes]:
        """The id and the bytes of VERSION, the first command; the connection opens with its reply."""
        if self._waiting:
            raise LocalProtocolError("VERSION has been sent, its reply has not come yet")
        return self.command(Version(VERSION_MAJOR, self.minor, self.offer))

    def _agree(self, version: Message) -> None:
        super()._agree(version)
        assert isinstance(version, Version)
        if version.minor > self.minor:
            raise RemoteProtocolError(
                f"the server chose version 0.{version.minor}, we offered 0.{self.minor}"
            )

    def _unexpected_reply(self, frame: Frame, error: RemoteProtocolError) -> Event:
        return self._fatal(error, frame, frame.fds)
