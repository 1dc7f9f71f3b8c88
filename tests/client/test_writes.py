"""Many writes in few messages, and posted ones: what a client puts on the wire, and in which order."""

import errno
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from outboard import Bar, Client, Device, Server
from outboard.errors import RemoteError, RemoteProtocolError
from outboard.server.profiles import SPEC
from outboard.testing.client import TestClient
from tests import raw
from tests.client.conftest import Stage, greet, wait_for_end
from tests.raw import Message, RawPeer

MULTI = b'{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":%d,"write_multiple":true}}\0'


class Log(Device):
    """Remembers the writes in their order."""

    mmio = Bar(0, size=0x4000)

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[tuple[int, int, int]] = []

    @mmio.on_write
    def written(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))

    @mmio.on_read
    def read(self, offset: int, size: int) -> int:
        return len(self.writes)


def entries(message: Message) -> list[tuple[int, int, bytes]]:
    """The writes of a WRITE_MULTI as (region, offset, data)."""
    (count,) = struct.unpack_from("=Q", message.payload)
    assert len(message.payload) == 8 + 24 * count
    parts = struct.iter_unpack("=QII8s", message.payload[8:])
    return [(region, offset, data[:size]) for offset, region, size, data in parts]


def heard(play: Stage, text: bytes, use: list[tuple[int, int, bytes]], *, posted: bool) -> list[Message]:
    """What a server hears of `use` when its VERSION says `text`."""
    messages: list[Message] = []

    def script(peer: RawPeer) -> None:
        greet(peer, text)
        try:
            while True:
                messages.append(command := peer.receive())
                if command.flags & raw.NO_REPLY:
                    continue
                size = 8 if command.command == raw.WRITE_MULTI else 16
                peer.send(raw.reply(command, command.payload[:size]))
        except (EOFError, ConnectionError):
            pass

    with Client(play(script)) as client:
        client.write_many(use, posted=posted)
    play.end()
    return messages


WRITES = [(0, 0, b"\x01"), (1, 8, b"12345678"), (0, 16, b"nine byte"), (0, 32, b"\x02\x03"), (2, 0, b"")]


@pytest.mark.point("P84")
@pytest.mark.parametrize("posted", [False, True])
def test_short_writes_travel_together_long_ones_alone_and_order_is_kept(play: Stage, posted: bool) -> None:
    first, long, last = heard(play, MULTI % (1 << 20), WRITES, posted=posted)
    assert first.command == last.command == raw.WRITE_MULTI
    assert entries(first) == WRITES[:2]
    assert (long.command, long.payload) == (raw.REGION_WRITE, struct.pack("=QII", 16, 0, 9) + b"nine byte")
    assert entries(last) == WRITES[3:]
    assert {message.flags for message in (first, long, last)} == {raw.NO_REPLY if posted else 0}


@pytest.mark.point("P84")
@pytest.mark.parametrize("posted", [False, True])
def test_a_server_without_write_multi_gets_each_write_alone(play: Stage, posted: bool) -> None:
    messages = heard(play, raw.SERVER_JSON, WRITES, posted=posted)
    assert {message.command for message in messages} == {raw.REGION_WRITE}
    assert [struct.unpack_from("=QII", message.payload) for message in messages] == [
        (0, 0, 1),
        (8, 1, 8),
        (16, 0, 9),
        (32, 0, 2),
    ]


@pytest.mark.point("P84")
@pytest.mark.parametrize(("limit", "sizes"), [(1 << 20, [200, 200, 50]), (240, [10] * 45), (8, [1] * 450)])
def test_a_batch_respects_the_servers_limit(play: Stage, limit: int, sizes: list[int]) -> None:
    writes = [(0, 4 * number, number.to_bytes(4, "little")) for number in range(450)]
    messages = heard(play, MULTI % limit, writes, posted=False)
    batches = [entries(message) for message in messages]
    assert [len(batch) for batch in batches] == sizes
    assert [write for batch in batches for write in batch] == writes


@pytest.mark.point("P84")
def test_a_reply_that_counts_other_writes_is_refused(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer, MULTI % 4096)
        peer.send(raw.reply(peer.receive(), struct.pack("=Q", 1)))
        wait_for_end(peer)

    with Client(play(script)) as client, pytest.raises(RemoteProtocolError, match="1 of 2 writes were done"):
        client.write_many([(0, 0, b"a"), (0, 1, b"b")])


@pytest.mark.point("P84")
def test_a_reply_of_a_header_alone_will_do(play: Stage) -> None:
    def script(peer: RawPeer) -> None:
        greet(peer, MULTI % 4096)
        peer.send(raw.reply(peer.receive()))
        wait_for_end(peer)

    with Client(play(script)) as client:
        client.write_many([(0, 0, b"a"), (0, 1, b"b")])


@pytest.mark.point("P83")
def test_a_posted_write_is_one_message_without_reply_however_short(play: Stage) -> None:
    messages: list[Message] = []

    def script(peer: RawPeer) -> None:
        greet(peer, MULTI % 4096)
        messages.extend(peer.receive() for _ in range(3))

    with Client(play(script)) as client:
        client.post(0, 8, b"abcd")
        client.post(0, 0, bytes(4097))
    play.end()
    assert [(message.command, message.flags) for message in messages] == [
        (raw.REGION_WRITE, raw.NO_REPLY)
    ] * 3
    assert [struct.unpack_from("=QII", message.payload) for message in messages] == [
        (8, 0, 4),
        (0, 0, 4096),
        (4096, 0, 1),
    ]


@pytest.mark.point("P10", "P83", "P84")
@pytest.mark.parametrize("multiple", [False, True])
def test_a_thousand_writes_arrive_in_order_before_the_read_that_follows(folder: Path, multiple: bool) -> None:
    writes = [(0, 8 * (number % 1000), number.to_bytes(8, "little")) for number in range(3000)]
    device = Log()
    served = Server(device, folder / "s.sock", profile=replace(SPEC, write_multiple=multiple))
    with served.start(), Client(folder / "s.sock") as client:
        assert client.capabilities.write_multiple is multiple
        client.write_many(writes)
        client.write_many(writes, posted=True)
        client.post(0, 0x3000, b"last")
        assert client.bar(0).read32(0) == 6001
    expected = [(offset, 8, int.from_bytes(data, "little")) for _, offset, data in writes]
    assert device.writes[:-1] == expected * 2
    assert device.writes[-1] == (0x3000, 4, int.from_bytes(b"last", "little"))


@pytest.mark.parametrize("multiple", [False, True])
def test_a_refused_write_is_told_unless_it_was_posted(multiple: bool) -> None:
    with TestClient(Log(), profile=replace(SPEC, write_multiple=multiple)) as client:
        with pytest.raises(RemoteError) as refusal:
            client.write_many([(0, 0, b"good"), (0, 0x4000, b"far")])
        assert refusal.value.errno == errno.EINVAL
        client.post(0, 0x4000, b"far")
        client.write_many([(5, 0, b"nowhere")], posted=True)
        assert client.bar(0).read32(0) == (0 if multiple else 1)
