"""The stream: split anywhere, bounded, and in step after anything but a bad header."""

import errno
import gc
import tracemalloc
from itertools import pairwise
from weakref import ref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.errors import RemoteProtocolError
from outboard.protocol import Event, Fatal, Header, Malformed, Request, ServerConnection
from outboard.protocol.messages import RegionRead, RegionWrite
from tests.protocol.strategies import MESSAGES, TO_SERVER_REQUESTS, only_request, open_pair


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


def feed_all(server: ServerConnection, chunks: list[bytes]) -> list[Event]:
    return [event for chunk in chunks for event in server.feed(chunk)]


requests = st.sampled_from(TO_SERVER_REQUESTS).flatmap(lambda kind: MESSAGES[kind])


@pytest.mark.point("P5", "P6")
@given(body=requests, no_reply=st.booleans())
def test_a_message_whole_or_byte_by_byte_is_the_same_event(body: object, no_reply: bool) -> None:
    """Any request fed whole, then byte by byte, gives equal events: itself."""
    client, server = open_pair()
    message_id, message = client.command(body, no_reply=no_reply)  # type: ignore[arg-type]
    whole = server.feed(message)
    single = feed_all(server, [message[i : i + 1] for i in range(len(message))])
    assert whole == single
    assert isinstance(whole[0], Request)
    assert (whole[0].message_id, whole[0].body, whole[0].no_reply) == (message_id, body, no_reply)
    server.eof()


@pytest.mark.point("P6", "P11")
@given(bodies=st.lists(requests, max_size=6), draw=st.data())
def test_a_stream_split_anywhere_gives_the_same_requests(bodies: list[object], draw: st.DataObject) -> None:
    """However a stream of requests is cut into chunks, the same requests come out in order."""
    client, server = open_pair()
    stream = b"".join(client.command(body)[1] for body in bodies)  # type: ignore[arg-type]
    cuts = draw.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    events = feed_all(server, pieces(stream, cuts))
    assert [event.body for event in events if isinstance(event, Request)] == bodies


@pytest.mark.point("P6", "P83")
def test_a_thousand_messages_in_one_chunk_come_out_in_order() -> None:
    client, server = open_pair()
    stream = b"".join(client.command(RegionRead(i, 0, 4))[1] for i in range(1000))
    events = server.feed(stream)
    assert [e.body for e in events if isinstance(e, Request)] == [RegionRead(i, 0, 4) for i in range(1000)]


@pytest.mark.point("P87")
@pytest.mark.parametrize("chunk", [1500, 4096, 65536, 2**22])
def test_the_largest_write_arrives_in_chunks_of_any_size(chunk: int) -> None:
    client, server = open_pair()
    data = bytes(range(256)) * 4096
    message = client.command(RegionWrite(0, 1, len(data), data))[1]
    events = feed_all(server, [message[i : i + chunk] for i in range(0, len(message), chunk)])
    assert [e.body for e in events if isinstance(e, Request)] == [RegionWrite(0, 1, len(data), data)]


@pytest.mark.point("P78", "P87")
@pytest.mark.parametrize("command", [9, 17])
def test_asking_for_more_data_than_agreed_is_refused(command: int) -> None:
    _, server = open_pair()
    size = 1024 * 1024 + 1
    body = (
        RegionRead(0, 0, size).encode()
        if command == 9
        else (8 + size).to_bytes(4, "little") + size.to_bytes(4, "little")
    )
    [event] = server.feed(Header(5, command, 16 + len(body), 0).encode() + body)
    assert isinstance(event, Malformed)
    assert server.refuse(event, errno.EINVAL) == Header(5, command, 16, 0x21, errno.EINVAL).encode()


@pytest.mark.point("P12")
@pytest.mark.parametrize("size", [0, 1, 15])
def test_a_size_below_the_header_ends_the_connection_with_an_answer(size: int) -> None:
    _, server = open_pair()
    [event] = server.feed(Header(7, 9, size, 0).encode())
    assert isinstance(event, Fatal)
    assert event.answer == Header(7, 9, 16, 0x21, errno.EINVAL).encode()


@pytest.mark.point("P13")
@pytest.mark.parametrize("size", [1024 * 1024 + 4096 + 17, 2**31, 2**32 - 1])
def test_a_size_over_the_limit_ends_the_connection_before_the_body_comes(size: int) -> None:
    _, server = open_pair()
    tracemalloc.start()
    [event] = server.feed(Header(7, 10, size, 0).encode())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(event, Fatal)
    assert event.answer == Header(7, 10, 16, 0x21, errno.EINVAL).encode()
    assert peak < 100_000


@pytest.mark.point("P13")
def test_a_large_size_alone_holds_no_memory() -> None:
    _, server = open_pair()
    tracemalloc.start()
    assert server.feed(Header(7, 10, 1024 * 1024, 0).encode()) == []
    assert server.feed(bytes(100)) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000


@pytest.mark.point("P24")
def test_an_ended_connection_is_freed_at_once() -> None:
    gc.disable()
    client, server = open_pair()
    gone = ref(server)
    events = server.feed(client.command(RegionRead(0, 0, 4))[1] + Header(7, 9, 3, 0).encode())
    assert isinstance(events[-1], Fatal)
    del server, events
    freed = gone() is None
    gc.enable()
    assert freed


@pytest.mark.point("P12", "P13")
def test_nothing_is_parsed_after_the_end() -> None:
    client, server = open_pair()
    message = client.command(RegionRead(0, 0, 4))[1]
    events = server.feed(message + Header(7, 9, 3, 0).encode() + message)
    assert [type(event) for event in events] == [Request, Fatal]
    assert server.feed(message) == []
    server.eof()


@pytest.mark.point("P14")
@pytest.mark.parametrize("kind", range(2, 16))
def test_a_message_that_is_neither_command_nor_reply_ends_the_connection(kind: int) -> None:
    _, server = open_pair()
    [event] = server.feed(Header(7, 13, 16, kind).encode())
    assert isinstance(event, Fatal)
    assert event.answer == Header(7, 13, 16, 0x21, errno.EINVAL).encode()


@pytest.mark.point("P14")
@pytest.mark.parametrize("flags", [0x20, 0x40, 0x8000_0000, 0xFFFF_FFC0])
def test_error_and_reserved_bits_of_a_command_are_ignored(flags: int) -> None:
    _, server = open_pair()
    assert not only_request(server, Header(7, 13, 16, flags, 99).encode()).no_reply


@pytest.mark.point("P10")
@pytest.mark.parametrize("size", [15, 2**32 - 1])
def test_a_bad_size_is_not_answered_where_no_reply_is_wanted(size: int) -> None:
    for flags in (0x10, 0x01):
        _, server = open_pair()
        [event] = server.feed(Header(7, 9, size, flags).encode())
        assert isinstance(event, Fatal)
        assert event.answer == b""


@pytest.mark.point("P21")
@pytest.mark.parametrize("length", [1, 15, 16, 31])
def test_the_end_of_the_stream_inside_a_message_is_an_error(length: int) -> None:
    client, server = open_pair()
    server.eof()
    server.feed(client.command(RegionRead(0, 0, 4))[1][:length])
    with pytest.raises(RemoteProtocolError, match="middle of a message"):
        server.eof()
