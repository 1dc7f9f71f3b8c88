"""DMA by message in the layout of the specification, and in that of QEMU 10.1."""

from struct import pack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outboard.errors import RemoteProtocolError
from outboard.protocol import Command, DmaLayout, Header, Reply
from outboard.protocol.messages import DmaRead, DmaReadReply, DmaTransfer, DmaWrite, DmaWriteReply, Empty
from tests.protocol.strategies import MESSAGES, only_request, open_pair

QEMU10 = DmaLayout.QEMU10


@pytest.mark.point("P103")
@pytest.mark.parametrize("kind", [DmaRead, DmaReadReply, DmaWrite])
@settings(max_examples=25)
@given(draw=st.data())
def test_a_transfer_comes_back_from_the_old_layout(kind: type[DmaTransfer], draw: st.DataObject) -> None:
    """Decoding the encoding of any transfer in QEMU 10.1's layout gives that transfer."""
    message: Any = draw.draw(MESSAGES[kind])
    assert kind.decode(message.encode(QEMU10), QEMU10) == message


@pytest.mark.point("P103")
def test_the_old_layout_has_data_at_byte_12_and_four_bytes_after_it() -> None:
    old = pack("=QI4s4x", 0x1000, 4, b"data")
    assert DmaWrite(0x1000, 4, b"data").encode(QEMU10) == old
    assert DmaReadReply.decode(old[:-4] + b"junk", QEMU10) == DmaReadReply(0x1000, 4, b"data")
    assert DmaWriteReply(0x1000, 4).encode(QEMU10) == b""


def test_the_layout_of_the_specification_has_data_at_byte_16() -> None:
    assert DmaWrite(0x1000, 4, b"data").encode() == pack("=QQ4s", 0x1000, 4, b"data")


@pytest.mark.point("P103")
def test_an_old_peer_shows_itself_by_a_bare_reply_to_an_empty_write() -> None:
    _, server = open_pair()
    message_id, probe = server.command(DmaWrite(0, 0, b""))
    assert len(probe) == 32
    [answer] = server.feed(Header(message_id, 12, 16, 1).encode())
    assert answer == Reply(message_id, Command.DMA_WRITE, Empty(), ())


@pytest.mark.point("P103")
def test_both_ends_in_the_old_layout_read_and_write() -> None:
    client, server = open_pair()
    client.dma_layout = server.dma_layout = QEMU10
    message_id, message = server.command(DmaRead(0x1000, 4))
    reply = client.reply(only_request(client, message), DmaReadReply(0x1000, 4, b"data"))
    assert len(reply) == 36
    assert reply[28:32] == b"data"
    assert server.feed(reply) == [Reply(message_id, Command.DMA_READ, DmaReadReply(0x1000, 4, b"data"), ())]

    message_id, message = server.command(DmaWrite(0x2000, 4, b"data"))
    assert message[28:32] == b"data"
    request = only_request(client, message)
    assert request.body == DmaWrite(0x2000, 4, b"data")
    reply = client.reply(request, DmaWriteReply(0x2000, 4))
    assert server.feed(reply) == [Reply(message_id, Command.DMA_WRITE, Empty(), ())]


@pytest.mark.parametrize("layout", DmaLayout)
@pytest.mark.parametrize(
    "payload", [pack("=QQ", 0, 1), pack("=QQ", 0, 0) + b"x", pack("=QQ", 0, 2**64 - 1), b""]
)
def test_data_that_is_not_what_is_announced_is_refused(layout: DmaLayout, payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        DmaWrite.decode(payload, layout)
