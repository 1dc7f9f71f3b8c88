"""Descriptors: each belongs to one message, and each comes out once."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboard.protocol import (
    ClientConnection,
    Command,
    Fatal,
    Header,
    Malformed,
    Reply,
    Request,
    ServerConnection,
)
from outboard.protocol.messages import DeviceInfo, DmaMap, DmaUnmap, RegionInfo, RegionRead, SetIrqs
from tests.protocol.strategies import open_pair


def maps(client: ClientConnection, count: int) -> list[bytes]:
    return [client.command(DmaMap(32, 3, 0, i << 12, 4096))[1] for i in range(count)]


def fds_of(server: ServerConnection, data: bytes, fds: list[int]) -> list[tuple[int, ...]]:
    return [event.fds for event in server.feed(data, fds)]


def test_descriptors_belong_to_the_last_message_that_starts_in_the_chunk() -> None:
    client, server = open_pair()
    first, second, third = maps(client, 3)
    assert fds_of(server, first + second + third[:20], [7]) == [(), ()]
    assert fds_of(server, third[20:], []) == [(7,)]


def test_descriptors_with_no_start_in_their_chunk_belong_to_the_message_in_progress() -> None:
    client, server = open_pair()
    [message] = maps(client, 1)
    assert fds_of(server, message[:10], []) == []
    assert fds_of(server, message[10:30], [7]) == []
    assert fds_of(server, message[30:], []) == [(7,)]


def test_descriptors_with_the_end_of_one_message_and_a_whole_one_belong_to_the_latter() -> None:
    client, server = open_pair()
    first, second = maps(client, 2)
    assert fds_of(server, first[:30], [7]) == []
    assert fds_of(server, first[30:] + second, [8]) == [(7,), (8,)]


def test_descriptors_before_any_byte_wait_for_the_next_message() -> None:
    client, server = open_pair()
    [message] = maps(client, 1)
    assert fds_of(server, b"", [7]) == []
    assert list(server.pending_fds) == [7]
    assert fds_of(server, message, []) == [(7,)]
    assert list(server.pending_fds) == []


@dataclass
class Peer:
    """A sender whose segments carry descriptors; `recvmsg` gives them back as Linux does."""

    segments: list[tuple[bytes, list[int]]] = field(default_factory=list)

    def recvmsg(self, size: int) -> tuple[bytes, list[int]]:
        """Up to ``size`` bytes, ending after the first segment that brought descriptors."""
        taken, fds = b"", list[int]()
        while self.segments and len(taken) < size and not fds:
            data, fds = self.segments.pop(0)
            room = size - len(taken)
            taken += data[:room]
            if data[room:]:
                self.segments.insert(0, (data[room:], []))
        return taken, fds


@given(
    with_fds=st.lists(st.booleans(), min_size=1, max_size=8), sizes=st.lists(st.integers(1, 120), min_size=1)
)
def test_every_message_gets_its_own_descriptors_however_it_is_read(
    with_fds: list[bool], sizes: list[int]
) -> None:
    """Messages sent with descriptors and read in chunks of any size keep their own descriptors."""
    client, server = open_pair()
    sent = [[100 + i] if has else [] for i, has in enumerate(with_fds)]
    peer = Peer(list(zip(maps(client, len(sent)), sent, strict=True)))
    got, turn = [], 0
    while peer.segments:
        data, fds = peer.recvmsg(sizes[turn % len(sizes)])
        got += [list(event.fds) for event in server.feed(data, fds)]
        turn += 1
    assert got == sent


@pytest.mark.point("P19")
def test_strays_on_a_command_that_takes_none_come_with_the_request() -> None:
    client, server = open_pair()
    for body in (DmaUnmap(24, 0, 0, 4096), DeviceInfo(16, 0, 0, 0), RegionRead(0, 0, 4)):
        [event] = server.feed(client.command(body)[1], [7, 8])
        assert isinstance(event, Request)
        assert event.fds == (7, 8)


@pytest.mark.point("P92")
def test_two_descriptors_on_a_map_are_refused() -> None:
    client, server = open_pair()
    [event] = server.feed(maps(client, 1)[0], [7, 8])
    assert isinstance(event, Malformed)
    assert event.fds == (7, 8)


@pytest.mark.point("P20")
@pytest.mark.parametrize("count", [1, 16, 17, 253])
def test_interrupts_may_come_with_more_descriptors_than_we_said(count: int) -> None:
    client, server = open_pair()
    [event] = server.feed(client.command(SetIrqs(20, 36, 2, 0, count))[1], list(range(count)))
    assert isinstance(event, Request)
    assert event.fds == tuple(range(count))


@pytest.mark.point("P20")
def test_descriptors_without_end_for_one_message_end_the_connection() -> None:
    client, server = open_pair()
    [message] = maps(client, 1)
    assert server.feed(message[:1], range(200)) == []
    [event] = server.feed(message[1:2], range(200, 400))
    assert isinstance(event, Fatal)
    assert event.fds == tuple(range(400))


@pytest.mark.point("P19")
def test_an_end_hands_over_every_descriptor() -> None:
    client, server = open_pair()
    message = maps(client, 1)[0]
    assert server.feed(message[:20], [5]) == []
    [event, end] = server.feed(message[20:] + Header(0, 2, 3, 0).encode() + message, [6])
    assert isinstance(event, Request)
    assert isinstance(end, Fatal)
    assert (event.fds, end.fds, server.pending_fds) == ((5,), (6,), ())
    assert server.feed(message, [9]) == []
    assert server.pending_fds == (9,)


def test_descriptors_of_a_message_that_ends_the_connection_are_in_the_end() -> None:
    _, server = open_pair()
    [end] = server.feed(Header(0, 2, 16, 5).encode(), [6])
    assert isinstance(end, Fatal)
    assert end.fds == (6,)


@pytest.mark.point("P130")
def test_a_reply_brings_its_descriptors() -> None:
    client, server = open_pair()
    message_id, message = client.command(RegionInfo(32, 0, 0, 0, 0, 0))
    [request] = server.feed(message)
    assert isinstance(request, Request)
    info = RegionInfo(32, 7, 0, 0, 4096, 0)
    assert client.feed(server.reply(request, info), [7]) == [
        Reply(message_id, Command.DEVICE_GET_REGION_INFO, info, (7,))
    ]
