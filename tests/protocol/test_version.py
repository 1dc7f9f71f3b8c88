"""VERSION: what is agreed, and what happens before and after."""

import errno
import json
from struct import pack

import pytest

from outboard.errors import LocalProtocolError
from outboard.protocol import (
    Capabilities,
    ClientConnection,
    Command,
    ErrorReply,
    Fatal,
    Header,
    Malformed,
    Reply,
    Request,
    ServerConnection,
    State,
    TwinSocket,
)
from outboard.protocol.messages import DeviceReset, RegionRead, Version
from tests.protocol.strategies import only_request, open_pair
from tests.protocol.test_capabilities import QEMU_REQUEST, QEMU_TEXT


def version(major: int, minor: int, text: bytes = b"", *, reply: bool = False) -> bytes:
    return Header(0, 1, 20 + len(text), int(reply)).encode() + pack("=HH", major, minor) + text


@pytest.mark.point("P26", "P28", "P29")
@pytest.mark.parametrize(("asked", "given"), [(0, 0), (1, 1), (2, 1), (9, 1), (65535, 1)])
def test_the_lower_minor_is_agreed(asked: int, given: int) -> None:
    server = ServerConnection()
    answer = server.accept(only_request(server, version(0, asked, QEMU_TEXT)))
    assert Header.decode(answer) == Header(0, 1, len(answer), 1)
    assert answer[16:20] == pack("=HH", 0, given)
    assert len(answer) <= QEMU_REQUEST
    assert answer.endswith(b"\0")
    assert isinstance(json.loads(answer[20:-1])["capabilities"], dict)


@pytest.mark.point("P28", "P30")
def test_a_client_without_json_has_the_defaults_and_gets_json() -> None:
    server = ServerConnection()
    answer = server.accept(only_request(server, version(0, 1)))
    assert server.peer == Capabilities()
    assert json.loads(answer[20:-1])["capabilities"]["max_msg_fds"] == 16


@pytest.mark.point("P34")
def test_the_peers_limits_are_known_once_the_version_is_fed() -> None:
    server = ServerConnection()
    server.feed(version(0, 0, b'{"capabilities":{"max_msg_fds":3,"max_data_xfer_size":4096}}\0'))
    assert (server.peer.max_msg_fds, server.peer.max_data_xfer_size) == (3, 4096)


def test_a_command_may_follow_the_version_at_once() -> None:
    server = ServerConnection()
    events = server.feed(version(0, 0) + Header(1, 13, 16, 0).encode())
    assert [type(event) for event in events] == [Request, Request]


@pytest.mark.point("P25")
@pytest.mark.parametrize("command", range(2, 19))
def test_any_command_before_the_version_is_refused(command: int) -> None:
    server = ServerConnection()
    [event, after] = server.feed(Header(5, command, 48, 0).encode() + bytes(32) + version(0, 0))
    assert isinstance(event, Malformed)
    assert server.refuse(event, event.error.errno) == Header(5, command, 16, 0x21, errno.EINVAL).encode()
    assert isinstance(after, Request)


@pytest.mark.point("P27", "P32", "P33")
@pytest.mark.parametrize(
    "message",
    [
        version(1, 0, b"{}\0"),
        version(0xFFFF, 0),
        version(0, 0, b"{}"),
        version(0, 0, b"{]\0"),
        version(0, 0, b"{}\0{}\0"),
        version(0, 0, b'{"capabilities":{"max_msg_fds":-1}}\0'),
        version(0, 0, b"[" * 100_000 + b"\0"),
        version(0, 0, b'{"x":"' + b"y" * 1024 * 1024 + b'"}\0'),
        Header(0, 1, 16, 0).encode(),
        Header(0, 1, 19, 0).encode() + bytes(3),
    ],
    ids=lambda message: repr(message[16:40]),
)
def test_a_bad_version_is_answered_and_ends_the_connection(message: bytes) -> None:
    server = ServerConnection()
    [event] = server.feed(message)
    assert isinstance(event, Fatal)
    assert event.answer == Header(0, 1, 16, 0x21, errno.EINVAL).encode()
    assert server.feed(version(0, 0)) == []


@pytest.mark.point("P36")
def test_a_second_version_is_refused_and_the_connection_kept() -> None:
    client, server = open_pair()
    [event, after] = server.feed(version(0, 0, QEMU_TEXT) + Header(1, 13, 16, 0).encode())
    assert isinstance(event, Malformed)
    assert isinstance(after, Request)
    assert server.state is State.OPEN
    assert server.peer == client.offer


@pytest.mark.point("P35")
@pytest.mark.parametrize("asked", [True, False])
def test_a_twin_socket_is_offered_only_to_who_asks(asked: bool) -> None:
    client, _ = open_pair(
        Capabilities(twin_socket=TwinSocket(True)), Capabilities(twin_socket=TwinSocket(asked))
    )
    assert client.peer.twin_socket == (TwinSocket(True, 0) if asked else TwinSocket())


@pytest.mark.point("P122")
def test_a_client_opens_with_version_and_json() -> None:
    client = ClientConnection()
    _, hello = client.version_command()
    assert hello[16:20] == pack("=HH", 0, 1)
    assert hello.endswith(b"}\0")
    with pytest.raises(LocalProtocolError, match="VERSION has been sent"):
        client.version_command()
    with pytest.raises(LocalProtocolError, match="REGION_READ may not be sent"):
        client.command(RegionRead(0, 0, 4))


@pytest.mark.point("P122")
@pytest.mark.parametrize(
    "answer",
    [
        version(1, 0, b"{}\0", reply=True),
        version(0, 2, b"{}\0", reply=True),
        version(0, 0, b"{}", reply=True),
        version(0, 0, b'{"capabilities":{"max_data_xfer_size":0}}\0', reply=True),
        Header(0, 1, 16, 1).encode(),
    ],
    ids=lambda answer: repr(answer[16:]),
)
def test_a_client_gives_up_on_a_version_it_cannot_speak(answer: bytes) -> None:
    client = ClientConnection()
    client.version_command()
    [event] = client.feed(answer)
    assert isinstance(event, Fatal)
    assert event.answer == b""
    with pytest.raises(LocalProtocolError):
        client.command(DeviceReset())


@pytest.mark.point("P123")
def test_a_server_without_json_has_the_defaults() -> None:
    client = ClientConnection()
    message_id, _ = client.version_command()
    [event] = client.feed(version(0, 0, reply=True))
    assert event == Reply(message_id, Command.VERSION, Version(0, 0, None), ())
    assert client.peer == Capabilities()


def test_a_refused_version_leaves_the_client_closed_to_commands() -> None:
    client = ClientConnection()
    message_id, _ = client.version_command()
    [event] = client.feed(Header(message_id, 1, 16, 0x21, errno.EINVAL).encode())
    assert event == ErrorReply(message_id, Command.VERSION, errno.EINVAL, ())
    with pytest.raises(LocalProtocolError):
        client.command(DeviceReset())
