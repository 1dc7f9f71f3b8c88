"""Commands and their answers: who may send what, when, and what an answer looks like."""

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outboard.errors import LocalProtocolError
from outboard.protocol import (
    RULES,
    Capabilities,
    Command,
    Direction,
    ErrorReply,
    Fatal,
    Header,
    Malformed,
    Reply,
    Request,
    ServerConnection,
)
from outboard.protocol.messages import (
    DeviceInfo,
    DeviceReset,
    DmaRead,
    DmaReadReply,
    Empty,
    Message,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteReply,
    Version,
)
from tests.protocol.strategies import MESSAGES, only_request, open_pair

TO_SERVER = [
    r for r in RULES.values() if r.direction is Direction.TO_SERVER and r.command is not Command.VERSION
]
ALL_BUT_VERSION = [rule for rule in RULES.values() if rule.command is not Command.VERSION]
PAYLOADLESS = (Command.DEVICE_RESET,)


def test_the_table_has_every_command() -> None:
    assert sorted(RULES) == list(range(1, 19)) == sorted(Command)


@pytest.mark.point("P8", "P11", "P124")
@pytest.mark.parametrize("rule", ALL_BUT_VERSION, ids=lambda rule: rule.command.name)
@settings(max_examples=25)
@given(draw=st.data())
def test_every_command_is_answered_by_its_reply(rule: object, draw: st.DataObject) -> None:
    """Any request reaches the other end as it was, and so does any reply to it, with its id."""
    rule = RULES[rule.command]  # type: ignore[attr-defined]
    client, server = open_pair()
    sender, receiver = (client, server) if rule.direction is Direction.TO_SERVER else (server, client)
    body, answer = draw.draw(MESSAGES[rule.request]), draw.draw(MESSAGES[rule.reply])
    message_id, message = sender.command(body)
    request = only_request(receiver, message)
    assert (request.command, request.body) == (rule.command, body)
    reply = receiver.reply(request, answer)
    header = Header.decode(reply)
    assert header == Header(message_id, rule.command, len(reply), 1)
    assert sender.feed(reply) == [Reply(message_id, rule.command, answer, ())]


@pytest.mark.point("P9", "P127")
@pytest.mark.parametrize("rule", ALL_BUT_VERSION, ids=lambda rule: rule.command.name)
@settings(max_examples=25)
@given(draw=st.data(), number=st.integers(1, 4095))
def test_a_refusal_is_a_bare_header_with_the_errno(rule: object, draw: st.DataObject, number: int) -> None:
    """Any request may be refused with any errno, in exactly 16 bytes with flags 0x21."""
    rule = RULES[rule.command]  # type: ignore[attr-defined]
    client, server = open_pair()
    sender, receiver = (client, server) if rule.direction is Direction.TO_SERVER else (server, client)
    message_id, message = sender.command(draw.draw(MESSAGES[rule.request]))
    refusal = receiver.refuse(only_request(receiver, message), number)
    assert refusal == Header(message_id, rule.command, 16, 0x21, number).encode()
    assert sender.feed(refusal) == [ErrorReply(message_id, rule.command, number, ())]


@pytest.mark.point("P10")
@pytest.mark.parametrize("rule", TO_SERVER, ids=lambda rule: rule.command.name)
@settings(max_examples=25)
@given(draw=st.data())
def test_a_command_that_wants_no_reply_gets_none(rule: object, draw: st.DataObject) -> None:
    """With No_reply, neither success nor failure of any command sends a byte."""
    rule = RULES[rule.command]  # type: ignore[attr-defined]
    client, server = open_pair()
    _, message = client.command(draw.draw(MESSAGES[rule.request]), no_reply=True)
    request = only_request(server, message)
    assert server.reply(request, draw.draw(MESSAGES[rule.reply])) == b""
    assert server.refuse(request, errno.EIO) == b""


@pytest.mark.point("P10", "P17")
@pytest.mark.parametrize("command", range(1, 19))
def test_a_broken_command_that_wants_no_reply_gets_none(command: int) -> None:
    _, server = open_pair()
    [event] = server.feed(Header(1, command, 17, 0x10).encode() + b"x")
    assert isinstance(event, Malformed)
    assert server.refuse(event, errno.EINVAL) == b""


@pytest.mark.point("P11")
def test_the_same_id_twice_is_answered_twice() -> None:
    _, server = open_pair()
    reset = Header(0, 13, 16, 0).encode()
    events = server.feed(reset + reset)
    replies = [server.reply(event, Empty()) for event in events if isinstance(event, Request)]
    assert replies == [Header(0, 13, 16, 1).encode()] * 2


@pytest.mark.point("P16")
@pytest.mark.parametrize("command", [0, 11, 12, 19, 999, 0xFFFF])
@pytest.mark.parametrize("body", [b"", bytes(16), bytes(5000)])
def test_an_unknown_command_is_refused_and_the_next_one_works(command: int, body: bytes) -> None:
    _, server = open_pair()
    unknown = Header(3, command, 16 + len(body), 0).encode() + body
    [event, after] = server.feed(unknown + Header(4, 13, 16, 0).encode())
    assert isinstance(event, Malformed)
    assert server.refuse(event, event.error.errno) == Header(3, command, 16, 0x21, errno.EINVAL).encode()
    assert isinstance(after, Request)


