"""The client's end against servers as they are: bare, verbose and forgetful replies."""

import errno

import pytest

from outboard.protocol import Command, ErrorReply, Fatal, Header, Malformed, Reply
from outboard.protocol.messages import (
    DeviceReset,
    DmaUnmap,
    Empty,
    Message,
    RegionRead,
    RegionReadReply,
    RegionWrite,
)
from tests.protocol.strategies import open_pair


@pytest.mark.point("P128")
@pytest.mark.parametrize("payload", [b"", b"leftover of a failed read"])
@pytest.mark.parametrize("flags", [0x20, 0x21])
def test_error_replies_of_other_servers_are_understood(flags: int, payload: bytes) -> None:
    client, _ = open_pair()
    message_id, _ = client.command(RegionRead(0, 0, 4))
    [event] = client.feed(Header(message_id, 9, 16 + len(payload), flags, errno.EFAULT).encode() + payload)
    assert event == ErrorReply(message_id, Command.REGION_READ, errno.EFAULT, ())


@pytest.mark.point("P127")
def test_an_error_without_a_number_is_still_an_error() -> None:
    client, _ = open_pair()
    message_id, _ = client.command(DeviceReset())
    [event] = client.feed(Header(message_id, 13, 16, 0x21).encode())
    assert event == ErrorReply(message_id, Command.DEVICE_RESET, 0, ())


@pytest.mark.point("P133")
@pytest.mark.parametrize("body", [DmaUnmap(24, 0, 0, 4096), RegionWrite(0, 0, 1, b"x")])
def test_a_bare_reply_where_an_echo_is_due_is_success(body: Message) -> None:
    client, _ = open_pair()
    message_id, message = client.command(body)
    command = Header.decode(message).command
    assert client.feed(Header(message_id, command, 16, 1).encode()) == [
        Reply(message_id, Command(command), Empty(), ())
    ]


@pytest.mark.point("P124")
def test_replies_may_come_in_any_order() -> None:
    client, _ = open_pair()
    ids = [client.command(RegionRead(i, 0, 1))[0] for i in range(3)]
    answers = [
        Header(i, 9, 33, 1).encode() + RegionReadReply(n, 0, 1, b"x").encode() for n, i in enumerate(ids)
    ]
    events = client.feed(b"".join(reversed(answers)))
    assert [event.message_id for event in events if isinstance(event, Reply)] == ids[::-1]


@pytest.mark.point("P124")
@pytest.mark.parametrize(
    "stray",
    [Header(0x7777, 13, 16, 1), Header(1, 4, 16, 1), Header(0x7777, 13, 16, 0x21, 22)],
    ids=["unknown id", "other command", "error to unknown id"],
)
def test_a_reply_nobody_waits_for_ends_the_connection(stray: Header) -> None:
    client, _ = open_pair()
    assert client.command(DeviceReset())[0] == 1
    [event] = client.feed(stray.encode())
    assert isinstance(event, Fatal)
    assert event.answer == b""


@pytest.mark.point("P124")
def test_a_reply_twice_ends_the_connection() -> None:
    client, _ = open_pair()
    message_id, _ = client.command(DeviceReset())
    answer = Header(message_id, 13, 16, 1).encode()
    assert [type(event) for event in client.feed(answer + answer)] == [Reply, Fatal]


@pytest.mark.point("P126")
@pytest.mark.parametrize("command", [9, 13, 19])
def test_a_command_only_a_client_sends_is_refused(command: int) -> None:
    client, _ = open_pair()
    [event] = client.feed(Header(1, command, 16, 0).encode())
    assert isinstance(event, Malformed)
    assert client.refuse(event, errno.ENOSYS) == Header(1, command, 16, 0x21, errno.ENOSYS).encode()
