"""Whatever bytes come, in whatever pieces, both ends give the same events, and each descriptor exactly once.

And a message that has been understood can be said again, and is understood as the same.
"""

from dataclasses import astuple

from fuzz.choices import Choices
from fuzz.messages import command, mistaken, version
from outboard.errors import LocalProtocolError, RemoteProtocolError
from outboard.protocol import (
    RULES,
    Capabilities,
    ClientConnection,
    DmaLayout,
    Event,
    Fatal,
    Malformed,
    Reply,
    Request,
    ServerConnection,
)
from outboard.protocol.connection import Connection
from outboard.protocol.messages import (
    DeviceFeature,
    DeviceInfo,
    DmaRead,
    DmaUnmap,
    DmaWrite,
    Message,
    MigDataRead,
    RegionInfo,
    RegionIoFds,
    RegionRead,
)
from tests import raw

OFFER = Capabilities(max_msg_fds=16, max_data_xfer_size=8192)
ASKED: tuple[Message, ...] = (
    RegionRead(0, 7, 256),
    RegionInfo(4096, 0, 0, 0, 0, 0),
    DmaUnmap(24, 0, 0x1000, 0x1000),
    RegionIoFds(4096, 0, 1, 0),
    DeviceFeature(4096, 0x10001),
    MigDataRead(8, 4096),
    DeviceInfo(16, 0, 0, 0),
)
"""What a client's end waits for, with the ids from 1 on."""


def run(data: bytes) -> None:
    """One conversation with a server's end or a client's, whole and in pieces."""
    c = Choices(data)
    is_server = c.chance(0.5)
    stream = to_server(c) if is_server else to_client(c)
    opens, layout = c.chance(0.9), c.pick(tuple(DmaLayout))
    whole, cut = (_end(is_server, opens, layout) for _ in range(2))
    events, fds = whole.feed(stream), iter(range(1 << 20))
    apart: list[Event] = []
    given: list[int] = []
    at = 0
    while at < len(stream):
        size = 1 + c.below(64) if c.more else len(stream)
        sent = [next(fds) for _ in range(c.pick((0, 0, 1, 3)))]
        given += sent
        apart += cut.feed(stream[at : at + size], sent)
        at += size
    assert sorted([*(fd for event in apart for fd in event.fds), *cut.pending_fds]) == given
    if not given:  # descriptors may make a message wrong
        assert list(map(_told, apart)) == list(map(_told, events))
    for event in apart:
        _check(cut, event)


def _told(event: Event) -> object:
    """An event without its traceback and descriptors."""
    if isinstance(event, Malformed | Fatal):
        return type(event), str(event.error)
    return type(event), astuple(event)[:-2]


def _check(end: Connection, event: Event) -> None:
    match event:
        case Request():
            assert type(event.body) is RULES[event.command].request
            assert RULES[event.command].direction is end.receives
            assert event.body.transfer <= OFFER.max_data_xfer_size
            assert len(end.refuse(event, 5)) == (0 if event.no_reply else 16)
            _say_again(event.body, end.dma_layout)
        case Reply():
            _say_again(event.body, end.dma_layout)
        case Malformed():
            assert isinstance(event.error, RemoteProtocolError)
            assert len(end.refuse(event, event.error.errno)) == (0 if event.no_reply else 16)
        case Fatal():
            assert len(event.answer) in (0, 16)


def _say_again(body: Message, layout: DmaLayout) -> None:
    if layout is not DmaLayout.SPEC:
        return
    try:
        again = body.encode()
    except LocalProtocolError:
        return  # such as areas somewhere else than we put them
    assert type(body).decode(again) == body


def _end(is_server: bool, opens: bool, layout: DmaLayout) -> Connection:
    """A server or client that has commands in flight, its version agreed unless ``opens`` is false."""
    end: Connection = ServerConnection(OFFER) if is_server else ClientConnection(OFFER)
    end.dma_layout = layout
    if isinstance(end, ClientConnection):
        end.version_command()
    if opens:
        end.feed(raw.message(raw.VERSION, bytes(4), id=0, flags=0 if is_server else raw.REPLY))
        for body in (DmaRead(0x1000, 64), DmaWrite(0x1000, 4, b"data")) if is_server else ASKED:
            end.command(body)
    return end


def to_server(c: Choices) -> bytes:
    """Some messages of a client."""
    return b"".join((version if c.chance(0.05) else command)(c) for _ in range(1 + c.below(6)))


def to_client(c: Choices) -> bytes:
    """Replies of every kind, to what was asked and to what was not, and a server's commands."""
    stream = b""
    for _ in range(1 + c.below(6)):
        id, code = c.pick(
            ((1, 9), (2, 5), (3, 3), (4, 6), (5, 16), (6, 17), (7, 4), (0, 11), (0, 12), (0, 1))
        )
        data = raw.message(
            c.number((code,), 16),
            c.take(c.pick((0, 16, 32, 64, 4, 24, 100))),
            id=c.number((id,), 16),
            flags=c.number((1, 1, 1, 0, 0x21, 0x20, 0x10)),
            error=c.number((0, 5)),
        )
        stream += data if c.chance(0.8) else mistaken(c, data)
    return stream