@pytest.mark.point("P17", "P49")
@pytest.mark.parametrize("command", [c for c in range(1, 19) if c not in PAYLOADLESS])
@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_missing_payload_is_refused_and_the_next_command_works(command: int, length: int) -> None:
    _, server = open_pair()
    [event, after] = server.feed(
        Header(3, command, 16 + length, 0).encode() + bytes(length) + Header(4, 13, 16, 0).encode()
    )
    assert isinstance(event, Malformed)
    assert server.refuse(event, event.error.errno) == Header(3, command, 16, 0x21, errno.EINVAL).encode()
    assert isinstance(after, Request)


@pytest.mark.point("P18")
def test_a_payload_on_a_reset_is_refused() -> None:
    _, server = open_pair()
    [event] = server.feed(Header(3, 13, 17, 0).encode() + b"x")
    assert isinstance(event, Malformed)


@pytest.mark.point("P15")
def test_a_reply_nobody_waits_for_leaves_the_server_usable() -> None:
    _, server = open_pair()
    stray = Header(3, 9, 20, 1).encode() + b"body"
    [event, after] = server.feed(stray + Header(4, 13, 16, 0).encode())
    assert isinstance(event, Malformed)
    assert server.refuse(event, errno.EINVAL) == b""
    assert isinstance(after, Request)


@pytest.mark.point("P15")
def test_a_reply_to_another_command_is_not_taken_for_the_answer() -> None:
    client, server = open_pair()
    message_id, message = server.command(DmaRead(0x1000, 4))
    [stray] = server.feed(Header(message_id, 12, 16, 1).encode())
    assert isinstance(stray, Malformed)
    answer = client.reply(only_request(client, message), DmaReadReply(0x1000, 4, b"data"))
    assert server.feed(answer) == [Reply(message_id, Command.DMA_READ, DmaReadReply(0x1000, 4, b"data"), ())]


@pytest.mark.point("P102", "P125")
def test_commands_of_both_ends_cross_without_harm() -> None:
    client, server = open_pair()
    read_id, read = client.command(RegionRead(0, 0, 4))
    dma_id, dma = server.command(DmaRead(0x1000, 2))
    assert read_id == 1
    assert dma_id == 0
    [request] = server.feed(read)
    [served] = client.feed(dma)
    assert isinstance(request, Request)
    assert isinstance(served, Request)
    events = client.feed(server.reply(request, RegionReadReply(0, 0, 4, b"abcd")))
    assert [type(event) for event in events] == [Reply]
    events = server.feed(client.reply(served, DmaReadReply(0x1000, 2, b"ab")))
    assert [type(event) for event in events] == [Reply]


@pytest.mark.point("P105")
def test_a_reply_without_its_payload_ends_the_connection() -> None:
    _, server = open_pair()
    message_id, _ = server.command(DmaRead(0x1000, 4))
    [event] = server.feed(Header(message_id, 11, 16, 1).encode())
    assert isinstance(event, Fatal)
    assert event.answer == b""


def test_a_wrong_answer_is_our_mistake() -> None:
    client, server = open_pair()
    request = only_request(server, client.command(RegionRead(0, 0, 4))[1])
    with pytest.raises(LocalProtocolError, match="RegionReadReply, not RegionWriteReply"):
        server.reply(request, RegionWriteReply(0, 0, 4))
    for number in (0, -1, 4096):
        with pytest.raises(LocalProtocolError, match="errno"):
            server.refuse(request, number)
    with pytest.raises(LocalProtocolError, match="only VERSION"):
        server.accept(request)


@pytest.mark.parametrize("body", [DmaRead(0, 4), RegionReadReply(0, 0, 0, b""), Empty()])
def test_a_client_cannot_send_what_is_the_servers(body: Message) -> None:
    client, _ = open_pair()
    with pytest.raises(LocalProtocolError, match="no command of this end"):
        client.command(body)


def test_a_server_cannot_send_before_the_version() -> None:
    with pytest.raises(LocalProtocolError, match="new"):
        ServerConnection().command(DmaRead(0, 4))


@pytest.mark.point("P34", "P101", "P123")
def test_data_over_the_peers_limit_is_not_sent() -> None:
    client, server = open_pair(Capabilities(max_data_xfer_size=8192), Capabilities(max_data_xfer_size=4096))
    assert (client.transfer_limit, server.transfer_limit) == (4096, 4096)
    server.command(DmaRead(0, 4096))
    with pytest.raises(LocalProtocolError, match="split it"):
        server.command(DmaRead(0, 4097))
    with pytest.raises(LocalProtocolError, match="split it"):
        client.command(RegionWrite(0, 0, 4097, bytes(4097)))


def test_an_id_in_flight_is_not_used_again() -> None:
    client, _ = open_pair()
    waiting, _ = client.command(DeviceInfo(16, 0, 0, 0))
    used = {client.command(DeviceReset(), no_reply=True)[0] for _ in range(2**16 + 10)}
    assert waiting not in used
    assert len(used) == 2**16 - 1


def test_a_version_is_a_command_like_others() -> None:
    client, _ = open_pair()
    with pytest.raises(LocalProtocolError, match="VERSION may not be sent on a connection that is open"):
        client.command(Version(0, 0, None))
